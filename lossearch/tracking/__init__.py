"""Showing a study elsewhere. What is shown is derived from the ledger and never read back."""
