"""GPU code: streams, CUDA graphs, image operations and device information."""
