"""Payloads to records: one module a format."""
