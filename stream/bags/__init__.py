"""Recordings of ROS and Foxglove: MCAP, ROS 2 bags (SQLite), bag folders and ROS 1 bags."""
