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
    app.command()(workers)


def up(
    ui: Annotated[bool, typer.Option(help="Also start the Dagster UI and daemon.")] = True,
    workers: Annotated[
        int | None, typer.Option(min=0, max=1000, help="Warm workers on this machine; 0: a process per run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the services that are not running yet, wait until they answer, and bring the database up to date.

    Settings that are not given are those of the last `up` of this home.
    """
    configuration = settings()
    kept = dict(configuration.kept)
    if workers is not None:
        kept.pop("SEECHANGE_WORKERS", None)
        configuration = configuration.model_copy(update={"workers": workers, "kept": kept})
    if kept:
        told = ", ".join(f"{name}={value}" for name, value in kept.items())
        typer.echo(f"kept from the last `up`: {told}", err=True)
    with busy("starting the services"):
        statuses = start(configuration, ui=ui)
    _show(statuses, as_json)


def start(configuration: Any, *, ui: bool) -> "list[ServiceStatus]":
    """Start the services and apply the migrations, Dagster last: it finds the database complete.

    The tag of these settings is moved to their recipes: whoever starts production means them.
    """
    from io_managers.tags import Tags
    from resources import services
    from resources.database import Database
    from seechange_assets.definitions import build_store
    from seechange_assets.pipeline import build_recipes

    build_recipes(configuration)  # a mistake in a parameter is told before anything is started or kept
    statuses = services.up(configuration, ui=False)
    database = Database(configuration.database_url)
    database.upgrade()
    Tags(database).move(configuration.tag, build_store(configuration).recipes.values())
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


def status(
    as_json: JsonOption = False,
    as_metrics: Annotated[bool, typer.Option("--metrics", help="The numbers alone, in Prometheus's format.")] = False,
) -> None:
    """Show the services and the work of the last day; exit code 1 unless all services are up and well.

    A sensor that is switched off, or that fails, counts as an illness of Dagster.
    """
    from resources import services
    from seechange_assets.cli import activity, metrics

    configuration = settings()
    if as_metrics:
        typer.echo(metrics.text(configuration), nl=False)
        return
    postgres, *others = services.status(configuration)
    statuses = [_with_tables(postgres, configuration), *others]
    told = None
    try:
        told = activity.look(configuration) if postgres.is_up else None
    finally:  # a mistake in the configuration must not hide the services
        if as_json:
            print_json([service.as_dict() for service in statuses] + ([told] if told else []))
        else:
            _show(statuses, as_json=False)
    if told and not as_json:
        activity.show(told)
    if not all(service.state in {"running", "external"} for service in statuses):
        raise typer.Exit(1)


def _with_tables(postgres: "ServiceStatus", configuration: Any) -> "ServiceStatus":
    """The line of Postgres, which is not well while its tables are not those of this code."""
    from dataclasses import replace

    from sqlalchemy.exc import DBAPIError

    from resources.database import Database

    if postgres.state not in {"running", "external"}:
        return postgres
    try:
        found, needed = Database(configuration.database_url).revisions()
    except DBAPIError as error:
        return replace(postgres, state="degraded", detail=f"{str(error.orig).strip().splitlines()[0]}: `seechange up`")
    if found == needed:
        return postgres
    remedy = "install the code that wrote it" if found and needed and found > needed else "`seechange up`"
    told = f"database revision {found or '(none)'}, code needs {needed}: {remedy}"
    return replace(postgres, state="degraded", detail=told)


def workers(
    number: Annotated[int | None, typer.Argument(min=1, help="Default: SEECHANGE_WORKERS, or the cores.")] = None,
) -> None:
    """Run warm workers in the foreground, for a scheduler to look after; the queue is SEECHANGE_QUEUE_URL's."""
    import os

    from resources.services import dagster_ui
    from resources.services.workers import GLIBC, command
    from resources.settings import available_cores

    configuration = settings()
    count = number or configuration.workers or available_cores()
    configuration = configuration.model_copy(update={"workers": count})
    dagster_ui.ensure_home(configuration)
    arguments = command(configuration, f"pid-{os.getpid()}")  # the pid stays through exec
    os.execve(arguments[0], arguments, {**GLIBC, **os.environ, **dagster_ui.environment(configuration)})  # noqa: S606 (no shell)


def _show(statuses: "list[ServiceStatus]", as_json: bool) -> None:
    rows = [service.as_dict() for service in statuses]
    if as_json:
        print_json(rows)
    else:
        print_table(rows)
