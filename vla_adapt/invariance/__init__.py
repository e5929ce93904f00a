"""Features that do not betray the robot: losses that make them so, and the probe that measures it."""
