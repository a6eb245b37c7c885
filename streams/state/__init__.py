"""Rows: what ingest has committed. SQL of this side stands only here."""
