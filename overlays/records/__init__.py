"""Reading of logs: JSON Lines and Parquet to records, and records to frames."""
