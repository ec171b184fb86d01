"""Faults, injected into real server processes while innocent requests go on."""
