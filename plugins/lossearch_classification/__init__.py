"""Placeholder until the first component lands."""
