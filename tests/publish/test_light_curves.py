"""Light curves of eight epochs against truth and against an independent query, in any order of processing."""

import numpy as np
import pytest
import sqlalchemy as sa

from seechange_assets.errors import ProductNotFound
from sql.light_curves import light_curve
from sql.objects import ObjectRow
from sql.sky import separation_deg
from tests.publish.epochs import (
    IDS,
    SHAPE,
    light_curves,
    make_epoch,
    process,
    store_difference,
    transients,
    truth_njy,
)
from tests.publish.sky import MJD, tan_wcs


def survey(seed):
    sources = transients(np.random.default_rng(seed))
    return sources, [make_epoch(number, sources, seed) for number in range(8)]


def truth_of(sources, curves):
    """(source, light curve) of each object, by position; every source has one object."""
    wcs = tan_wcs(SHAPE)
    pairs, places = [], np.array(list(curves))
    for source in sources:
        middle = 3.5 if source.kind == "moving" else 0.0
        ra, dec = wcs.all_pix2world(source.x + middle * source.motion[0], source.y + middle * source.motion[1], 0)
        distance = 3600 * separation_deg(ra, dec, places[:, 0], places[:, 1])
        assert np.sum(distance < 5) == 1, source
        pairs.append((source, curves[tuple(places[np.argmin(distance)])]))
    return pairs


def pulls(pairs, kinds):
    """Forced fluxes against truth, in their errors, of every epoch of the sources that stand still."""
    found = []
    for source, curve in pairs:
        for point in curve if source.kind in kinds else ():
            if point["kind"] == "forced":
                truth = truth_njy(source.flux[round((point["mjd_mid"] - MJD) / 3)])
                found.append((point["mjd_mid"], (point["flux_njy"] - truth) / point["flux_njy_err"]))
    return np.array(found)


def check_pulls(pairs):
    """About 27 sources on 8 epochs: the width has an error of 0.05, the mean one of 0.07; tolerances of 3 sigma."""
    still = pulls(pairs, {"rising", "fading", "variable"})
    assert len(still) == 8 * sum(source.kind != "moving" for source, _ in pairs)
    before = pulls([(s, c) for s, c in pairs if s.kind == "rising"], {"rising"})
    before = before[before[:, 0] < MJD + 6.5]
    return still[:, 1], before[:, 1]


def test_one_object_each_and_forced_fluxes_true_also_before_the_first_detection(database):
    sources, epochs = survey(11)
    process(database, epochs, list(range(8)))
    curves = light_curves(database)
    assert len(curves) == len(sources)
    pull, before = check_pulls(truth_of(sources, curves))
    assert abs(pull.std() - 1) < 0.15
    assert abs(pull.mean()) < 0.25
    assert len(before) == 27
    assert abs(before.std() - 1) < 0.45


@pytest.mark.slow
def test_pulls_over_seeds(database, record_property):
    """Ten surveys: 2160 fluxes (width known to 0.016), 270 before the first detection (0.043)."""
    found = []
    for seed in range(100, 110):
        sources, epochs = survey(seed)
        process(database, epochs, list(range(8)))
        found.append(check_pulls(truth_of(sources, light_curves(database))))
        with database.session() as session:
            session.execute(
                sa.text("truncate measurements, forced_photometry, objects, differences, refs, exposures cascade")
            )
    pull, before = (np.concatenate(part) for part in zip(*found, strict=True))
    parts = (("pull", pull), ("before the first detection", before))
    figures = "; ".join(f"{name} {part.mean():+.3f} +- {part.std():.3f} (n={part.size})" for name, part in parts)
    record_property("pull", figures)
    assert abs(pull.std() - 1) < 0.1
    assert abs(before.std() - 1) < 0.1


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_gives_the_same_light_curves(database, seed):
    sources, epochs = survey(seed)
    process(database, epochs, list(range(8)), max_offset_arcsec=0.0)
    in_order = truth_of(sources, light_curves(database))
    with database.session() as session:
        session.execute(
            sa.text("truncate measurements, forced_photometry, objects, differences, refs, exposures cascade")
        )
    order = np.random.default_rng(seed).permutation(8).tolist()
    process(database, epochs, order, max_offset_arcsec=0.0)
    shuffled = truth_of(sources, light_curves(database))
    for (_, first), (_, second) in zip(in_order, shuffled, strict=True):
        assert [(p["kind"], p["exposure"]) for p in first] == [(p["kind"], p["exposure"]) for p in second]
        for a, b in zip(first, second, strict=True):
            if a["flux_njy"] is not None:
                assert a["flux_njy"] == pytest.approx(b["flux_njy"], abs=1e-3 * a["flux_njy_err"])


def test_a_light_curve_is_what_the_tables_say(database):
    _, epochs = survey(3)
    process(database, epochs, [3, 0, 7, 1, 5, 2, 6, 4])
    with database.session() as session:
        for item in session.scalars(sa.select(ObjectRow)):
            curve = light_curve(session, item.name, IDS)
            assert [p["mjd_mid"] for p in curve] == sorted(p["mjd_mid"] for p in curve)
            told = {
                kind: {p["exposure"] for p in curve if p["kind"] == kind} for kind in ("detection", "forced", "limit")
            }
            detected = set(
                session.scalars(sa.text("select exposure from measurements where object_id = :id"), {"id": item.id})
            )
            assert told["detection"] == detected
            assert told["forced"] == {f"ls4_{k}" for k in range(8)}
            assert told["limit"] == told["forced"] - detected
        with pytest.raises(ProductNotFound, match="no object"):
            light_curve(session, "SC1900a", IDS)
        assert light_curve(session, item.name, dict.fromkeys(IDS, "x" * 20)) == []


def test_a_bad_subtraction_has_no_fluxes_whatever_comes_later(database):
    """Its detections were never linked to objects: those that others find are not measured on it."""
    _, epochs = survey(4)
    process(database, epochs, [0])
    with database.session() as session:
        store_difference(session, epochs[1].difference)
    process(database, epochs, [2, 0])
    for curve in light_curves(database).values():
        assert {point["exposure"] for point in curve if point["kind"] == "forced"} == {"ls4_0", "ls4_2"}
