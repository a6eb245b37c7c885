"""Database rows of pipelines, updates, champions, holdouts and the ledger: the only SQL of this package."""
