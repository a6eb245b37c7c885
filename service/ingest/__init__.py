"""Stream in: requests, sources and the ingest role."""
