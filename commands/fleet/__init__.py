"""`run.py fleet`: distributes cameras over several machines with Ray."""
