"""Entry point of the `seechange` command.

To add a command, write ``seechange_assets/cli/<module>.py`` with ``register(app)`` and list it in `MODULES`. Import
anything heavy (dagster, sqlalchemy, astropy, ...) inside the command: ``--help`` must answer at once.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from seechange_assets.errors import SeeChangeError

# Module -> the commands it registers. A command nobody registers answers "not yet".
MODULES: dict[str, tuple[str, ...]] = {
    "services": ("up", "down", "status", "workers"),
    "metrics": ("metrics",),
    "simulate": ("simulate",),
    "ingest": ("ingest",),
    "exposures": ("exposures",),
    "process": ("process",),
    "images": ("subtract", "calibrate"),
    "references": ("reference",),
    "parameters": ("parameters",),
    "staleness": ("stale", "backfill"),
    "provenance": ("provenance",),
    "objects": ("objects", "lightcurve"),
    "alerts": ("alerts",),
    "verify": ("verify",),
    "window": ("retire", "activate"),
    "flag": ("flag",),
    "delete": ("delete",),
    "compare": ("compare",),
    "report": ("report",),
    "database": ("db",),
}
EXPECTED_ERROR, UNEXPECTED_ERROR = 1, 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors become one line on stderr and exit code 1 (expected) or 2 (not expected)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given  # accepted anywhere, also after the command
    try:
        build_app()(args=[argument for argument in given if argument != "--debug"], prog_name="seechange")
    except SeeChangeError as error:
        if debug:
            raise
        _fail(str(error), EXPECTED_ERROR)
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error} (--debug shows where)", UNEXPECTED_ERROR)


def build_app() -> typer.Typer:
    """The command with everything that is registered."""
    app = typer.Typer(
        callback=_common, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=_HELP
    )
    for module, names in MODULES.items():
        full_name = f"seechange_assets.cli.{module}"
        if importlib.util.find_spec(full_name) is not None:
            importlib.import_module(full_name).register(app)
        for name in names:
            if name not in _registered(app):
                _register_placeholder(app, name)
    return app


_HELP = "Raw exposures of a sky survey to transient alerts, every product with the recipe that made it."


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"seechange {_version()}")
        raise typer.Exit


def _common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""


def _registered(app: typer.Typer) -> set[str | None]:
    commands = {command.name or (command.callback and command.callback.__name__) for command in app.registered_commands}
    return commands | {group.name for group in app.registered_groups}


def _register_placeholder(app: typer.Typer, name: str) -> None:
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}

    @app.command(name, help="Not yet.", context_settings=anything)
    def not_yet() -> None:
        _fail(f"not yet: `{name}` is planned but not written", UNEXPECTED_ERROR)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("seechange-dagster")
    except PackageNotFoundError:
        return "(not installed)"


def _fail(message: str, code: int) -> None:
    typer.echo(f"seechange: {' '.join(message.split())}", err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
