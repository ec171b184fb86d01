"""`sparserm serve`."""

import logging
from typing import Annotated, Any

import typer

from app.cli.shared import failing_kindly, progress, settings

app = typer.Typer()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Serve every reward model found; each setting is also a SPARSERM_… variable (docs/settings.md)."""
    import uvicorn
    from prometheus_client import REGISTRY

    from app.model import home
    from app.serve.gate import refuse_exposure
    from app.serve.server import create_app

    given: dict[str, Any] = {
        name: value for name, value in (("host", host), ("port", port)) if value is not None
    }
    chosen = settings(**given)
    logging.basicConfig(level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    with failing_kindly(), progress() as report:
        refuse_exposure(chosen)
        served = create_app(home.engine(chosen, report), chosen, REGISTRY)
    uvicorn.run(
        served,
        host=chosen.host,
        port=chosen.port,
        log_level=chosen.log_level,
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=chosen.drain_s,
    )
