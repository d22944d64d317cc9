"""Fine-tuning of networks on the user's own classes."""
