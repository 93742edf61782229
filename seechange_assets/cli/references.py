"""`seechange reference`: the references there are, and registering one from outside."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seechange_assets.cli.common import JsonOption, busy, print_json, print_table, settings

if TYPE_CHECKING:
    from seechange_assets.instruments.base import RawCcd
    from seechange_assets.products import CalibratedImage


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(no_args_is_help=True, help="References to subtract: list them, register one from a file.")
    group.command("register")(register_file)
    group.command("list")(list_references)
    app.add_typer(group, name="reference")


def register_file(
    file: Annotated[Path, typer.Argument(help="FITS image without the marks of the camera, with a WCS.")],
    field: Annotated[str, typer.Option(help="Field it belongs to.")],
    filter_name: Annotated[str, typer.Option("--filter", help="Filter of the camera it stands for.")],
    ccd: Annotated[str, typer.Option(help="CCD it is registered under.")],
    catalog: Annotated[str | None, typer.Option(help="Star catalogue; by default that of the survey.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Mask image, not zero where bad.")] = None,
    weight: Annotated[Path | None, typer.Option(help="Inverse-variance image.")] = None,
    extension: Annotated[str | None, typer.Option(help="Extension of the image, by name or number.")] = None,
    name: Annotated[str | None, typer.Option("--set", help="Reference set; by default that of the recipe.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Register a FITS image as a reference, with background, sources, PSF, WCS and zero point of its own.

    The same pixels again change nothing; others are kept beside them, and the deepest is used.
    """
    from io_managers.external_references import check_place, register_reference
    from seechange_assets.cli.session import open_session
    from seechange_assets.instruments.base import get_instrument
    from seechange_assets.instruments.generic import read_image
    from seechange_assets.science.subtract_pair import as_reference

    session = open_session(settings())
    store, instrument = session.store, get_instrument(session.settings.instrument)
    check_place(instrument, filter_name, ccd)
    place = {"instrument": instrument.name, "field": field, "filter": filter_name, "ccd": ccd}
    number = int(extension) if extension is not None and extension.isdigit() else extension
    with busy("calibrating"):
        raw = read_image(file, mask=mask, weight=weight, extension=number, overrides=place)
        calibrated = _calibrated(raw, catalog or session.settings.catalog, instrument)
        set_name = name or store.recipes.parameters("reference").name
        reference = as_reference(calibrated, raw.variance, set_name)
        row_id, partition = register_reference(store, instrument, reference)
    answer = {
        "id": row_id, "partition": partition.key, "ccd": partition.ccd, "set": set_name,
        "fwhm_px": reference.psf.fwhm_px,
        "zp": reference.zp.zp, "limiting_magnitude": reference.zp.limiting_magnitude,
    }  # fmt: skip
    if as_json:
        print_json(answer)
    else:
        print_table([answer])


def list_references(as_json: JsonOption = False) -> None:
    """Every reference: set, place, depth and images in it; ``used`` is what the current recipe chooses from."""
    import sqlalchemy as sa

    from io_managers.references import in_current_set
    from seechange_assets.cli.session import open_session
    from sql.models import ReferenceRow

    store = open_session(settings()).store
    query = sa.select(ReferenceRow, in_current_set(store.recipes).label("of_set"))
    query = query.where(ReferenceRow.instrument == store.instrument)
    with store.database.session() as session:
        found = session.execute(query.order_by(ReferenceRow.partition, ReferenceRow.ccd, ReferenceRow.created_at)).all()
    rows = [
        {
            "partition": row.partition, "ccd": row.ccd, "set": row.name, "provenance": row.provenance_id,
            "limiting_magnitude": round(row.limiting_magnitude, 3), "fwhm_px": round(row.fwhm_px, 3),
            "n_members": len(row.members), "used": bool(of_set and row.bitflag == 0), "id": str(row.id),
        }
        for row, of_set in found
    ]  # fmt: skip
    if as_json:
        print_json(rows)
    else:
        print_table(rows, title="references")


def _calibrated(raw: "RawCcd", location: str | None, instrument: Any) -> "CalibratedImage":
    """The image with everything measured on it, against the stars of a catalogue."""
    from resources.sky_catalog import open_sky_catalog
    from seechange_assets.errors import CatalogError
    from seechange_assets.science.astrometry import catalog_cone
    from seechange_assets.science.subtract_pair import calibrate

    if location is None:
        raise CatalogError("no star catalogue for the zero point: give --catalog or set SEECHANGE_CATALOG")
    catalog = open_sky_catalog(location).cone(*catalog_cone(raw.info, raw.data.shape, 60.0))
    return calibrate(raw, catalog, gaia_magnitude=instrument.gaia_magnitude)
