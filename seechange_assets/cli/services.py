"""`seechange up`, `down`, `status`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, busy, print_json, print_table, settings

if TYPE_CHECKING:
    from resources.services import ServiceStatus


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)


def up(
    ui: Annotated[bool, typer.Option(help="Also start the Dagster UI and daemon.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Start the services that are not running yet, wait until they answer, and bring the database up to date."""
    with busy("starting the services"):
        statuses = start(settings(), ui=ui)
    _show(statuses, as_json)


def start(configuration: Any, *, ui: bool) -> "list[ServiceStatus]":
    """Start the services and apply the migrations, Dagster last: it finds the database complete."""
    from resources import services
    from resources.database import Database

    statuses = services.up(configuration, ui=False)
    Database(configuration.database_url).upgrade()
    return services.up(configuration, ui=True) if ui else statuses


def down(as_json: JsonOption = False) -> None:
    """Stop every embedded service and every run in progress."""
    from resources import services

    with busy("stopping the services"):
        stopped = services.down(settings())
    if as_json:
        print_json({"stopped": stopped})
    else:
        typer.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def status(as_json: JsonOption = False) -> None:
    """Show the services; exit code 1 unless all of them are up and well."""
    from resources import services

    statuses = services.status(settings())
    _show(statuses, as_json)
    if not all(service.state in {"running", "external"} for service in statuses):
        raise typer.Exit(1)


def _show(statuses: "list[ServiceStatus]", as_json: bool) -> None:
    rows = [service.as_dict() for service in statuses]
    if as_json:
        print_json(rows)
    else:
        print_table(rows)
