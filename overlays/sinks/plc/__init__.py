"""Sinks for programmable logic controllers, and the verdicts that they publish."""
