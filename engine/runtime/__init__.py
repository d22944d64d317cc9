"""Compiled networks: how they are built, cached, verified and run."""
