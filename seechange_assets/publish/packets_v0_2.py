"""The packet of SeeChange's first alerts (``ls4.v0_2.alert``), for consumers that read nothing newer."""

import uuid
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import NJY_ZERO_POINT
from seechange_assets.publish.packets import PacketContext, Record, Row, alert_id, plain_text, written

SCHEMA_NAME = "ls4.v0_2.alert"
#: Match radius of the galaxy catalogue that the field ``xgmatchRadius`` tells [arcsec].
GALAXY_RADIUS_ARCSEC = 10.0


def build_packet(
    context: PacketContext,
    source: Row,
    target: Row,
    *,
    earlier: Sequence[Row] = (),
    forced: Sequence[Row] = (),
    limits: Sequence[Row] = (),
    cross_matches: Sequence[Row] | None = None,
    identification: Row | None = None,  # noqa: ARG001  (the old packet has no place for it)
    stamps: tuple[bytes, bytes, bytes] | None = None,
) -> bytes:
    """One alert as Avro bytes; the arguments are those of `packets.build_packet`.

    ``stamps`` are raw pixels here, see `raw_stamp`.
    """
    difference, science, template = stamps or (None, None, None)
    record = {
        "alertId": str(alert_id(context.provenance_id, source["id"])),
        "diaObject": object_record(target, cross_matches),
        "diaSource": source_record(source),
        "prvDiaSources": [source_record(row) for row in earlier] or None,
        "prvDiaForcedSources": [forced_record(row) for row in forced] or None,
        "prvDiaNonDetectionLimits": [limit_record(row) for row in limits] or None,
        "cutoutDifference": difference,
        "cutoutScience": science,
        "cutoutTemplate": template,
    }
    return written(record, SCHEMA_NAME)


def source_record(row: Row) -> Record:
    """``diaSource`` of a measurement."""
    return {
        "diaSourceId": str(row["id"]),
        "diaObjectId": _text_of(row["object_id"]),
        "MJD": row["mjd_mid"],
        "ra": row["ra"],
        "raErr": row["ra_err"],
        "dec": row["dec"],
        "decErr": row["dec_err"],
        "ra_dec_Cov": row["ra_dec_cov"],
        "band": plain_text(row["filter"]),
        "fluxZeroPoint": NJY_ZERO_POINT,
        "apFlux": row["flux_aper_njy"],
        "apFluxErr": row["flux_aper_njy_err"],
        "snr": row["snr"],
        "psfFlux": row["flux_njy"],
        "psfFluxErr": row["flux_njy_err"],
        "rb": row["score"],
        "rbcut": row["score_cut"],
        "rbtype": plain_text(row["score_algorithm"]),
    }


def forced_record(row: Row) -> Record:
    """``diaForcedSource`` of a row of forced photometry."""
    return {
        "diaForcedSourceId": str(row["id"]),
        "diaObjectId": _text_of(row["object_id"]),
        "MJD": row["mjd_mid"],
        "ra": row["ra"],
        "dec": row["dec"],
        "band": plain_text(row["filter"]),
        "fluxZeroPoint": f"{NJY_ZERO_POINT:g}",
        "apFlux": None,
        "apFluxErr": None,
        "psfFlux": row["flux_njy"],
        "psfFluxErr": row["flux_njy_err"],
    }


def limit_record(row: Row) -> Record:
    """``diaNonDetectionLimit`` of an image."""
    return {
        "MJD": row["mjd_mid"],
        "band": plain_text(row["filter"]) or "",
        "limitingMag": row["limiting_magnitude"],
    }


def object_record(row: Row, cross_matches: Sequence[Row] | None) -> Record:
    """``diaObject`` of an object, at its first position."""
    galaxies = [match for match in cross_matches or () if match["kind"] == "galaxy"]
    return {
        "diaObjectId": str(row["id"]),
        "name": row["name"],
        "ra": row["ra"],
        "raErr": row["mean_ra_err"],
        "dec": row["dec"],
        "decErr": row["mean_dec_err"],
        "ra_dec_Cov": row.get("mean_ra_dec_cov"),
        "xgmatchRadius": None if cross_matches is None else GALAXY_RADIUS_ARCSEC,
        "ls-xgboost": None if cross_matches is None else [_galaxy(match) for match in galaxies if _is_told(match)],
    }


def _galaxy(match: Row) -> Record:
    return {
        "lsid": int(match["name"]),
        "ra": match["ra"],
        "dec": match["dec"],
        "dist": match["separation_arcsec"],
        "white_mag": match["mag"],
        "xgboost": match["star_score"],
        "is_star": match["star_score"] >= 0.5,
    }


def _is_told(match: Row) -> bool:
    """Whether a match has all that the old record demands."""
    return match["mag"] is not None and match["star_score"] is not None and str(match["name"]).isdecimal()


def _text_of(value: uuid.UUID | None) -> str | None:
    return None if value is None else str(value)


def raw_stamp(pixels: NDArray[np.float32], flags: NDArray[np.uint16]) -> bytes:
    """Big-endian float32 pixels; flagged ones are NaN."""
    return np.where(flags != 0, np.float32(np.nan), pixels).astype(">f4").tobytes()
