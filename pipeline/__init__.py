"""Data types, interfaces, worker threads, configuration and guards; imports no other package of the project."""
