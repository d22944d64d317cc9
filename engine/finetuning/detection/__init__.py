"""Training of detectors: assignment, losses, augmentation, data set and metrics."""
