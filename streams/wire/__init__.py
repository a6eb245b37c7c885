"""Decodes payloads to records: one module a format."""
