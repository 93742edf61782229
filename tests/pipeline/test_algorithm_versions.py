"""Whoever changes what a process makes of the same input has to raise its algorithm version.

Else old and new products would carry one provenance id. See `tests.pipeline.fingerprints` for how to update the table.
"""

import os
from dataclasses import replace

import numpy as np
import pytest

from seechange_assets.partitions import Partition
from sql.models import PRODUCT_ROWS, MasterRow, ReferenceRow
from tests.pipeline.fingerprints import Entry, differs, entry_of, fingerprint, judge, read_table, write_table

UPDATE = "UPDATE_ALGORITHM_VERSIONS"


@pytest.fixture(scope="module")
def made(world) -> dict[str, Entry]:
    """The products of one CCD of the simulated survey."""
    store, found = world.session.store, {}
    exposure = world.simulated.keys[world.simulated.science[0]]
    with store.database.session() as session:
        night = session.query(MasterRow).filter(MasterRow.ccd == "01").first().partition
        field = session.query(ReferenceRow).filter(ReferenceRow.ccd == "01").first().partition
    for process in PRODUCT_ROWS:
        key = night if process.startswith("master_") else field if process == "reference" else exposure
        if (row := store.row(process, Partition(key, "01"))) is not None:
            found[process] = entry_of(store.recipes[process], store.load_row(row))
    return found


def test_no_output_changed_under_its_version(world, made):
    recipes, table = world.session.store.recipes, read_table()
    verdicts = {process: judge(process, recipes.upstreams(process), table, made) for process in made}
    guilty = [process for process, verdict in verdicts.items() if verdict == "raise"]
    assert not guilty, f"the output of {', '.join(guilty)} changed: raise algorithm_version in its Parameters by one"
    behind = [process for process, verdict in verdicts.items() if verdict == "update"]
    if os.environ.get(UPDATE):
        write_table(made)
    else:
        assert not behind, f"the table is behind for {', '.join(behind)}: {UPDATE}=1 python -m pytest {__file__}"


def test_every_process_is_watched(made):
    unused = {"master_dark", "master_fringe"}  # the demonstration camera needs neither
    assert made.keys() >= PRODUCT_ROWS.keys() - unused


def entry(version: str = "1", value: float = 1.0) -> Entry:
    return Entry(version, "p", {".data": [10, value, value, value]})


def test_verdicts():
    old = {"image": entry(), "zp": entry()}
    assert judge("zp", ("image",), old, {"image": entry(), "zp": entry()}) == "same"
    assert judge("zp", ("image",), old, {"image": entry(), "zp": entry(value=2.0)}) == "raise"
    assert judge("zp", ("image",), old, {"image": entry(), "zp": entry("2", 2.0)}) == "update"
    assert judge("zp", ("image",), old, {"image": entry(value=3.0), "zp": entry(value=2.0)}) == "update"
    assert judge("zp", ("image",), {}, {"image": entry(), "zp": entry()}) == "update"


def test_a_small_change_is_seen_and_rounding_is_not():
    data = np.random.default_rng(1).normal(100.0, 5.0, (512, 512)).astype(np.float32)
    base = Entry("1", "p", {".data": fingerprint(".data", data)})
    rounded = Entry("1", "p", {".data": fingerprint(".data", data * np.float32(1 + 1e-6))})
    assert not differs(base, rounded)
    changed = data.copy()
    changed[100:120, 100:120] += 20.0
    assert differs(base, Entry("1", "p", {".data": fingerprint(".data", changed)}))
    assert differs(base, replace(base, numbers={".data": [1, *base.numbers[".data"][1:]]}))
