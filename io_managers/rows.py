"""Which columns each product fills in its table; the same numbers are Dagster's metadata."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from seechange_assets import products as p
from seechange_assets.products import plain
from sql.sky import healpix_of, polygon_of

Columns = dict[str, Any]


def _image_columns(info: p.ImageInfo) -> Columns:
    names = ("instrument", "field", "filter", "project", "target", "mjd", "exptime_s", "airmass")
    return {name: getattr(info, name) for name in names}


def _footprint(header: str, shape: tuple[int, int]) -> Columns:
    """Centre, corners and HEALPix index of an image with this WCS."""
    ra, dec, corners = polygon_of(p.wcs_from_text(header), shape)
    return {
        "ra_deg": ra,
        "dec_deg": dec,
        "corners": {"ra": corners[0], "dec": corners[1]},
        "healpix": healpix_of(ra, dec),
    }


def _master(m: p.Master) -> Columns:
    names = ("kind", "instrument", "filter", "valid_from", "valid_to", "flat_type", "calibration_set")
    return {name: getattr(m, name) for name in names}


def _sources(s: p.Sources) -> Columns:
    return {"n_sources": len(s.table), "n_stars": int(np.sum(s.table["is_star"])), "fwhm_px": s.fwhm_px}


def _wcs(w: p.Wcs) -> Columns:
    header = p.header_from_text(w.header)
    numbers = {name: getattr(w, name) for name in ("n_matched", "residual_ra_mas", "residual_dec_mas")}
    return numbers | _footprint(w.header, (header["NAXIS2"], header["NAXIS1"]))


def _reference(r: p.Reference) -> Columns:
    return {
        "name": r.name,
        "instrument": r.info.instrument,
        "field": r.info.field,
        "filter": r.info.filter,
        "limiting_magnitude": r.zp.limiting_magnitude,
        "fwhm_px": r.psf.fwhm_px,
        "members": list(r.members),
    } | _footprint(r.wcs.header, r.data.shape)


def _difference(d: p.Difference) -> Columns:
    return {
        "reference_id": d.reference_id,
        "method": d.method,
        "mjd": d.info.mjd,
        "filter": d.info.filter,
        "limiting_magnitude": d.limiting_magnitude,
    } | _footprint(d.wcs.header, d.data.shape)


def _pick(*names: str) -> Callable[[Any], Columns]:
    return lambda product: {name: getattr(product, name) for name in names}


_COLUMNS: dict[type, Callable[[Any], Columns]] = {
    p.Master: _master,
    p.Image: lambda i: _image_columns(i.info),
    p.Background: _pick("level", "rms"),
    p.Sources: _sources,
    p.Psf: _pick("fwhm_px", "n_stars", "form", "chi2"),
    p.Wcs: _wcs,
    p.ZeroPoint: _pick("zp", "zp_err", "scatter", "n_stars", "limiting_magnitude"),
    p.Reference: _reference,
    p.Difference: _difference,
    p.Detections: lambda d: {"n_detections": len(d.table)},
    p.Cutouts: lambda c: {"n_cutouts": len(c.sub)},
    p.Measurements: lambda m: {"n_measurements": len(m.table), "n_good": int(np.sum(~m.table["is_bad"]))},
    p.Scores: lambda s: {"algorithm": s.algorithm, "n_real": int(np.sum(s.table["is_real"]))},
    p.Associations: lambda a: {"n_associated": len(a.table), "n_new_objects": int(np.sum(a.table["is_new"]))},
    p.ForcedPhotometry: lambda f: {"n_objects": len(f.table)},
    p.Alerts: lambda a: {"n_alerts": len(a.table)},
}


def row_columns(product: Any) -> Columns:
    """Values of the columns that the table of this product has beside the common ones."""
    return {name: _sql_value(value) for name, value in _COLUMNS[type(product)](product).items()}


def summary(product: Any) -> dict[str, Any]:
    """The scalar fields of a product, ready for JSON: what its page shows."""
    values = {
        item.name: getattr(product, item.name)
        for item in dataclasses.fields(product)
        if isinstance(getattr(product, item.name), (int, float, str, np.generic))
        and len(str(getattr(product, item.name))) < 80
    }
    return plain(values)


def inputs(product: Any) -> dict[str, Any]:
    """What the data decided: masters, reference, catalogue excerpt, members, kind of field."""
    names = ("masters", "steps", "reference_id", "catalog", "members", "field_kind")
    found = {name: getattr(product, name) for name in names if hasattr(product, name)}
    if isinstance(product, p.Reference):
        found["catalog"] = product.wcs.catalog
    return plain(found)


def _sql_value(value: Any) -> Any:
    return value if isinstance(value, (dict, list)) else plain(value)
