"""The table of docs/alerts.md against real packets and our own schemas."""

import re
from pathlib import Path

import fastavro
import pytest

from seechange_assets.publish.packets import SCHEMA_FOLDER
from tests.data import test_data

PAGE = Path(__file__).parents[2] / "docs" / "alerts.md"


def column(number):
    """Names in a column of the comparison: all in backticks, without explanations."""
    table = PAGE.read_text().split("| `ls4.v1_0` | LSST |")[1].split("\n\n")[0]
    cells = [line.split("|")[number] for line in table.splitlines()[2:]]
    return {name.split(".")[-1] for cell in cells for name in re.findall(r"`([\w.-]+)`", cell)}


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
