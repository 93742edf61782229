"""`seechange db`: migrations of the survey database."""

import typer

from seechange_assets.cli.common import JsonOption, print_json, settings


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(no_args_is_help=True, help="Migrations of the survey database.")
    group.command()(upgrade)
    group.command()(current)
    app.add_typer(group, name="db")


def upgrade(as_json: JsonOption = False) -> None:
    """Bring the database to the newest revision."""
    from resources.database import Database

    database = Database(settings().database_url)
    database.upgrade()
    _show(database, as_json)


def current(as_json: JsonOption = False) -> None:
    """Show the revision of the database; exit code 1 if the code has a newer one."""
    from resources.database import Database

    found, newest = _show(Database(settings().database_url), as_json)
    if found != newest:
        raise typer.Exit(1)


def _show(database: object, as_json: bool) -> tuple[str | None, str | None]:
    found, newest = database.revisions()  # type: ignore[attr-defined]
    if as_json:
        print_json({"current": found, "newest": newest})
    else:
        typer.echo(
            f"revision {found}" + ("" if found == newest else f"; the code needs {newest}: run `seechange db upgrade`")
        )
    return found, newest
