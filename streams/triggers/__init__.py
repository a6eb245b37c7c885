"""When to cut an experience: one file a trigger."""
