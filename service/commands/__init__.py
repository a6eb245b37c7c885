"""Subcommands of `holdfast`, one module a noun."""
