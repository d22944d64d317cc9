"""Logs read back: JSON lines and Parquet to records, and records to frames."""
