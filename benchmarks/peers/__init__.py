"""Compares SparseRM with other servers; one module per server defines its command, requests and responses."""
