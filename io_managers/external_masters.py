"""Master calibration frames supplied as files: from the observatory, or made by hand."""

import math
from pathlib import Path

import numpy as np
from sqlalchemy.dialects.postgresql import insert

from io_managers.fits_codec import write_product
from io_managers.rows import inputs, row_columns, summary
from io_managers.store import ProductStore, upsert
from seechange_assets.content import content_hash
from seechange_assets.errors import BadExposure, BadMaster
from seechange_assets.instruments.base import Instrument
from seechange_assets.instruments.headers import open_fits, read_pixels
from seechange_assets.names import checked_name
from seechange_assets.products import Flag, FloatImage, Master
from seechange_assets.provenance import Provenance
from sql.base import deterministic_id
from sql.models import MasterRow, ProvenanceRow

KINDS = ("bias", "dark", "flat", "fringe", "illumination")
FLAT_TYPES = ("", "dome", "twilight", "sky")
#: Responses outside this range are bad pixels.
_GOOD_RESPONSE = (0.1, 10.0)


def external_provenance(kind: str) -> Provenance:
    """The recipe of masters that were not made here."""
    return Provenance(f"external_{kind}", "1", {}, ())


def register_master(
    store: ProductStore,
    instrument: Instrument,
    file: Path,
    *,
    name: str,
    kind: str,
    ccd: str,
    valid_from: float,
    valid_to: float,
    filter_name: str = "",
    flat_type: str = "",
    extension: str | int = 0,
) -> Master:
    """Take a FITS image as the master of one CCD, valid from one date to another.

    Units are those of `Master`. Pixels that are not finite, and responses (flat, illumination) of nearly nothing,
    are flagged. The same file under the same name again changes nothing; another file replaces it.

    Parameters
    ----------
    store, instrument : where the master goes, and for which camera.
    file : a FITS file with the trimmed CCD in `extension`.
    name : of the master, an allowed name; one per file.
    kind : ``bias``, ``dark``, ``flat``, ``fringe`` or ``illumination``.
    valid_from, valid_to : MJD.
    filter_name : needed for flat, fringe and illumination.
    flat_type : ``dome``, ``twilight``, ``sky`` or empty.

    Raises
    ------
    BadMaster
        The file or the description cannot be used; nothing is written.
    """
    by_filter = kind in ("flat", "fringe", "illumination")
    _check(kind in KINDS, f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    _check(ccd in instrument.ccds, f"{instrument.name} has no CCD {ccd!r}")
    known = ", ".join(instrument.filters)
    _check(not by_filter or filter_name in instrument.filters, f"a {kind} needs a filter, one of {known}")
    _check(flat_type in FLAT_TYPES and (kind == "flat" or not flat_type), f"type {flat_type!r} of a {kind}")
    finite = math.isfinite(valid_from) and math.isfinite(valid_to)
    _check(finite and valid_from < valid_to, f"validity from {valid_from} to {valid_to} is no range of MJD")
    data = _read(file, extension, instrument.ccd_shape)
    bad = ~np.isfinite(data)
    if kind in ("flat", "illumination"):
        with np.errstate(invalid="ignore"):
            bad |= ~((data > _GOOD_RESPONSE[0]) & (data < _GOOD_RESPONSE[1]))
    _check(not bad.all(), f"{file} holds no usable pixel")
    data[~np.isfinite(data)] = 1.0 if kind in ("flat", "illumination") else 0.0
    master = Master(
        kind=kind, calibration=checked_name(name, "name of a master"), ccd=ccd, instrument=instrument.name,
        filter=filter_name if by_filter else "", valid_from=valid_from, valid_to=valid_to, data=data,
        flags=np.where(bad, np.uint16(Flag.BAD), np.uint16(0)), members=(), flat_type=flat_type,
        calibration_set="external",
    )  # fmt: skip
    _save(store, master)
    return master


def _save(store: ProductStore, master: Master) -> None:
    provenance = external_provenance(master.kind)
    recipe = {"id": provenance.id, "process": provenance.process, "algorithm_version": "1", "parameters": {}}
    path = (
        f"{master.instrument}/calibration/{master.calibration}/{checked_name(master.ccd, 'ccd')}/"
        f"external_{master.kind}.{provenance.short_id}.fits"
    )
    cards = {"PRODUCT": f"master_{master.kind}", "PARTITN": master.calibration, "CCD": master.ccd}
    sha256, n_bytes = store.archive.write(path, lambda file: write_product(master, file, cards))
    values = {
        "id": deterministic_id("external", provenance.id, master.calibration, master.ccd),
        "partition": master.calibration, "ccd": master.ccd, "provenance_id": provenance.id, "filepath": path,
        "sha256": sha256, "content_hash": content_hash(master), "n_bytes": n_bytes, "summary": summary(master),
        "inputs": inputs(master),
    }  # fmt: skip
    with store.database.session() as session:
        session.execute(insert(ProvenanceRow).values(**recipe).on_conflict_do_nothing())
        upsert(session, MasterRow, values | row_columns(master))


def _read(file: Path, extension: str | int, shape: tuple[int, int]) -> FloatImage:
    try:
        with open_fits(file) as hdus:
            data = read_pixels(file, hdus, extension)
    except BadExposure as error:
        raise BadMaster(str(error)) from error
    _check(shape in ((0, 0), data.shape), f"{file} has shape {data.shape} (y, x), the trimmed CCD {shape}")
    return data.copy()


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise BadMaster(f"master: {message}")
