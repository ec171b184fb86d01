"""Fault injection: server processes are made to fail while other clients' requests must stay correct."""
