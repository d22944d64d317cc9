"""Networks cut in two at a layer: the part before it and the part after it."""
