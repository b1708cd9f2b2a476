"""Merge methods for mergeflow. The entry points in pyproject.toml say where each of them is."""
