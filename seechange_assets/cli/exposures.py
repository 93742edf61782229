"""`seechange exposures`: how far each exposure is; holding exposures back and letting them go."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, NightOption, print_json, print_table, settings

if TYPE_CHECKING:
    from io_managers.claims import Claims
    from seechange_assets.nights import ExposureState

KeysArgument = Annotated[list[str] | None, typer.Argument(help="Keys of exposures.")]
DEFAULT_LIMIT = 50


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(help="How far each exposure is; hold exposures back and release them.")
    group.callback(invoke_without_command=True)(exposures)
    group.command()(hold)
    group.command()(release)
    app.add_typer(group, name="exposures")


def exposures(
    context: typer.Context,
    night: NightOption = None,
    state: Annotated[
        str | None, typer.Option(help="Only these: ready, held, claimed, running, waiting, failed or done.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"At most so many, the newest; {DEFAULT_LIMIT} where no night is given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show every exposure with the state of its CCDs, and why one failed or waits.

    An exposure is done when all of its CCDs are; one that failed makes it failed. A number behind a state counts CCDs.
    """
    if context.invoked_subcommand is not None:
        return
    from io_managers.exposure_search import exposures_in_state
    from io_managers.nights import exposure_states
    from seechange_assets.errors import ParameterError
    from seechange_assets.nights import STATES
    from seechange_assets.parameters import unknown_name

    if state is not None and state not in STATES:
        raise ParameterError(unknown_name(state, list(STATES), "--state"))
    store = _session().ledger
    limit = limit or (None if night else DEFAULT_LIMIT)
    with store.database.session() as session:
        chosen = (session, store.recipes, store.instrument)
        if state is None:
            shown = exposure_states(*chosen, night=night, limit=limit)
        else:
            shown = exposures_in_state(*chosen, state, night=night, limit=limit)
    if as_json:
        print_json([_told(one) for one in shown])
    elif not shown:
        typer.echo("no exposures")
    else:
        print_table([_row(one) for one in shown])
        _print_problems(shown)


def hold(
    keys: KeysArgument = None,
    night: NightOption = None,
    reason: Annotated[str, typer.Option(help="Why, for others to read.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Hold exposures back: nothing more is requested for them. What is claimed already goes on."""
    claims = _claims()
    n_held = claims.hold(_keys(claims, keys, night), reason)
    print_json({"held": n_held}) if as_json else typer.echo(f"{n_held} exposures held")


def release(keys: KeysArgument = None, night: NightOption = None, as_json: JsonOption = False) -> None:
    """Let held exposures go; the sensor requests them at its next look."""
    claims = _claims()
    n_released = claims.release(_keys(claims, keys, night))
    print_json({"released": n_released}) if as_json else typer.echo(f"{n_released} exposures released")


def _keys(claims: "Claims", keys: list[str] | None, night: str | None) -> list[str]:
    from seechange_assets.errors import ParameterError

    if bool(keys) == bool(night):
        raise ParameterError("name exposures, or a night by --night")
    return keys or claims.keys_of_night(str(night))


def _row(one: "ExposureState") -> dict[str, Any]:
    counts = ", ".join(f"{state} {count}" for state, count in one.counts.items())
    state = one.state if one.held is None or one.state == "held" else f"{one.state} (held)"
    return {"exposure": one.exposure, "night": one.night, "state": state, "CCDs": counts, "hold": one.held}


def _told(one: "ExposureState") -> dict[str, Any]:
    own = asdict(one)
    return {**own, "state": one.state, "counts": dict(one.counts)}


def _print_problems(shown: "list[ExposureState]") -> None:
    rows = [
        {"exposure": one.exposure, "CCD": ccd.ccd, "state": ccd.state, "step": ccd.step, "reason": ccd.reason}
        for one in shown
        for ccd in one.problems
        if ccd.state == "failed"
    ]
    if rows:
        print_table(rows, title="failed CCDs")
        typer.echo("`seechange backfill --failed` tries them again")


def _claims() -> "Claims":
    from io_managers.claims import Claims

    store = _session().ledger
    return Claims(store.database, store.instrument)


def _session() -> Any:
    from seechange_assets.cli.session import open_session

    return open_session(settings())
