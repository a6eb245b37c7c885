"""The learner that every strategy builds on, and how it computes."""
