"""What runs in a peer's own venv, started with `python -m`; nothing here imports the project."""
