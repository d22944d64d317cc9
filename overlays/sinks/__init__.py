"""The doors through which overlays leave: one file each, one table."""
