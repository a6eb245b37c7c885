"""What runs on Ray: tasks, trainers and their pool. No SQL."""
