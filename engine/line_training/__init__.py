"""Training of the network that the simulated inspection line uses."""
