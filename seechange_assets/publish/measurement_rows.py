"""Measurements as rows of the database."""

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
    from sql.sky import healpix_of

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
    rows = []
    for i in range(len(table)):
        row = common | {name: columns[name][i] if name in columns else None for name in _COPIED}
        row |= {name: columns[name][i] for name in ("detection", "is_bad", "bad_reasons")}
        is_placed = row["ra"] is not None and row["dec"] is not None
        row |= {"score": score[i], "healpix": healpix_of(row["ra"], row["dec"]) if is_placed else None}
        row |= {"flux_njy": _scaled(row["flux_psf"], to_njy), "flux_njy_err": _scaled(row["flux_psf_err"], to_njy)}
        row["flux_aper_njy"] = _scaled(_first(columns.get("flux_aper"), i), to_njy)
        row["flux_aper_njy_err"] = _scaled(_first(columns.get("flux_aper_err"), i), to_njy)
        row["diagnostics"] = {name: columns[name][i] for name in diagnostics}
        rows.append(row | {"id": measurement_id(row)})
    return rows


def _values(column: Any) -> list[Any]:
    """Plain Python values of a table column, NaN as None."""
    values: list[Any] = plain(np.asarray(column).tolist())
    return values


def _first(column: list[Any] | None, row: int) -> float | None:
    if column is None:
        return None
    value = column[row]
    return (value[0] if value else None) if isinstance(value, list) else value


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
