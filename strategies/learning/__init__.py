"""The learner that every strategy builds on: network, training loop, state."""
