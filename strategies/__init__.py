"""The learning side: continual-learning strategies on Avalanche. Knows nothing of the service."""
