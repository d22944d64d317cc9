"""Local plan: exact masked maps by recomputing only the positions that depend on the masked cell."""
