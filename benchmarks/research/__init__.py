"""Experiments on the method; they use the server's code and are not part of it."""
