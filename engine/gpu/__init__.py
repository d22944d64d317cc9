"""What runs on an NVIDIA GPU alone, its logic written so that a CPU can prove it."""
