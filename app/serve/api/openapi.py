"""Writes the OpenAPI document; needs no engine: python -m app.serve.api.openapi FILE."""

import json
import sys
from pathlib import Path

from fastapi import FastAPI

from app.serve import adapters
from app.serve.api import admin_routes, routes


def render_openapi() -> str:
    """Return the OpenAPI document of the native API and all adapters as JSON with sorted keys."""
    app = FastAPI(title="SparseRM", version="1")
    for router in (routes.router, admin_routes.router, admin_routes.admin_router):
        app.include_router(router)
    adapters.add_dialects(app)
    return json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render_openapi())
