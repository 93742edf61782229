"""Alert packets: plain rows in, Avro bytes out.

A packet is one Avro datum without header (schemaless), written with the schema
``ls4.v1_0.alert``; the schema's name travels in the message header ``schema``. The bytes are a
function of the arguments alone: no clock, no random identifiers. Text from outside (headers, catalogues) is
escaped, so that what consumers see is printable, valid UTF-8.
"""

import io
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from seechange_assets.products import NJY_ZERO_POINT

SCHEMA_NAME = "ls4.v1_0.alert"
SCHEMA_FOLDER = Path(__file__).resolve().parent / "schemas"

Row = Mapping[str, Any]
Record = dict[str, Any]

#: Diagnostics of a measurement (keys of the JSON column) and their fields in ``diaSource``.
_DIAGNOSTICS = {
    "score": "detectionScore",
    "mag": "mag",
    "mag_err": "magErr",
    "fwhm_px": "fwhm",
    "elongation": "elongation",
    "position_angle_deg": "positionAngle",
    "dipole_score": "dipoleScore",
    "trail_score": "trailScore",
    "negative_fraction": "negativeFraction",
    "negative_flux_fraction": "negativeFluxFraction",
    "cosmic_ray_score": "cosmicRayScore",
    "distance_px": "fitDistance",
    "centroid_distance_px": "centroidDistance",
    "kind": "kind",
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
    project: str = ""


@cache
def alert_schema(name: str = SCHEMA_NAME) -> Any:
    """A parsed schema, nested records included."""
    from fastavro.schema import load_schema

    return load_schema(str(SCHEMA_FOLDER / f"{name}.avsc"))


@cache
def schema_text(name: str = SCHEMA_NAME) -> str:
    """The complete schema as the JSON that a container file carries."""
    from fastavro.schema import load_schema

    # Parsed forms have marks of fastavro's; what is published has none.
    return json.dumps(_plain_schema(load_schema(str(SCHEMA_FOLDER / f"{name}.avsc"))), separators=(",", ":"))


def _plain_schema(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _plain_schema(value) for key, value in schema.items() if not key.startswith("__")}
    return [_plain_schema(item) for item in schema] if isinstance(schema, list) else schema


def plain_text(value: str | None, limit: int = 200) -> str | None:
    """Text from outside as printable, valid UTF-8: what is not printable is escaped; null for nothing."""
    if not value:
        return None
    shown = value[:limit]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


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
    cross_matches: Sequence[Row] | None = None,
    identification: Row | None = None,
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
    cross_matches : sequence of mapping, optional
        Columns of `CrossMatchRow`; None where no catalogue was asked.
    identification : mapping, optional
        Columns of `IdentificationRow`.
    stamps : tuple of bytes, optional
        FITS stamps of difference, new image and reference.
    """
    difference, science, template = stamps or (None, None, None)
    record = {
        "alertId": str(alert_id(context.provenance_id, source["id"])),
        "diaSourceId": str(source["id"]),
        "instrument": context.instrument,
        "observation_reason": plain_text(context.project),
        "target_name": plain_text(context.target),
        "isTest": context.is_test,
        "softwareVersion": context.software_version,
        "provenanceId": context.provenance_id,
        "provenanceTag": context.provenance_tag,
        "diaSource": source_record(source),
        "prvDiaSources": [source_record(row) for row in earlier] or None,
        "prvDiaForcedSources": [forced_record(row) for row in forced] or None,
        "prvDiaNonDetectionLimits": [limit_record(row) for row in limits] or None,
        "diaObject": object_record(target, cross_matches),
        "ssSource": None if identification is None else moving_record(identification),
        "cutoutDifference": difference,
        "cutoutScience": science,
        "cutoutTemplate": template,
    }
    return written(record, SCHEMA_NAME)


def written(record: Record, schema: str) -> bytes:
    """A record as one Avro datum; a field that the schema does not know, or one without value, is an error."""
    import fastavro

    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, alert_schema(schema), record, strict=True)
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
        "band": plain_text(row["filter"]),
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
        "rbtype": plain_text(row["score_algorithm"]),
        "provenanceId": row["provenance_id"],
    }
    return record | {field: row["diagnostics"].get(name) for name, field in _DIAGNOSTICS.items()}


def object_record(row: Row, cross_matches: Sequence[Row] | None = None) -> Record:
    """``diaObject`` of an object and the catalogue sources near it."""
    return {
        "diaObjectId": str(row["id"]),
        "name": row["name"],
        "ra": row["mean_ra"],
        "raErr": row["mean_ra_err"],
        "dec": row["mean_dec"],
        "decErr": row["mean_dec_err"],
        "ra_dec_Cov": row.get("mean_ra_dec_cov"),
        "nDiaSources": row["n_detections"],
        "firstDiaSourceMjdTai": mjd_tai(row["first_mjd"]),
        "lastDiaSourceMjdTai": mjd_tai(row["last_mjd"]),
        "crossMatches": None if cross_matches is None else [match_record(match) for match in cross_matches],
    }


def match_record(row: Row) -> Record:
    """``crossMatch`` of a catalogue source near an object."""
    return {
        "kind": row["kind"],
        "rank": row["rank"],
        "catalog": plain_text(row["catalog"]) or "",
        "name": plain_text(row["name"]),
        "ra": row["ra"],
        "dec": row["dec"],
        "separation": row["separation_arcsec"],
        "mag": row["mag"],
        "starScore": row["star_score"],
    }


def moving_record(row: Row) -> Record:
    """``ssSource`` of an identified measurement."""
    return {
        "designation": plain_text(row["name"]) or "",
        "kind": row["kind"],
        "catalog": plain_text(row["catalog"]) or "",
        "ephRa": row["ra"],
        "ephDec": row["dec"],
        "ephOffset": row["separation_arcsec"],
        "ephVmag": row["mag"],
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
        "band": plain_text(row["filter"]),
        "psfFlux": row["flux_njy"],
        "psfFluxErr": row["flux_njy_err"],
        "fluxZeroPoint": NJY_ZERO_POINT,
        "pixelFlags": row["image_flags"],
    }


def limit_record(row: Row) -> Record:
    """``diaNonDetectionLimit`` of an image; its 5-sigma limit gives the noise."""
    limit = row["limiting_magnitude"]
    return {
        "visit": row["exposure"],
        "detector": row["ccd"],
        "midpointMjdTai": mjd_tai(row["mjd_mid"]),
        "band": plain_text(row["filter"]) or "",
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
