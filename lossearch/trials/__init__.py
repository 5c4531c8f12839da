"""Proposals, rungs, the ledger and the comparison; knows neither Ray nor MLflow."""
