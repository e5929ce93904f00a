"""The policy: OpenVLA in the original checkpoint layout, its tiny twin, and the action heads."""
