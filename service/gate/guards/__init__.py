"""Guards: one question about a challenger or its data each."""
