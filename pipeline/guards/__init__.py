"""Guards: rules on explanations, drift detection and their metrics."""
