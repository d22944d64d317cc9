"""Explanation of recordings and photos by the hundred thousand: `run.py explain-archive`."""
