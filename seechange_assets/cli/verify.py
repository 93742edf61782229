"""`seechange verify`: compare the archive with the rows."""

import dataclasses

import typer

from seechange_assets.cli.common import JsonOption, print_json, progress_bar, settings


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(verify)


def verify(as_json: JsonOption = False) -> None:
    """Check that every row's file exists with the right hash, and that no file lacks a row.

    Exit code 1 if anything is wrong; every problem is named.
    """
    from io_managers.verify import verify as check
    from seechange_assets.cli.session import open_session

    store = open_session(settings()).store
    with progress_bar("verify") as show:
        n_files, problems = check(
            store.database, store.archive, lambda done, total: show(f"{done}/{total}", done / total)
        )
    if as_json:
        print_json({"files": n_files, "problems": [dataclasses.asdict(problem) for problem in problems]})
    else:
        for problem in problems:
            typer.echo(f"{problem.kind}: {problem.path}: {problem.detail}", err=True)
        typer.echo(f"{n_files} files checked, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)
