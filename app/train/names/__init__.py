"""Writes and tests names of features: evidence, sheets, blind tests, and endpoints of language models."""
