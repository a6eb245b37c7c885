"""Avalanche plugins that several strategies share."""
