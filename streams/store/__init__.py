"""Stored files: objects in a folder or in S3, and experiences named by their sha256."""
