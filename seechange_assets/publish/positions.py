"""Mean positions of objects, from the measurements in the database."""

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import plain

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from seechange_assets.science.mean_position import MeanPositions


class Means(NamedTuple):
    """Objects, their mean positions, numbers of exposures with a detection, and first and last time."""

    ids: list[uuid.UUID]
    mean: "MeanPositions"
    n_detections: NDArray[np.int64]
    first_mjd: NDArray[np.float64]
    last_mjd: NDArray[np.float64]


def means_of(
    session: "Session", ids: Sequence[uuid.UUID], provenance_id: str | None = None, clip_sigma: float = 3.0,
    until_mjd: float | None = None,
) -> Means | None:  # fmt: skip
    """Mean positions of those of the objects that have a detection (by some time); None if none has.

    They are means of the detections of one recipe where it has some, lest a night that was processed twice
    count twice; of all without one.
    """
    from seechange_assets.science.mean_position import mean_positions
    from sql.objects import DETECTION_COLUMNS, detections_of

    found = [row for row in detections_of(session, ids) if until_mjd is None or row.mjd_mid <= until_mjd]
    if not found:
        return None
    columns = dict(zip(DETECTION_COLUMNS, zip(*found, strict=True), strict=True))
    _, start, group = np.unique([key.bytes for key in columns["object_id"]], return_index=True, return_inverse=True)
    mine = np.array([value == provenance_id for value in columns["provenance_id"]], bool)
    used = mine | ~np.isin(group, group[mine])
    ra, dec, ra_err, dec_err, cov = (np.array(columns[name], float) for name in DETECTION_COLUMNS[1:6])
    mean = mean_positions(
        group[used], ra[used], dec[used], ra_err[used], dec_err[used], cov[used], ra[start], dec[start],
        clip_sigma=clip_sigma,
    )  # fmt: skip
    mjd, n = np.array(columns["mjd_mid"], float), len(start)
    first, last = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(first, group, mjd)
    np.maximum.at(last, group, mjd)
    seen = set(zip(group.tolist(), columns["exposure"], strict=True))
    n_detections = np.bincount([k for k, _ in seen], minlength=n)
    return Means([columns["object_id"][k] for k in start], mean, n_detections, first, last)


def refresh_objects(
    session: "Session", ids: Sequence[uuid.UUID], provenance_id: str | None = None, clip_sigma: float = 3.0
) -> None:
    """Recompute mean position, number of detections and first and last time of these objects.

    Objects without detections stay as they are.
    """
    from sql.objects import update_objects

    means = means_of(session, ids, provenance_id, clip_sigma)
    if means is None:
        return
    mean = means.mean
    told: dict[str, Any] = {
        "id": means.ids, "n_detections": means.n_detections, "first_mjd": means.first_mjd, "last_mjd": means.last_mjd,
        "mean_ra": mean.ra, "mean_dec": mean.dec, "mean_ra_err": mean.ra_err, "mean_dec_err": mean.dec_err,
        "mean_ra_dec_cov": mean.ra_dec_cov,
    }  # fmt: skip
    values = {name: plain(list(column)) for name, column in told.items()}
    update_objects(session, [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)])
