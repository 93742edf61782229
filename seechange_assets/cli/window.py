"""`seechange retire` and `activate`: which nights Dagster holds partitions of."""

from dataclasses import asdict
from typing import Annotated

import typer

from seechange_assets.cli.common import JsonOption, busy, print_json, settings


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(retire)
    app.command()(activate)


def retire(
    before: Annotated[str | None, typer.Option(help="Nights before this one (YYYY-MM-DD).")] = None,
    older_than: Annotated[
        int | None, typer.Option(min=1, help="All but so many of the newest nights with exposures.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take old nights out of Dagster and forget their runs and events. Products, rows and reports stay.

    Exposures with unfinished runs or an unfinished backfill stay too; nights that were activated go as well. Where no
    run is at work, disk space is given back.
    """
    from seechange_assets.cli.session import open_session
    from seechange_assets.errors import ParameterError
    from seechange_assets.names import checked_night
    from sensors import window

    if (before is None) == (older_than is None):
        raise ParameterError("say which nights: --before NIGHT, or --older-than N")
    session = open_session(settings())
    database, instrument = session.store.database, session.store.instrument
    limit = checked_night(before) if before else window.first_night_kept(database, instrument, older_than or 1)
    if dry_run:
        found = window.to_retire(session.instance, database, instrument, limit)
        plan = {night: len(keys) for night, keys in found.items()}
        print_json(plan) if as_json else typer.echo(
            "\n".join(f"{night}: {n} exposures" for night, n in plan.items()) or "nothing to retire"
        )
        return
    with busy("retiring"):
        done = window.retire(session.instance, database, instrument, before=limit, compact=True)
    if as_json:
        print_json(asdict(done))
        return
    typer.echo(f"{done.n_exposures} exposures of {len(done.nights)} nights retired")
    typer.echo(f"{done.n_left} left with unfinished runs or backfills")
    typer.echo(f"{done.n_runs} runs and {done.n_events} events forgotten")
    typer.echo(f"Dagster's database: {done.bytes_before / 1e6:.1f} MB before, {done.bytes_after / 1e6:.1f} MB now")


def activate(
    nights: Annotated[list[str], typer.Argument(help="Nights (YYYY-MM-DD).")], as_json: JsonOption = False
) -> None:
    """Bring nights back into Dagster, with the status they had, for a look or for reprocessing.

    They stay until `seechange retire` takes them: the nightly one leaves them.
    """
    from seechange_assets.cli.session import open_session
    from seechange_assets.names import checked_night
    from sensors import window

    session = open_session(settings())
    store = session.store
    chosen = [checked_night(night) for night in nights]
    with busy("activating"):
        n_back = window.activate(session.instance, store.database, store.recipes, store.instrument, chosen)
    print_json({"exposures": n_back}) if as_json else typer.echo(f"{n_back} exposures are back")
