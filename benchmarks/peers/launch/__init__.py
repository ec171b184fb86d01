"""Programs that run in a peer's own venv, started with `python -m`; none of them imports the project."""
