"""`sparserm serve` and `sparserm keys`: runs the server and creates API keys."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import exit_on_error, load_settings, require_extra, show_progress
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
        typer.Option(help="Worker processes, each with a device or a share of the CPU threads to itself."),
    ] = None,
    *,
    ray: Annotated[bool, typer.Option("--ray", help="Run the workers with Ray Serve.")] = False,
) -> None:
    """Serve all reward models in the models folder.

    Each setting is also an environment variable SPARSERM_…; see docs/settings.md.
    """
    from app.serve import process
    from app.serve.middleware import access_log
    from app.serve.middleware.auth import require_keys_beyond_loopback

    options = {"host": host, "port": port, "workers": workers}
    settings = load_settings(**{name: value for name, value in options.items() if value is not None})
    process.raise_open_file_limit()
    require_keys_beyond_loopback(settings)
    if settings.workers == 1 and not ray:
        raise typer.Exit(_serve(settings))
    access_log.configure_logging(settings.log_level)
    if ray:
        raise typer.Exit(_serve_with_ray(settings))
    raise typer.Exit(_serve_with_workers(settings))


def _serve_with_workers(settings: Settings) -> int:
    from app.serve import process
    from app.serve.multiprocess.gateway import create_gateway
    from app.serve.multiprocess.workers import WorkerPool

    run_worker = partial(_run_worker, settings)
    with WorkerPool(run_worker, settings.workers, drain_s=settings.drain_timeout_s) as workers:
        return process.run(create_gateway(workers, settings), settings)


def _serve_with_ray(settings: Settings) -> int:
    require_extra("ray")
    from app.serve.ray.deployment import run

    return run(settings)


def _run_worker(settings: Settings, spec: "WorkerSpec") -> None:
    """Serve in a worker process; this is all that the process does."""
    from app.serve import process
    from app.serve.multiprocess import workers

    workers.detach_from_terminal()
    process.raise_open_file_limit()

    from app.reward import loading

    models = ",".join(spec.models) or settings.models
    worker_settings = loading.select_worker_settings(
        settings.model_copy(update={"models": models}), spec.index
    )
    try:
        with exit_on_error():
            sys.exit(_serve(worker_settings, spec.socket))
    except typer.Exit as error:
        sys.exit(error.exit_code)


def _serve(settings: Settings, socket: Path | None = None) -> int:
    """Load the engine and serve until the process is asked to stop; return the exit code."""
    from prometheus_client import REGISTRY

    from app.backbone.runtime.threads import run_in_temporary_thread
    from app.reward import loading
    from app.serve import process
    from app.serve.application import create_app
    from app.serve.middleware import access_log

    with show_progress() as progress:
        engine = run_in_temporary_thread(lambda: loading.load_engine(settings, progress))
        server_app = create_app(engine, settings, REGISTRY)
    access_log.configure_logging(settings.log_level)
    return process.run(server_app, settings, socket)


keys = typer.Typer(help="API keys of the server.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command()
def new(
    role: Annotated[str, typer.Option(help="score, admin or metrics.")] = "score",
    name: Annotated[str, typer.Option(help="Who uses the key; only a note for you.")] = "",
) -> None:
    """Create an API key: it is printed once, on stderr; stdout gets the line for SPARSERM_API_KEYS_FILE."""
    from app.serve.middleware.api_keys import Role, generate_key

    if role.upper() not in Role.__members__:
        raise typer.BadParameter("use score, admin or metrics", param_hint="--role")
    key, line = generate_key(Role[role.upper()], name)
    typer.echo(f"key (store it now, it is not saved): {key}", err=True)
    typer.echo(line)
