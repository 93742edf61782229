"""Entry point of the `seechange` command.

To add a command, write ``seechange_assets/cli/<module>.py`` with ``register(app)`` and list it in `MODULES`. Import
anything heavy (dagster, sqlalchemy, astropy, ...) inside the command: ``--help`` must answer at once.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from seechange_assets.errors import SeeChangeError

#: In the order in which ``--help`` lists their commands.
MODULES = (
    "services",
    "metrics",
    "simulate",
    "ingest",
    "exposures",
    "process",
    "images",
    "references",
    "masters",
    "parameters",
    "staleness",
    "provenance",
    "objects",
    "alerts",
    "verify",
    "window",
    "flag",
    "delete",
    "compare",
    "report",
    "database",
)
EXPECTED_ERROR, UNEXPECTED_ERROR = 1, 2
#: Click's base of what is wrong with a command line; typer brings a click of its own and shows only its ends.
_CommandLineError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors become one line on stderr and exit code 1 (expected) or 2 (usage, not expected)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given  # accepted anywhere, also after the command
    try:
        wanted = [argument for argument in given if argument != "--debug"]
        # Not standalone, which would print a usage error as several lines.
        code = build_app()(args=wanted, prog_name="seechange", standalone_mode=False)
    except typer.Abort:
        _fail("aborted", EXPECTED_ERROR)
    except _CommandLineError as error:
        _fail_usage(error)
    except SeeChangeError as error:
        if debug:
            raise
        _fail(str(error), EXPECTED_ERROR)
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error} (--debug shows where)", UNEXPECTED_ERROR)
    raise SystemExit(code if isinstance(code, int) else 0)


class _WholeSentences(TyperGroup):
    """Lists each command with its first sentence; click itself would cut them off at a line's end."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The section Commands of the help."""
        for command in self.commands.values():
            command.short_help = command.short_help or " ".join((command.help or "").split()).split(". ")[0].rstrip(".")
        super().format_commands(ctx, formatter)


def build_app() -> typer.Typer:
    """The command with everything that is registered."""
    app = typer.Typer(
        cls=_WholeSentences,
        callback=_common,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # [deg] is a unit, no style
        help=_HELP,
    )
    for module in MODULES:
        importlib.import_module(f"seechange_assets.cli.{module}").register(app)
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


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("seechange-dagster")
    except PackageNotFoundError:
        return "(not installed)"


def _fail_usage(error: Any) -> NoReturn:
    """What is wrong with the command line, and where its help is; a group without a command prints its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        raise SystemExit(error.exit_code)
    where = getattr(error, "ctx", None)
    told = f"; see `{where.command_path} --help`" if where is not None else ""
    _fail(f"{error.format_message().rstrip('.')}{told}", error.exit_code)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"seechange: {' '.join(message.split())}", err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
