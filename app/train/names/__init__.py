"""How features get names."""
