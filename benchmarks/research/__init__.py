"""Experiments on the method; not part of the product."""
