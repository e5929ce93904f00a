"""vla_adapt: one small, verifiable OpenVLA adapter per robot."""
