"""Reads logs: records from JSON Lines and Parquet, and the frame of each record."""
