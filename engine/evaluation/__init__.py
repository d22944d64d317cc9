"""Evaluation of explanations: metrics, annotations and the evaluation of images."""
