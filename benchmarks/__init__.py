"""Measurements: `make bench` prints them, docs/log.md keeps them."""
