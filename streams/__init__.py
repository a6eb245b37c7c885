"""The data side: from any source to immutable experiences, exactly once. Knows nothing of learning."""
