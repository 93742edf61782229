"""Alert packets: plain rows in, Avro bytes out.

A packet is one Avro datum without header (schemaless), written with the schema
``ls4.v1_0.alert``; the schema's name travels in the message header ``schema``. The bytes are a
function of the arguments alone: no clock, no random identifiers.
"""

import io
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import NJY_ZERO_POINT

if TYPE_CHECKING:
    from astropy.wcs import WCS

SCHEMA_NAME = "ls4.v1_0.alert"
SCHEMA_FOLDER = Path(__file__).resolve().parent / "schemas"

Row = Mapping[str, Any]
Record = dict[str, Any]

#: Diagnostics of a measurement (keys of the JSON column) and their fields in ``diaSource``.
_DIAGNOSTICS = {
    "fwhm_px": "fwhm",
    "elongation": "elongation",
    "dipole_score": "dipoleScore",
    "trail_score": "trailScore",
    "negative_fraction": "negativeFraction",
    "n_bad_pixels": "nBadPixels",
    "ref_source_distance_arcsec": "refSourceDistance",
    "ref_source_mag": "refSourceMag",
    "ref_source_star_score": "refSourceStarScore",
}


@dataclass(frozen=True, slots=True)
class PacketContext:
    """What all packets of one CCD share."""

    instrument: str
    target: str
    provenance_id: str
    provenance_tag: str
    software_version: str
    is_test: bool = False


@cache
def alert_schema() -> Any:
    """The parsed schema of an alert, nested records included."""
    from fastavro.schema import load_schema

    return load_schema(str(SCHEMA_FOLDER / f"{SCHEMA_NAME}.avsc"))


def alert_id(provenance_id: str, measurement_id: uuid.UUID) -> uuid.UUID:
    """Identifier of the alert that this recipe makes of this measurement."""
    from sql.base import deterministic_id

    return deterministic_id("alert", provenance_id, measurement_id)


def build_packet(
    context: PacketContext,
    source: Row,
    target: Row,
    *,
    earlier: Sequence[Row] = (),
    forced: Sequence[Row] = (),
    limits: Sequence[Row] = (),
    stamps: tuple[bytes, bytes, bytes] | None = None,
) -> bytes:
    """One alert as Avro bytes.

    Parameters
    ----------
    source, earlier : mapping, sequence of mapping
        Columns of `MeasurementRow`: the detection, and those before it, oldest first.
    target : mapping
        Columns of `ObjectRow`.
    forced : sequence of mapping
        Columns of `ForcedPhotometryRow`.
    limits : sequence of mapping
        ``exposure, ccd, mjd_mid, filter, limiting_magnitude`` of images without a detection.
    stamps : tuple of bytes, optional
        FITS stamps of difference, new image and reference.
    """
    import fastavro

    difference, science, template = stamps or (None, None, None)
    record = {
        "alertId": str(alert_id(context.provenance_id, source["id"])),
        "instrument": context.instrument,
        "target_name": context.target or None,
        "isTest": context.is_test,
        "softwareVersion": context.software_version,
        "provenanceId": context.provenance_id,
        "provenanceTag": context.provenance_tag,
        "diaSource": source_record(source),
        "prvDiaSources": [source_record(row) for row in earlier] or None,
        "prvDiaForcedSources": [forced_record(row) for row in forced] or None,
        "prvDiaNonDetectionLimits": [limit_record(row) for row in limits] or None,
        "diaObject": object_record(target),
        "cutoutDifference": difference,
        "cutoutScience": science,
        "cutoutTemplate": template,
    }
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, alert_schema(), record, strict=True)
    return buffer.getvalue()


def source_record(row: Row) -> Record:
    """``diaSource`` of a measurement."""
    record = {
        "diaSourceId": str(row["id"]),
        "diaObjectId": None if row["object_id"] is None else str(row["object_id"]),
        "visit": row["exposure"],
        "detector": row["ccd"],
        "midpointMjdTai": mjd_tai(row["mjd_mid"]),
        "exposureTime": row["exptime_s"],
        "ra": row["ra"],
        "raErr": row["ra_err"],
        "dec": row["dec"],
        "decErr": row["dec_err"],
        "ra_dec_Cov": row["ra_dec_cov"],
        "x": row["x"],
        "xErr": row["x_err"],
        "y": row["y"],
        "yErr": row["y_err"],
        "band": row["filter"],
        "psfFlux": row["flux_njy"],
        "psfFluxErr": row["flux_njy_err"],
        "psfChi2": row["chi2"],
        "apFlux": row["flux_aper_njy"],
        "apFluxErr": row["flux_aper_njy_err"],
        "apRadius": row["aperture_radius_px"],
        "fluxZeroPoint": NJY_ZERO_POINT,
        "snr": row["snr"],
        "isNegative": row["flux_njy"] < 0,
        "reliability": row["score"],
        "rbcut": row["score_cut"],
        "rbtype": row["score_algorithm"],
        "provenanceId": row["provenance_id"],
    }
    return record | {field: row["diagnostics"].get(name) for name, field in _DIAGNOSTICS.items()}


def object_record(row: Row) -> Record:
    """``diaObject`` of an object."""
    return {
        "diaObjectId": str(row["id"]),
        "name": row["name"],
        "ra": row["mean_ra"],
        "raErr": row["mean_ra_err"],
        "dec": row["mean_dec"],
        "decErr": row["mean_dec_err"],
        "ra_dec_Cov": None,
        "nDiaSources": row["n_detections"],
        "firstDiaSourceMjdTai": mjd_tai(row["first_mjd"]),
        "lastDiaSourceMjdTai": mjd_tai(row["last_mjd"]),
    }


def forced_record(row: Row) -> Record:
    """``diaForcedSource`` of a row of forced photometry."""
    return {
        "diaForcedSourceId": str(row["id"]),
        "diaObjectId": str(row["object_id"]),
        "visit": row["exposure"],
        "detector": row["ccd"],
        "midpointMjdTai": mjd_tai(row["mjd_mid"]),
        "ra": row["ra"],
        "dec": row["dec"],
        "band": row["filter"],
        "psfFlux": row["flux_njy"],
        "psfFluxErr": row["flux_njy_err"],
        "pixelFlags": row["image_flags"],
    }


def limit_record(row: Row) -> Record:
    """``diaNonDetectionLimit`` of an image; its 5-sigma limit gives the noise."""
    limit = row["limiting_magnitude"]
    return {
        "visit": row["exposure"],
        "detector": row["ccd"],
        "midpointMjdTai": mjd_tai(row["mjd_mid"]),
        "band": row["filter"],
        "limitingMag": limit,
        "diaNoise": 10.0 ** (-0.4 * (limit - NJY_ZERO_POINT)) / 5.0,
    }


@lru_cache(maxsize=100_000)
def mjd_tai(mjd_utc: float) -> float:
    """Modified Julian Date in International Atomic Time of one in UTC (leap seconds included)."""
    from astropy.time import Time

    # Day and fraction apart: a single number keeps a microsecond, the sum of two a nanosecond.
    day = np.floor(mjd_utc)
    return float(Time(day, mjd_utc - day, format="mjd", scale="utc").tai.mjd)


def fits_stamp(pixels: NDArray[np.float32], cards: Mapping[str, str | float]) -> bytes:
    """The smallest valid FITS file of a 2-D float image (FITS standard 4.0, section 4)."""
    ny, nx = pixels.shape
    header = [_card("SIMPLE", "T"), _card("BITPIX", "-32"), _card("NAXIS", "2")]
    header += [_card("NAXIS1", str(nx)), _card("NAXIS2", str(ny))]
    for keyword, value in cards.items():
        header.append(_card(keyword, f"'{value:<8}'" if isinstance(value, str) else f"{value:.15E}"))
    text = _padded("".join([*header, f"{'END':<80}"]).encode("ascii"), b" ")
    return text + _padded(pixels.astype(">f4").tobytes(), b"\0")


def _card(keyword: str, value: str) -> str:
    text = f"{value:<20}" if value.startswith("'") else f"{value:>20}"
    return f"{keyword:<8}= {text}".ljust(80)


def _padded(block: bytes, filler: bytes) -> bytes:
    return block + filler * (-len(block) % 2880)


def stamp_wcs(wcs: "WCS", x: NDArray[np.float64], y: NDArray[np.float64], corner: NDArray[np.int32]) -> list[Record]:
    """WCS cards of stamps: the tangent plane at each source, linear within the stamp.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Sources in the image [pixel].
    corner : ndarray of int, shape (n, 2)
        (x, y) of the first pixel of each stamp.
    """
    if len(x) == 0:
        return []
    step = 5.0
    ra, dec = wcs.all_pix2world(x, y, 0)
    matrix = np.empty((len(x), 2, 2))
    for axis, (dx, dy) in enumerate([(step, 0.0), (0.0, step)]):
        ahead = wcs.all_pix2world(x + dx, y + dy, 0)
        behind = wcs.all_pix2world(x - dx, y - dy, 0)
        width = _tangent_plane(ahead[0], ahead[1], ra, dec) - _tangent_plane(behind[0], behind[1], ra, dec)
        matrix[:, :, axis] = width / (2 * step)
    return [
        {
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS",
            "CRVAL1": float(ra[i]), "CRVAL2": float(dec[i]),
            "CRPIX1": float(x[i] - corner[i, 0] + 1), "CRPIX2": float(y[i] - corner[i, 1] + 1),
            "CD1_1": float(matrix[i, 0, 0]), "CD1_2": float(matrix[i, 0, 1]),
            "CD2_1": float(matrix[i, 1, 0]), "CD2_2": float(matrix[i, 1, 1]),
        }
        for i in range(len(x))
    ]  # fmt: skip


def _tangent_plane(ra: Any, dec: Any, ra0: Any, dec0: Any) -> NDArray[np.float64]:
    """Gnomonic coordinates [deg] around (ra0, dec0), shape (n, 2)."""
    alpha, delta, delta0 = np.deg2rad(ra - ra0), np.deg2rad(dec), np.deg2rad(dec0)
    cosine = np.sin(delta0) * np.sin(delta) + np.cos(delta0) * np.cos(delta) * np.cos(alpha)
    xi = np.cos(delta) * np.sin(alpha) / cosine
    eta = (np.cos(delta0) * np.sin(delta) - np.sin(delta0) * np.cos(delta) * np.cos(alpha)) / cosine
    plane: NDArray[np.float64] = np.rad2deg(np.column_stack([xi, eta]))
    return plane
