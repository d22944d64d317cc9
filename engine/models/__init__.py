"""Models: registry, checkpoints, weights, labels and preprocessing."""
