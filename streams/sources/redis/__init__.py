"""Redis Streams as a source."""
