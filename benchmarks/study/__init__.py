"""A study of calibration: trains once per task and seed, keeps the trajectory, and evaluates recipes on it afterwards."""
