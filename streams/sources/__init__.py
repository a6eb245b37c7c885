"""Where records come from: one file, or one folder, a source."""
