"""From requests and sources to experiences: records sent over HTTP, and the ingest role."""
