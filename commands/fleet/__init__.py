"""`run.py fleet`: cameras over several machines, on Ray."""
