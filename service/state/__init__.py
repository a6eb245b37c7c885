"""Rows: pipelines, jobs, champions, holdouts and the ledger. SQL of this side stands only here."""
