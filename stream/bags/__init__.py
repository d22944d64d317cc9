"""The source of ROS and Foxglove recordings: MCAP, ROS 2 bags (SQLite), bag folders and ROS 1 bags."""
