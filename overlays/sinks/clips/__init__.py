"""Clip sink: records video clips into a folder, all frames or those that meet a condition."""
