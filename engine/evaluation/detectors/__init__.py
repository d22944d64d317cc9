"""Evaluation of the maps of a detector's boxes: matching, baselines, perturbation curves and summary."""
