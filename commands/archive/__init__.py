"""`run.py explain-archive`: explains large archives of videos and photos."""
