"""`seechange report`: the report of a night as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from seechange_assets.cli.common import JsonOption, NightArgument, busy, print_json, settings


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(report)


def report(
    night: NightArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; <night>.html by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a page with the steps, seeing, depth, scatter and alerts of a night, and why a CCD is missing."""
    from seechange_assets.assess.night_report import headline, render, write
    from seechange_assets.cli.session import open_session

    session = open_session(settings())
    with busy("reading the night"):
        numbers = session.definitions.resources["nights"].numbers(night)
    path = write(render(numbers), output or Path(f"{numbers.night}.html"))
    if as_json:
        print_json({"page": str(path.resolve()), **headline(numbers)})
    else:
        typer.echo(f"written: {path}")
