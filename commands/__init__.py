"""The command line's words: one file each, joined in app.py."""
