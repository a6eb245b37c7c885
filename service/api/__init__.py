"""The HTTP API; the only folder that imports fastapi."""
