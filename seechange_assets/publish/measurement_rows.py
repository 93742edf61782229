"""Measurements as rows of the database."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seechange_assets.products import NJY_ZERO_POINT, ImageInfo, Measurements, Scores, plain

#: Columns of `Measurements` with a database column of the same name.
_COPIED = (
    "x", "y", "x_err", "y_err", "ra", "dec", "ra_err", "dec_err", "ra_dec_cov", "flux_psf", "flux_psf_err", "snr",
    "chi2",
)  # fmt: skip
_HANDLED = {*_COPIED, "detection", "flux_aper", "flux_aper_err", "is_bad", "bad_reasons"}


def measurement_rows(
    info: ImageInfo, measurements: Measurements, scores: Scores, provenance_id: str
) -> list[dict[str, Any]]:
    """Columns of `MeasurementRow` for every measurement; diagnostics without a column go to JSON.

    The aperture flux is that of the first (smallest) aperture.
    """
    from sql.objects import measurement_id

    table = measurements.table
    columns = {name: _values(table[name]) for name in table.colnames}
    score = _values(scores.table["score"])
    to_njy = 10.0 ** (-0.4 * (measurements.zp - NJY_ZERO_POINT))
    diagnostics = [name for name in table.colnames if name not in _HANDLED]
    common = {
        "provenance_id": provenance_id, "exposure": info.exposure, "ccd": info.ccd, "filter": info.filter,
        "mjd_mid": info.mjd_mid, "exptime_s": info.exptime_s, "zp": float(measurements.zp),
        "zp_err": plain(float(measurements.zp_err)),
        "score_cut": float(scores.cut), "score_algorithm": scores.algorithm,
        "aperture_radius_px": measurements.aperture_radii_px[0] if measurements.aperture_radii_px else None,
    }  # fmt: skip
    told: dict[str, list[Any]] = {name: columns.get(name) or [None] * len(table) for name in _COPIED}
    told |= {name: columns[name] for name in ("detection", "is_bad", "bad_reasons")}
    told |= {"score": score, "healpix": _healpix(table["ra"], table["dec"])}
    fluxes = {"flux_njy": "flux_psf", "flux_njy_err": "flux_psf_err"}
    fluxes |= {"flux_aper_njy": "flux_aper", "flux_aper_njy_err": "flux_aper_err"}
    for name, measured in fluxes.items():
        told[name] = [_scaled(_first(value), to_njy) for value in columns.get(measured) or [None] * len(table)]
    told["diagnostics"] = _records({name: columns[name] for name in diagnostics}) if len(table) else []
    rows = [common | row for row in _records(told)]
    return [row | {"id": measurement_id(row)} for row in rows]


def _records(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns as rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(column: Any) -> list[Any]:
    """Plain Python values of a table column, NaN as None."""
    array = np.asarray(column)
    if array.dtype.kind != "f":
        return plain(array.tolist())  # type: ignore[no-any-return]
    values = array.astype(object)
    values[~np.isfinite(array)] = None
    return values.tolist()  # type: ignore[no-any-return]


def _healpix(ra: Any, dec: Any) -> list[int | None]:
    """Index of each place; None without one."""
    from sql.sky import healpix_of

    ra, dec = (np.asarray(angle, float) for angle in (ra, dec))
    is_placed = np.isfinite(ra) & np.isfinite(dec)
    index = np.full(len(ra), None, object)
    index[is_placed] = healpix_of(ra[is_placed], dec[is_placed]).tolist()
    return index.tolist()


def _first(value: Any) -> float | None:
    """The flux in the first of several apertures."""
    return (value[0] if value else None) if isinstance(value, list) else value


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
