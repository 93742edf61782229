"""Alert packets: schema, times, stamps."""

import io
import json
import uuid
from dataclasses import replace

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st

from resources.alert_stream import decode
from seechange_assets.publish import packets_v0_2
from seechange_assets.publish.packets import (
    SCHEMA_FOLDER,
    SCHEMA_NAME,
    PacketContext,
    alert_id,
    alert_schema,
    build_packet,
    limit_record,
    mjd_tai,
    plain_text,
    schema_text,
)
from seechange_assets.publish.stamps import alert_stamps, fits_stamp, stamp_wcs
from seechange_assets.science.psf import gaussian_psf
from sql.sky import separation_deg
from tests.publish.sky import cutouts, tan_wcs, wcs_product

CONTEXT = PacketContext("ls4", "t1", "b" * 20, "current", "1.0.0")
OBJECT = uuid.UUID(int=7)


def source(number=1, **changes):
    row = dict.fromkeys(
        ("x_err", "y_err", "ra_err", "dec_err", "ra_dec_cov", "flux_njy_err", "flux_aper_njy", "flux_aper_njy_err",
         "aperture_radius_px", "chi2")
    )  # fmt: skip
    row |= {
        "id": uuid.UUID(int=number), "object_id": OBJECT, "exposure": "ls4_1", "ccd": "S1", "mjd_mid": 61000.25,
        "exptime_s": 60.0, "ra": 150.0, "dec": -30.0, "x": 60.0, "y": 80.0, "filter": "r", "flux_njy": 57543.5,
        "snr": 20.0, "score": 0.75, "score_cut": 0.5, "score_algorithm": "test-1", "provenance_id": "a" * 20,
        "diagnostics": {"fwhm_px": 2.5, "n_bad_pixels": 0, "dipole_score": None},
    }  # fmt: skip
    return row | changes


def target():
    return {
        "id": OBJECT, "name": "SC2025a", "mean_ra": 150.0, "mean_dec": -30.0, "mean_ra_err": 1e-5, "mean_dec_err": None,
        "n_detections": 2, "first_mjd": 60990.25, "last_mjd": 61000.25,
    }  # fmt: skip


def limit(**changes):
    row = {"exposure": "ls4_0", "ccd": "S2", "mjd_mid": 60999.0, "filter": "g", "limiting_magnitude": 21.4}
    return row | changes


def test_fastavro_alone_reads_a_packet_with_the_published_schema():
    packet = build_packet(
        CONTEXT, source(), target(), earlier=[source(2, mjd_mid=60990.25)], limits=[limit()], stamps=(b"d", b"s", b"t")
    )
    schema = fastavro.schema.load_schema(str(SCHEMA_FOLDER / "ls4.v1_0.alert.avsc"))
    alert = fastavro.schemaless_reader(io.BytesIO(packet), schema, None)
    assert alert["alertId"] == str(alert_id("b" * 20, uuid.UUID(int=1)))
    assert alert["diaSource"]["psfFlux"] == pytest.approx(57543.5, rel=1e-6)
    assert alert["diaSource"]["reliability"] == 0.75
    assert alert["diaSource"]["nBadPixels"] == 0
    assert alert["diaSource"]["dipoleScore"] is None
    assert [s["diaSourceId"] for s in alert["prvDiaSources"]] == [str(uuid.UUID(int=2))]
    assert alert["prvDiaForcedSources"] is None
    assert alert["prvDiaNonDetectionLimits"][0]["visit"] == "ls4_0"
    assert alert["diaObject"]["name"] == "SC2025a"
    assert (alert["cutoutDifference"], alert["cutoutScience"], alert["cutoutTemplate"]) == (b"d", b"s", b"t")


def test_packets_are_deterministic_and_strict():
    assert build_packet(CONTEXT, source(), target()) == build_packet(CONTEXT, source(), target())
    with pytest.raises((ValueError, TypeError)):
        build_packet(CONTEXT, source(ra=None), target())


def test_every_field_is_documented():
    def fields(schema):
        for field in schema["fields"]:
            yield schema["name"], field
            kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
            for kind in kinds:
                record = kind.get("items", kind) if isinstance(kind, dict) else kind
                if isinstance(record, dict) and record.get("type") == "record":
                    yield from fields(record)

    found = list(fields(alert_schema()))
    assert {name.split(".")[-1] for name, _ in found} == {
        "alert", "diaSource", "diaForcedSource", "diaNonDetectionLimit", "diaObject", "crossMatch", "ssSource",
    }  # fmt: skip
    assert all(field.get("doc") for _, field in found)


def test_negative_flux_is_marked():
    packet = build_packet(CONTEXT, source(flux_njy=-5.0), target())
    assert decode(packet, SCHEMA_NAME)["diaSource"]["isNegative"]


@pytest.mark.parametrize(
    ("utc", "offset_s"),
    [
        ("1999-01-02T12:00:00", 32),
        ("2016-12-31T12:00:00", 36),
        ("2017-01-01T00:00:00", 37),
        ("2026-11-22T03:15:02", 37),
    ],
)
def test_times_are_tai(utc, offset_s):
    """Leap seconds as published by the IERS; 36 s until the end of 2016, 37 s after."""
    mjd = Time(utc, scale="utc").mjd
    assert (mjd_tai(mjd) - mjd) * 86400 == pytest.approx(offset_s, abs=0.51 if "2016-12-31" in utc else 1e-4)


def test_the_noise_of_a_limit_is_a_fifth_of_its_flux():
    assert limit_record(limit(limiting_magnitude=31.4))["diaNoise"] == pytest.approx(0.2)


@pytest.mark.parametrize("position", [(150.0, -30.0), (0.0, 5.0), (80.0, 89.99)])
def test_a_stamp_opens_in_astropy_and_points_at_its_source(position):
    wcs = tan_wcs((200, 160), *position)
    x, y = np.array([61.3, 3.2]), np.array([80.7, 190.1])
    corner = np.column_stack([np.round(x) - 20, np.round(y) - 20]).astype(np.int32)
    pixels = np.full((41, 41), np.nan, np.float32)
    pixels[20, 20] = 5.0
    for i, cards in enumerate(stamp_wcs(wcs, x, y, corner)):
        stamp = fits_stamp(pixels, cards | {"BUNIT": "adu", "MAGZERO": 27.0})
        assert len(stamp) == 4 * 2880
        with fits.open(io.BytesIO(stamp)) as hdus:
            hdus.verify("exception")
            assert np.array_equal(hdus[0].data, pixels, equal_nan=True)
            local = WCS(hdus[0].header)
            assert hdus[0].header["BUNIT"] == "adu"
        # Everywhere on the stamp, not at its centre alone; 0.2" is what a broker needs.
        dx, dy = np.meshgrid([0.0, 20, 40], [0.0, 20, 40])
        got = local.all_pix2world(dx.ravel(), dy.ravel(), 0)
        true = wcs.all_pix2world(dx.ravel() + corner[i, 0], dy.ravel() + corner[i, 1], 0)
        assert separation_deg(*got, *true).max() * 3600 < 0.01


def test_no_sources_no_stamps():
    assert stamp_wcs(tan_wcs((10, 10)), np.empty(0), np.empty(0), np.empty((0, 2), np.int32)) == []


def test_the_stamps_of_an_alert_have_wcs_flags_and_psf():
    rng = np.random.default_rng(3)
    x, y = rng.uniform(30, 120, (2, 20))
    wcs, psf = tan_wcs((200, 160)), gaussian_psf(2.6, (200, 160))
    made = cutouts(x, y)
    made.sub_flags[:, 3, 5] = 4 | 1
    rows = [{"x": a, "y": b, "detection": i, "zp": 27.0} for i, (a, b) in enumerate(zip(x, y, strict=True))]
    ra, dec = wcs.all_pix2world(x, y, 0)
    stamps = alert_stamps(rows, made, wcs_product(wcs), psf)
    for i, parts in enumerate(stamps):
        for part, pixels in zip(parts, (made.sub, made.new, made.ref), strict=True):
            with fits.open(io.BytesIO(part)) as hdus:
                hdus.verify("exception")
                assert np.array_equal(hdus[0].data, pixels[i])
                px, py = WCS(hdus[0].header).all_world2pix(ra[i], dec[i], 0)
                here = WCS(hdus[0].header).all_pix2world(x[i] - made.corner[i, 0], y[i] - made.corner[i, 1], 0)
                assert hdus["FLAGS"].data.shape == pixels[i].shape
        assert separation_deg(*here, ra[i], dec[i]) * 3600 < 0.2
        assert (px, py) == pytest.approx((x[i] - made.corner[i, 0], y[i] - made.corner[i, 1]), abs=1e-3)
        with fits.open(io.BytesIO(parts[0])) as hdus:
            assert hdus["FLAGS"].data[3, 5] == 5
            assert hdus["PSF"].data.sum() == pytest.approx(1, abs=1e-4)
            assert np.unravel_index(hdus["PSF"].data.argmax(), hdus["PSF"].shape) == (12, 12)


MATCH = {
    "kind": "galaxy", "rank": 0, "catalog": "ls", "name": "8796093023", "ra": 150.0, "dec": -30.0,
    "separation_arcsec": 1.5, "mag": 19.25, "star_score": 0.125,
}  # fmt: skip
MOVING = {
    "kind": "minor_planet", "name": "2001 AB", "catalog": "mpc", "ra": 150.0, "dec": -30.0, "separation_arcsec": 0.5,
    "mag": None,
}  # fmt: skip


def test_cross_matches_and_solar_system_are_told_or_null():
    packet = build_packet(CONTEXT, source(), target(), cross_matches=[MATCH], identification=MOVING)
    told = decode(packet, SCHEMA_NAME)
    assert told["diaObject"]["crossMatches"][0]["starScore"] == 0.125
    assert told["ssSource"]["designation"] == "2001 AB"
    none = decode(build_packet(CONTEXT, source(), target()), SCHEMA_NAME)
    assert (none["ssSource"], none["diaObject"]["crossMatches"]) == (None, None)


def test_the_old_packet_tells_what_it_always_told():
    """Field names of SEECHANGE's ls4.v0_2, values those of the new packet."""
    row = target() | {"ra": 150.0001, "dec": -30.0001}
    arguments = {"earlier": [source(2)], "limits": [limit()], "cross_matches": [MATCH, MATCH | {"name": None}]}
    new = decode(build_packet(CONTEXT, source(), row, **arguments), SCHEMA_NAME)
    pixels = np.arange(41 * 41, dtype=np.float32).reshape(41, 41)
    flags = np.zeros((41, 41), np.uint16)
    flags[1, 2] = 16
    stamp = packets_v0_2.raw_stamp(pixels, flags)
    packet = packets_v0_2.build_packet(CONTEXT, source(), row, stamps=(stamp,) * 3, **arguments)
    schema = fastavro.schema.load_schema(str(SCHEMA_FOLDER / "ls4.v0_2.alert.avsc"))
    old = fastavro.schemaless_reader(io.BytesIO(packet), schema, None)
    assert old["alertId"] == new["alertId"]
    names = {"rb": "reliability", "rbcut": "rbcut", "rbtype": "rbtype", "psfFlux": "psfFlux", "snr": "snr", "ra": "ra"}
    assert {n: old["diaSource"][n] for n in names} == {n: new["diaSource"][m] for n, m in names.items()}
    assert new["diaSource"]["midpointMjdTai"] - old["diaSource"]["MJD"] == pytest.approx(37 / 86400, abs=1e-8)
    assert len(old["diaObject"]["ls-xgboost"]) == 1
    assert not old["diaObject"]["ls-xgboost"][0]["is_star"]
    assert len(old["cutoutScience"]) == 6724
    back = np.frombuffer(old["cutoutScience"], ">f4").reshape(41, 41)
    assert np.isnan(back[1, 2])
    assert np.array_equal(np.delete(back.ravel(), 43), np.delete(pixels.ravel(), 43))


#: Records of ls4.v0_2 by field, in the order of the bytes; a question mark is a union with null as its second branch.
OLD_RECORDS = {
    "alert": "alertId:string diaObject:record? diaSource:record prvDiaSources:array? prvDiaForcedSources:array? "
    "prvDiaNonDetectionLimits:array? cutoutDifference:bytes? cutoutScience:bytes? cutoutTemplate:bytes?",
    "diaObject": "diaObjectId:string name:string ra:double raErr:float? dec:double decErr:float? ra_dec_Cov:float? "
    "xgmatchRadius:float? ls-xgboost:array?",
    "diaSource": "diaSourceId:string diaObjectId:string? MJD:double ra:double raErr:float? dec:double decErr:float? "
    "ra_dec_Cov:float? band:string? fluxZeroPoint:float? apFlux:float? apFluxErr:float? snr:float? psfFlux:float? "
    "psfFluxErr:float? rb:float? rbcut:float? rbtype:string?",
    "diaForcedSource": "diaForcedSourceId:string diaObjectId:string? MJD:double ra:double dec:double band:string? "
    "fluxZeroPoint:string? apFlux:float? apFluxErr:float? psfFlux:float? psfFluxErr:float?",
    "diaNonDetectionLimit": "MJD:double band:string limitingMag:float",
    "ls4xgboost": "lsid:long ra:double dec:double dist:float white_mag:float xgboost:float is_star:boolean",
}


def test_the_old_schema_has_the_order_and_unions_of_the_original():
    """A datum without header is nothing but this order, and null is the second branch of every union."""
    for name, told in OLD_RECORDS.items():
        fields = json.loads((SCHEMA_FOLDER / f"ls4.v0_2.{name}.avsc").read_text())["fields"]
        found = []
        for field in fields:
            kind = field["type"]
            is_union = isinstance(kind, list)
            assert not is_union or (len(kind) == 2 and kind[1] == "null"), (name, field)
            kind = kind[0] if is_union else kind
            kind = kind["type"] if isinstance(kind, dict) else "record" if kind.startswith("ls4.") else kind
            found.append(f"{field['name']}:{kind}{'?' * is_union}")
        assert " ".join(found) == told, name


def test_an_old_reader_reads_a_new_writer():
    """A consumer with the v1_0 files as first published, before cross-matches and moving things were told."""
    first = json.loads(schema_text())
    added = {
        "diaSourceId", "observation_reason", "ssSource", "crossMatches", "detectionScore", "mag", "magErr",
        "positionAngle", "negativeFluxFraction", "cosmicRayScore", "fitDistance", "centroidDistance", "kind",
    }  # fmt: skip

    def without_added(schema, top):
        if isinstance(schema, dict):
            if "fields" in schema:
                keep = added - ({"diaSourceId"} if not top else set())
                fields = [f for f in schema["fields"] if f["name"] not in keep]
                return schema | {"fields": [f | {"type": without_added(f["type"], False)} for f in fields]}
            return {key: without_added(value, False) for key, value in schema.items()}
        return [without_added(item, False) for item in schema] if isinstance(schema, list) else schema

    reader = fastavro.parse_schema(without_added(first, True))
    packet = build_packet(
        CONTEXT, source(), target(), earlier=[source(2)], cross_matches=[MATCH], identification=MOVING
    )
    alert = fastavro.schemaless_reader(io.BytesIO(packet), alert_schema(), reader)
    assert alert["diaObject"]["name"] == "SC2025a"
    assert len(alert["prvDiaSources"]) == 1
    assert not added & (set(alert) | set(alert["diaSource"]) - {"diaSourceId"} | set(alert["diaObject"]))


@given(st.text(alphabet=st.characters(), max_size=300))
def test_hostile_text_arrives_as_printable_utf8(text):
    """Control characters, escapes of terminals, right-to-left marks, lone surrogates."""
    context = replace(CONTEXT, target=text, project=text)
    alert = decode(build_packet(context, source(filter=text), target()), SCHEMA_NAME)
    for value in (alert["target_name"], alert["observation_reason"], alert["diaSource"]["band"]):
        assert value is None or (value.isprintable() and value.encode("utf-8").decode("utf-8") == value)
    assert alert["target_name"] or not text


def test_hostile_text_is_escaped_not_lost():
    assert plain_text("SN\x1b[2J\x00; drop table x\u202e\udc80é") == "SN\\x1b[2J\\x00; drop table x\\u202e\\udc80é"
    assert plain_text("") is None
