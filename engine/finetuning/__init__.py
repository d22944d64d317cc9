"""A network of the table, taught somebody's own classes."""
