"""Reads logs in JSON Lines and Parquet, and matches their records with frames."""
