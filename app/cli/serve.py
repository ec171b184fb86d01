"""`sparserm serve` and `sparserm keys`."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import failing_kindly, needing_ray, progress, settings
from app.settings import Settings

if TYPE_CHECKING:
    from app.serve.multiprocess.workers import WorkerSpec

app = typer.Typer()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that serve, each on a device of its own, or with its share of the threads."
        ),
    ] = None,
    *,
    ray: Annotated[bool, typer.Option("--ray", help="Let Ray Serve run these processes.")] = False,
) -> None:
    """Serve every reward model found; each setting is also a SPARSERM_… variable (docs/settings.md)."""
    from app.serve import process
    from app.serve.middleware import access_log
    from app.serve.middleware.auth import require_keys_beyond_loopback

    given = {"host": host, "port": port, "workers": workers}
    chosen = settings(**{name: value for name, value in given.items() if value is not None})
    process.raise_open_file_limit()
    with failing_kindly():
        require_keys_beyond_loopback(chosen)
        if chosen.workers == 1 and not ray:
            raise typer.Exit(_serve(chosen))
        access_log.configure_logging(chosen.log_level)
        if ray:
            raise typer.Exit(_serve_by_ray(chosen))
        raise typer.Exit(_serve_by_workers(chosen))


def _serve_by_workers(chosen: Settings) -> int:
    from app.serve import process
    from app.serve.multiprocess.gateway import create_gateway
    from app.serve.multiprocess.workers import WorkerPool

    with WorkerPool(partial(_work, chosen), chosen.workers, drain_s=chosen.drain_timeout_s) as workers:
        return process.run(create_gateway(workers, chosen), chosen)


def _serve_by_ray(chosen: Settings) -> int:
    with needing_ray():
        from app.serve.ray.deployment import run

    return run(chosen)


def _work(chosen: Settings, place: "WorkerSpec") -> None:
    """All that a worker's process does."""
    from app.serve import process
    from app.serve.multiprocess import workers

    workers.detach_from_terminal()
    process.raise_open_file_limit()

    from app.reward import loading

    names = ",".join(place.models) or chosen.models
    mine = loading.select_worker_settings(chosen.model_copy(update={"models": names}), place.index)
    try:
        with failing_kindly():
            sys.exit(_serve(mine, place.socket))
    except typer.Exit as error:
        sys.exit(error.exit_code)


def _serve(chosen: Settings, socket: Path | None = None) -> int:
    from prometheus_client import REGISTRY

    from app.backbone.runtime.threads import apart
    from app.reward import loading
    from app.serve import process
    from app.serve.application import create_app
    from app.serve.middleware import access_log

    with progress() as report:
        engine = apart(lambda: loading.load_engine(chosen, report))
        served = create_app(engine, chosen, REGISTRY)
    access_log.configure_logging(chosen.log_level)
    return process.run(served, chosen, socket)


keys = typer.Typer(help="Keys that open the server.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command()
def new(
    role: Annotated[str, typer.Option(help="score, admin or metrics.")] = "score",
    name: Annotated[str, typer.Option(help="Whom it is for; only for your own reading.")] = "",
) -> None:
    """Make a key: it is printed once, on stderr; the line for SPARSERM_API_KEYS_FILE goes to stdout."""
    from app.serve.middleware.api_keys import Role
    from app.serve.middleware.api_keys import generate_key as made

    if role.upper() not in Role.__members__:
        raise typer.BadParameter("use score, admin or metrics", param_hint="--role")
    key, line = made(Role[role.upper()], name)
    typer.echo(f"key (keep it, it is not stored): {key}", err=True)
    typer.echo(line)
