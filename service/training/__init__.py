"""Training on Ray: tasks, trainers and their pool. No SQL."""
