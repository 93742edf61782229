"""What the commands share: options, output for people and for machines, a sign of life while they work."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from seechange_assets.names import checked_night

NIGHT_HELP = "Night, by the date on which it begins (YYYY-MM-DD)."


def _night_or_none(text: str | None) -> str | None:
    return None if text is None else checked_night(text)


NightOption = Annotated[str | None, typer.Option("--night", callback=_night_or_none, help=NIGHT_HELP)]
NightArgument = Annotated[str, typer.Argument(callback=checked_night, help=NIGHT_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def settings():  # noqa: ANN201 (resources.settings.Settings, imported when a command runs)
    """The settings of this process, from the environment."""
    from resources.settings import Settings

    return Settings.from_environment()


def print_json(data: Any) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(data, indent=1, default=str))


def print_table(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> None:
    """Print mappings with the same keys as a table on stdout; None is shown as nothing."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(markup=False, emoji=False).print(table)  # foreign text may hold [/brackets]


@contextmanager
def busy(message: str) -> Iterator[None]:
    """Show a spinner with `message` on stderr while the body runs, if a person is watching."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(message):
        yield


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[str, float], None]]:
    """A progress bar on stderr, if a person is watching; call the value with (what, fraction)."""
    if not sys.stderr.isatty():
        yield lambda _what, _fraction: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda what, fraction: progress.update(task, completed=fraction, description=f"{title}: {what}")
