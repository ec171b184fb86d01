"""Measurements: `make bench` prints them, benchmarks/LOG.md keeps them."""
