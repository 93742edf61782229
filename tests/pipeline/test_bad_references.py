"""A reference that cannot be subtracted: a typed error that says why, and nothing written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from io_managers.external_references import register_reference
from seechange_assets.instruments.base import get_instrument
from seechange_assets.partitions import Partition
from seechange_assets.products import Reference, header_from_text, header_text
from seechange_assets.science.psf import gaussian_psf
from sql.models import ReportRow
from tests.pipeline.test_references import CCD, new_exposure, reference_rows, without_other_references


def _with_header(reference: Reference, **cards: Any) -> Reference:
    header = header_from_text(reference.wcs.header)
    header.update(cards)
    return replace(reference, wcs=replace(reference.wcs, header=header_text(header)))


def elsewhere(reference: Reference) -> Reference:
    return _with_header(reference, CRVAL2=header_from_text(reference.wcs.header)["CRVAL2"] + 1.0)


def coarse(reference: Reference) -> Reference:
    header = header_from_text(reference.wcs.header)
    return _with_header(reference, **{name: 2.5 * header[name] for name in header if name[:2] in ("CD", "A_", "B_")
                                      and isinstance(header[name], float)})  # fmt: skip


def masked(reference: Reference) -> Reference:
    flags = np.ones_like(reference.flags)
    flags[: len(flags) // 12] = 0
    return replace(reference, flags=flags)


def all_nan(reference: Reference) -> Reference:
    return replace(reference, data=np.full_like(reference.data, np.nan))


def wide_psf(reference: Reference) -> Reference:
    wide = gaussian_psf(14.0, reference.data.shape, 21)
    return replace(reference, psf=replace(wide, photometry=reference.psf.photometry))


def other_filter(reference: Reference) -> Reference:
    return replace(reference, info=replace(reference.info, filter="i"))


def shallow_cover(reference: Reference) -> Reference:
    """Half of the field."""
    half = len(reference.data) // 2
    return replace(
        reference, data=reference.data[:half], variance=reference.variance[:half], flags=reference.flags[:half]
    )


@pytest.fixture(scope="module")
def exposure(world: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_exposure(world, Path(tmp_path_factory.mktemp("new")), 3)


@pytest.mark.parametrize(
    ("spoil", "outcome", "error", "said"),
    [
        (masked, "failed", "ReferenceUnusable", "is masked"),
        (all_nan, "failed", "ReferenceUnusable", "no finite pixel"),
        (coarse, "failed", "ReferenceUnusable", "pixel scales"),
        (wide_psf, "failed", "ReferenceUnusable", "does not fit its stamp"),
        (elsewhere, "waiting", "ReferenceNotFound", "no reference in r covers"),
        (shallow_cover, "waiting", "ReferenceNotFound", "no reference in r covers"),
        (other_filter, "waiting", "ReferenceNotFound", "no reference in r covers"),
    ],
)
def test_nothing_is_written(world, exposure, spoil, outcome, error, said):
    store = world.session.store
    good = store.reference(str(reference_rows(world)[0].id))
    with without_other_references(world):
        register_reference(store, get_instrument("demo"), spoil(good))
        before = world.counts(), world.files().keys()
        result = world.process(exposure, CCD)
        assert result.success == (outcome == "waiting")
        assert (world.counts(), world.files().keys()) == before
        with store.database.session() as session:
            report = session.get(ReportRow, (exposure, CCD, "diff"))
    assert (report.outcome, report.error) == (outcome, error)
    assert said in report.message
    assert len(report.message.splitlines()) == 1
    assert store.row("diff", Partition(exposure, CCD)) is None
    assert store.row("zp", Partition(exposure, CCD)) is not None  # what was made before stays
