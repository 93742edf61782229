"""`seechange master`: the master calibration frames there are, and registering one from a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, print_json, print_table, settings

if TYPE_CHECKING:
    from seechange_assets.products import Master

DATE_HELP = "MJD, or a date (YYYY-MM-DD, 0 h UTC)."


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(no_args_is_help=True, help="Master calibration frames: list them, register one from a file.")
    group.command("register")(register_file)
    group.command("list")(list_masters)
    app.add_typer(group, name="master")


def register_file(
    file: Annotated[Path, typer.Argument(help="FITS file with the trimmed CCD.")],
    name: Annotated[str, typer.Option(help="Name of the master; another file, filter or date needs another one.")],
    kind: Annotated[str, typer.Option(help="bias, dark, flat, fringe or illumination.")],
    ccd: Annotated[str, typer.Option(help="CCD it is for.")],
    valid_from: Annotated[str, typer.Option(help=f"First date it is valid at: {DATE_HELP}")],
    valid_to: Annotated[str, typer.Option(help=f"Last date it is valid at: {DATE_HELP}")],
    filter_name: Annotated[str, typer.Option("--filter", help="Filter; for flat, fringe and illumination.")] = "",
    flat_type: Annotated[str, typer.Option(help="Of a flat: dome, twilight or sky.")] = "",
    extension: Annotated[str, typer.Option(help="Extension of the image, by name or number.")] = "0",
    as_json: JsonOption = False,
) -> None:
    """Register a FITS image as the master of one CCD. Images that wait for it go on by themselves.

    Bias in ADU, dark in ADU/s, flat and illumination with median 1, fringe as a fraction of the sky. The same file
    again changes nothing; another one under the same name and CCD replaces the first. Where masters that were made
    here are valid too, say which to take: image: {master_set: external}.
    """
    from io_managers.external_masters import register_master
    from seechange_assets.cli.session import open_session
    from seechange_assets.instruments.base import get_instrument

    session = open_session(settings())
    master = register_master(
        session.store, get_instrument(session.settings.instrument), file, name=name, kind=kind, ccd=ccd,
        valid_from=_mjd(valid_from), valid_to=_mjd(valid_to), filter_name=filter_name, flat_type=flat_type,
        extension=int(extension) if extension.isdigit() else extension,
    )  # fmt: skip
    answer = _told(master)
    if as_json:
        print_json(answer)
    else:
        print_table([answer])


def list_masters(
    kind: Annotated[str | None, typer.Option(help="Only bias, dark, flat, fringe or illumination.")] = None,
    ccd: Annotated[str | None, typer.Option(help="Only of this CCD.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Every master: night or name, CCD, filter and dates [MJD]; ``used`` is what the current recipe chooses from."""
    import sqlalchemy as sa

    from io_managers.external_masters import KINDS, external_provenance
    from seechange_assets.cli.session import open_session
    from seechange_assets.errors import ParameterError
    from seechange_assets.parameters import unknown_name
    from sql.models import MasterRow

    if kind is not None and kind not in KINDS:
        raise ParameterError(unknown_name(kind, list(KINDS), "--kind"))
    ledger = open_session(settings()).ledger
    current = {external_provenance(one).id for one in KINDS}
    current |= {recipe.id for process, recipe in ledger.recipes.items() if process.startswith("master_")}
    query = sa.select(MasterRow).where(MasterRow.instrument == ledger.instrument)
    if kind is not None:
        query = query.where(MasterRow.kind == kind)
    if ccd is not None:
        query = query.where(MasterRow.ccd == ccd)
    with ledger.database.session() as session:
        found = session.scalars(query.order_by(MasterRow.kind, MasterRow.ccd, MasterRow.valid_from)).all()
    rows = [
        {
            "name": row.partition, "kind": row.kind, "ccd": row.ccd, "filter": row.filter, "flat_type": row.flat_type,
            "set": row.calibration_set, "valid_from": row.valid_from, "valid_to": row.valid_to,
            "used": row.provenance_id in current and row.bitflag == 0, "provenance": row.provenance_id,
        }
        for row in found
    ]  # fmt: skip
    if as_json:
        print_json(rows)
    else:
        print_table(rows, title="masters")


def _told(master: "Master") -> dict[str, Any]:
    return {
        "name": master.calibration, "kind": master.kind, "ccd": master.ccd, "filter": master.filter,
        "flat_type": master.flat_type, "set": master.calibration_set, "valid_from": master.valid_from,
        "valid_to": master.valid_to, "bad_pixels": int((master.flags != 0).sum()),
    }  # fmt: skip


def _mjd(text: str) -> float:
    """A number as it is, a date as the MJD of its 0 h UTC.

    Raises
    ------
    ParameterError
        It is neither.
    """
    from datetime import date

    from seechange_assets.errors import ParameterError
    from seechange_assets.instruments.headers import MJD_ZERO

    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float((date.fromisoformat(text) - MJD_ZERO.date()).days)
    except ValueError:
        raise ParameterError(f"{text!r:.40} is no date: expected an MJD or YYYY-MM-DD") from None
