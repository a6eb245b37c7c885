"""Bytes, addressed by their sha256."""
