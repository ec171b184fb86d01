"""`sparserm serve` and `sparserm keys`."""

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
    from prometheus_client import REGISTRY

    from app.serve import process

    process.prepare()

    from app.model import home
    from app.serve import logs
    from app.serve.gate import refuse_exposure
    from app.serve.server import create_app

    given: dict[str, Any] = {
        name: value for name, value in (("host", host), ("port", port)) if value is not None
    }
    chosen = settings(**given)
    with failing_kindly(), progress() as report:
        refuse_exposure(chosen)
        served = create_app(home.engine(chosen, report), chosen, REGISTRY)
    logs.begin(chosen.log_level)
    raise typer.Exit(process.run(served, chosen))


keys = typer.Typer(help="Keys that open the server.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command()
def new(
    role: Annotated[str, typer.Option(help="score, admin or metrics.")] = "score",
    name: Annotated[str, typer.Option(help="Whom it is for; only for your own reading.")] = "",
) -> None:
    """Make a key: it is printed once, on stderr; the line for SPARSERM_KEYS_FILE goes to stdout."""
    from app.serve.keys import Role
    from app.serve.keys import new as made

    if role.upper() not in Role.__members__:
        raise typer.BadParameter("use score, admin or metrics", param_hint="--role")
    key, line = made(Role[role.upper()], name)
    typer.echo(f"key (keep it, it is not stored): {key}", err=True)
    typer.echo(line)
