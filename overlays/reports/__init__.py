"""HTML reports of evaluations and trainings."""
