"""`seechange ingest`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, print_json, progress_bar, settings


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(ingest)


def ingest(files: Annotated[list[Path], typer.Argument(help="Raw files.")], as_json: JsonOption = False) -> None:
    """Register exposures. The same file twice is no error and changes nothing.

    Every file is tried; the exit code is 1 if any was refused.
    """
    from seechange_assets.cli.session import open_session

    session = open_session(settings())
    results = []
    with progress_bar("ingest") as show:
        for number, file in enumerate(files):
            show(file.name, number / len(files))
            results.append(_register(session, file))
    session.announce([result["exposure"] for result in results if result["exposure"]])
    if as_json:
        print_json(results)
    for result in results:
        line = result["error"] or f"{result['exposure']}: {'registered' if result['new'] else 'known already'}"
        if result["error"] or not as_json:
            typer.echo(line, err=bool(result["error"]))
    if any(result["error"] for result in results):
        raise typer.Exit(1)


def _register(session: Any, file: Path) -> dict[str, Any]:
    """Outcome of one file; its refusal does not stop the others."""
    from seechange_assets.errors import DataError

    try:
        registration = session.registry.register(file)
    except DataError as error:
        return {"file": str(file), "exposure": None, "new": False, "error": f"{type(error).__name__}: {error}"}
    return {"file": str(file), "exposure": registration.info.key, "new": registration.is_new, "error": None}
