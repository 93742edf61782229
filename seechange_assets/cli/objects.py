"""`seechange objects` (cone search, split, merge, history) and `lightcurve`."""

from typing import Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, print_json, print_table, settings


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    commands = typer.Typer(invoke_without_command=True, help=objects.__doc__)
    commands.callback()(objects)
    commands.command()(merge)
    commands.command()(split)
    commands.command()(history)
    app.add_typer(commands, name="objects")
    app.command()(lightcurve)


ReasonOption = Annotated[str, typer.Option(help="Why, for the record.")]


def objects(
    context: typer.Context,
    ra: Annotated[float | None, typer.Option(min=0, max=360, help="Centre, ICRS [deg].")] = None,
    dec: Annotated[float | None, typer.Option(min=-90, max=90, help="Centre, ICRS [deg].")] = None,
    radius: Annotated[float, typer.Option(min=0.001, max=36000, help="Radius [arcsec].")] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Objects in a cone, nearest first; split and merge them by hand."""
    if context.invoked_subcommand is not None:
        return
    if ra is None or dec is None:
        raise typer.BadParameter("a cone search needs --ra and --dec")
    from sql.objects import objects_in_cone

    with _database().session() as session:
        found = objects_in_cone(session, ra, dec, radius)
    rows = [dict(zip(found.colnames, row.as_void().item(), strict=True)) for row in found]
    _show(rows, as_json, f"no object within {radius:g} arcsec of {ra:g} {dec:+g}")


def merge(
    name: Annotated[str, typer.Argument(help="The object that stays.")],
    other: Annotated[str, typer.Argument(help="The object whose measurements it is given.")],
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make one object of two; the other's name stays known."""
    from seechange_assets.publish.object_changes import merge_objects

    moved = merge_objects(_database(), name, other, reason)
    if as_json:
        print_json({"object": name, "merged": other, "measurements": moved})
    else:
        typer.echo(f"{moved} measurements of {other} belong to {name} now")


def split(
    name: Annotated[str, typer.Argument(help="The object to split.")],
    measurements: Annotated[list[str], typer.Argument(help="Identifiers (diaSourceId) of what is another object.")],
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a new object of some measurements of an object."""
    from seechange_assets.cli.session import open_session
    from seechange_assets.publish.object_changes import split_object

    store = open_session(settings()).store
    name_format = store.recipes.parameters("associations").name_format
    made = split_object(store.database, name, measurements, reason, name_format)
    if as_json:
        print_json({"object": name, "new": made, "measurements": len(measurements)})
    else:
        typer.echo(f"{len(measurements)} measurements of {name} are {made} now")


def history(name: Annotated[str, typer.Argument(help="Name of an object.")], as_json: JsonOption = False) -> None:
    """Merges and splits of an object, oldest first."""
    from seechange_assets.publish.object_changes import changes_of

    _show(changes_of(_database(), name), as_json, f"{name} was neither split nor merged")


def _database():  # noqa: ANN202 (resources.database.Database, imported when a command runs)
    from seechange_assets.cli.session import open_session

    return open_session(settings()).store.database


def lightcurve(
    name: Annotated[str, typer.Argument(help="Name of an object.")],
    tag: Annotated[str, typer.Option(help="Provenance tag; by default the recipes in use.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Detections, forced photometry [nJy] and 5 sigma limits of an object in order of time."""
    from seechange_assets.cli.session import open_session
    from sql.light_curves import LIGHT_CURVE_RECIPES, light_curve

    store = open_session(settings()).store
    store = store.reading(tag) if tag else store
    recipes = {process: store.recipes[process].id for process in LIGHT_CURVE_RECIPES}
    with store.database.session() as session:
        rows = light_curve(session, name, recipes)
    _show(rows, as_json, f"{name} has no photometry")


def _show(rows: list[dict[str, Any]], as_json: bool, empty: str) -> None:
    if as_json:
        print_json(rows)
    elif rows:
        print_table([{k: round(v, 7) if isinstance(v, float) else v for k, v in row.items()} for row in rows])
    else:
        typer.echo(empty)
