"""`seechange objects` and `lightcurve`."""

from typing import Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, print_json, print_table, settings


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(objects)
    app.command()(lightcurve)


def objects(
    ra: Annotated[float, typer.Option(min=0, max=360, help="Centre, ICRS [deg].")],
    dec: Annotated[float, typer.Option(min=-90, max=90, help="Centre, ICRS [deg].")],
    radius: Annotated[float, typer.Option(min=0.001, max=36000, help="Radius [arcsec].")] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Objects in a cone, nearest first."""
    from seechange_assets.cli.session import open_session
    from sql.objects import objects_in_cone

    with open_session(settings()).store.database.session() as session:
        found = objects_in_cone(session, ra, dec, radius)
    rows = [dict(zip(found.colnames, row.as_void().item(), strict=True)) for row in found]
    _show(rows, as_json, f"no object within {radius:g} arcsec of {ra:g} {dec:+g}")


def lightcurve(name: Annotated[str, typer.Argument(help="Name of an object.")], as_json: JsonOption = False) -> None:
    """Detections and forced photometry of an object in order of time [nJy]."""
    from seechange_assets.cli.session import open_session
    from sql.objects import light_curve

    with open_session(settings()).store.database.session() as session:
        rows = light_curve(session, name)
    _show(rows, as_json, f"{name} has no photometry")


def _show(rows: list[dict[str, Any]], as_json: bool, empty: str) -> None:
    if as_json:
        print_json(rows)
    elif rows:
        print_table([{k: round(v, 7) if isinstance(v, float) else v for k, v in row.items()} for row in rows])
    else:
        typer.echo(empty)
