"""The database rows of the data side. All its SQL is in this package."""
