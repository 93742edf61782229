"""The table of docs/alerts.md against real packets and our own schemas."""

import io
import re
from pathlib import Path

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from seechange_assets.publish.packets import SCHEMA_FOLDER
from tests.data import test_data
from tests.publish.lsst_packet import read_lsst_packet

PAGE = Path(__file__).parents[2] / "docs" / "alerts.md"


def rows():
    """The cells of the comparison, without its head; the first of each is empty."""
    table = PAGE.read_text().split("| `ls4.v1_0` | LSST |")[1].split("\n\n")[0]
    return [line.split("|") for line in table.splitlines()[2:]]


def names_of(cell):
    """All in backticks, without explanations."""
    return {name.split(".")[-1] for name in re.findall(r"`([\w.-]+)`", cell)}


def column(number):
    return set().union(*(names_of(row[number]) for row in rows()))


def names_in(value):
    if isinstance(value, list):
        return names_in(value[0]) if value else set()
    return set(value) | {n for v in value.values() for n in names_in(v)} if isinstance(value, dict) else set()


@pytest.mark.parametrize(("number", "file"), [(3, "ztf/2695378462115010012.avro"), (4, "decam/alert.avro")])
def test_names_of_other_surveys_are_those_of_their_packets(number, file):
    with (test_data("alerts") / "boom" / file).open("rb") as stream:
        packet = next(fastavro.reader(stream))
    assert len(column(number)) > 8
    assert not column(number) - names_in(packet)


def test_names_of_lsst_are_those_of_a_real_packet():
    """Also what is called the same there, is; flags and fluxes have its units and signs."""
    with (test_data("alerts") / "boom" / "lsst" / "7912941781254298.avro").open("rb") as stream:
        assert stream.read(5) == b"\0\0\0\x03\x84"  # Confluent's header: version 9.0
        packet = read_lsst_packet(stream)
        assert stream.read() == b""
    names = names_in(packet)
    assert not column(2) - names
    same = set().union(*(names_of(row[1]) for row in rows() if row[2].strip().startswith("same")))
    assert len(same) > 20
    assert not same - names
    source = packet["diaSource"]
    assert source["isNegative"] == (source["psfFlux"] < 0)
    assert abs(source["psfFlux"]) / source["psfFluxErr"] == pytest.approx(source["snr"], rel=0.02)
    assert 0 < source["raErr"] < 1 / 3600
    with fits.open(io.BytesIO(packet["cutoutDifference"])) as stamp:
        x, y = WCS(stamp[0].header).all_world2pix(source["ra"], source["dec"], 0)
        assert np.hypot(x - (stamp[0].data.shape[1] - 1) / 2, y - (stamp[0].data.shape[0] - 1) / 2) < 1


def schema_names(name):
    schema = fastavro.schema.load_schema(str(SCHEMA_FOLDER / f"{name}.alert.avsc"))

    def walk(part):
        if isinstance(part, list):
            return set().union(*map(walk, part))
        if not isinstance(part, dict):
            return set()
        own = {field["name"] for field in part.get("fields", ())}
        return own.union(*(walk(f["type"]) for f in part.get("fields", ())), walk(part.get("items")))

    return walk(schema)


def test_every_field_of_the_old_schema_has_its_place_in_the_new_one():
    table = PAGE.read_text()
    new, told = schema_names("ls4.v1_0"), set(re.findall(r"`([\w-]+)`", table))
    catalogue = {"lsid", "dist", "white_mag", "xgboost", "is_star"}  # crossMatches: name, separation, mag, starScore
    for name in schema_names("ls4.v0_2") - catalogue:
        assert name in new or name in told, name
    assert not column(5) - schema_names("ls4.v0_2")


def test_our_column_names_fields_of_ours():
    assert not column(1) - schema_names("ls4.v1_0") - {"diaObject", "diaSource"}
