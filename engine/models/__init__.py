"""Networks: the registry, checkpoints, weights, labels and preprocessing."""
