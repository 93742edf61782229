"""What is flagged bad leaves light curves and the histories in packets."""

import pytest

from sql.base import deterministic_id
from sql.light_curves import light_curve
from sql.models import AssociationSetRow, ForcedPhotometrySetRow
from tests.publish.nights import night, packets
from tests.publish.sky import MJD, PROVENANCES

RECIPES = {name: PROVENANCES[name] for name in ("associations", "forced_photometry", "diff")}


def flag(database, exposure, bitflag=1):
    """The sets of one exposure, with a flag they inherit."""
    sizes = {"associations": {"n_associated": 3, "n_new_objects": 0}, "forced_photometry": {"n_objects": 3}}
    with database.session() as session:
        for table, name in ((AssociationSetRow, "associations"), (ForcedPhotometrySetRow, "forced_photometry")):
            session.merge(table(
                id=deterministic_id(name, exposure), partition=exposure, ccd="S1", provenance_id=PROVENANCES[name],
                filepath=f"{exposure}/{name}", sha256="0" * 64, content_hash="0" * 64, n_bytes=1, summary={}, inputs={},
                upstream_bitflag=bitflag, bitflag=bitflag, **sizes[name],
            ))  # fmt: skip


@pytest.mark.parametrize("bitflag", [0, 1 << 4])
def test_flagged_detections_are_in_no_history(database, bitflag):
    """Nor does a place where something was detected, if badly, count as empty; without flags all is told."""
    for number in range(3):
        night(database, f"ls4_{number}", MJD + number)
    flag(database, "ls4_1", bitflag)
    night(database, "ls4_3", MJD + 3)
    seen = [0, 2, 3] if bitflag else [0, 1, 2, 3]
    for name, alert in packets(database).items():
        assert alert["diaSource"]["visit"] == "ls4_3"  # the newest of each object
        assert [row["visit"] for row in alert["prvDiaSources"]] == [f"ls4_{k}" for k in seen[:-1]]
        assert [row["visit"] for row in alert["prvDiaForcedSources"]] == [f"ls4_{k}" for k in seen]
        assert alert["prvDiaNonDetectionLimits"] is None
        with database.session() as session:
            curve = light_curve(session, name, RECIPES)
        for kind in ("detection", "forced"):
            assert [point["exposure"] for point in curve if point["kind"] == kind] == [f"ls4_{k}" for k in seen]
        assert not [point for point in curve if point["kind"] == "limit"]
