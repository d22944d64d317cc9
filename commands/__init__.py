"""Commands of the command line, one file each; app.py joins them."""
