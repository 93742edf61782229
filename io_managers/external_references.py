"""References supplied as files: coadds of other surveys, or made by hand."""

import math
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from io_managers.fits_codec import write_product
from io_managers.reference_sets import EXTERNAL as PROVENANCE
from io_managers.rows import inputs, row_columns, summary
from io_managers.store import upsert
from seechange_assets.content import content_hash
from seechange_assets.errors import ReferenceUnusable
from seechange_assets.instruments.base import Instrument
from seechange_assets.names import checked_name
from seechange_assets.partitions import Partition
from seechange_assets.products import Reference
from sql.base import deterministic_id
from sql.models import ProvenanceRow, ReferenceRow

if TYPE_CHECKING:
    from io_managers.references import ReferenceStore


def register_reference(store: "ReferenceStore", instrument: Instrument, reference: Reference) -> tuple[str, Partition]:
    """Take a calibrated image from outside as the reference of its field, filter and CCD.

    It is used like one that was made here, by depth, in the set of its name. The same pixels again change nothing;
    others become a further reference beside the first.

    Parameters
    ----------
    store, instrument : where the reference goes, and for which camera.
    reference : with its own sources, PSF, WCS and zero point; `Reference.info` says field, filter and CCD.

    Returns
    -------
    (row id, partition)

    Raises
    ------
    ReferenceUnusable
        The description does not fit the camera, or the depth is not known; nothing is written.
    InvalidName
        A name that is not allowed.
    """
    info = reference.info
    check_place(instrument, info.filter, info.ccd)
    _check(math.isfinite(reference.zp.limiting_magnitude), "its depth is not known: calibrate it with a star catalogue")
    place = Partition(checked_name(f"{info.field}.{info.filter}", "field.filter"), checked_name(info.ccd, "ccd"))
    checked_name(reference.name, "name of a reference set")
    partition = _known(store, reference, place) or store.next_reference_partition(place, PROVENANCE.id)
    row_id = deterministic_id("reference", PROVENANCE.id, partition.key, partition.ccd)
    path = (
        f"{info.instrument}/references/{partition.key}/{partition.ccd}/{PROVENANCE.process}.{PROVENANCE.short_id}.fits"
    )
    cards = {"PRODUCT": "reference", "PARTITN": partition.key, "CCD": partition.ccd, "PROVENAN": PROVENANCE.id}
    columns = row_columns(reference)  # first: what cannot have a row gets no file
    sha256, n_bytes = store.archive.write(path, lambda file: write_product(reference, file, cards))
    recipe = {"id": PROVENANCE.id, "process": PROVENANCE.process, "algorithm_version": "1", "parameters": {}}
    values = {
        "id": row_id, "partition": partition.key, "ccd": partition.ccd, "provenance_id": PROVENANCE.id,
        "filepath": path, "sha256": sha256, "content_hash": content_hash(reference), "n_bytes": n_bytes,
        "summary": summary(reference), "inputs": inputs(reference),
    }  # fmt: skip
    with store.database.session() as session:
        session.execute(insert(ProvenanceRow).values(**recipe).on_conflict_do_nothing())
        upsert(session, ReferenceRow, values | columns)
    return str(row_id), partition


def check_place(instrument: Instrument, filter_name: str, ccd: str) -> None:
    """Refuse a filter or CCD that the camera does not have.

    Raises
    ------
    ReferenceUnusable
    """
    _check(ccd in instrument.ccds, f"{instrument.name} has no CCD {ccd!r}")
    known = ", ".join(instrument.filters)
    _check(
        filter_name in instrument.filters, f"{instrument.name} has no filter {filter_name!r}: expected one of {known}"
    )


def _known(store: "ReferenceStore", reference: Reference, place: Partition) -> Partition | None:
    """Where the same pixels are registered already."""
    query = sa.select(ReferenceRow.partition).where(
        ReferenceRow.provenance_id == PROVENANCE.id,
        ReferenceRow.instrument == reference.info.instrument,
        ReferenceRow.field == reference.info.field,
        ReferenceRow.filter == reference.info.filter,
        ReferenceRow.ccd == place.ccd,
        ReferenceRow.content_hash == content_hash(reference),
    )
    with store.database.session() as session:
        key = session.scalar(query)
    return None if key is None else Partition(key, place.ccd)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ReferenceUnusable(f"reference: {message}")
