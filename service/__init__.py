"""The operating side: jobs, gate, registry, API, command line."""
