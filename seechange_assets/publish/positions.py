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

#: Columns of `detections_of` that are numbers, in the order of `mean_positions`.
_MEASURED = ("ra", "dec", "ra_err", "dec_err", "ra_dec_cov", "mjd_mid")


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
    from sql.objects import detections_of

    found = detections_of(session, ids, provenance_id)
    if until_mjd is not None:
        found = found[found["mjd_mid"] <= until_mjd]
    if len(found) == 0:
        return None
    keys = found["object_id"]
    start = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))  # they come object by object
    group = np.repeat(np.arange(len(start)), np.diff(start, append=len(found)))
    mine = found["is_of_recipe"]
    used = mine | ~np.isin(group, group[mine])
    ra, dec, ra_err, dec_err, cov, mjd = (found[name].astype(float) for name in _MEASURED)
    mean = mean_positions(
        group[used], ra[used], dec[used], ra_err[used], dec_err[used], cov[used], ra[start], dec[start],
        clip_sigma=clip_sigma,
    )  # fmt: skip
    first, last = np.minimum.reduceat(mjd, start), np.maximum.reduceat(mjd, start)
    exposures = np.unique(np.column_stack([group, found["exposure"]]), axis=0)
    n_detections = np.bincount(exposures[:, 0], minlength=len(start))
    return Means([uuid.UUID(bytes=bytes(key)) for key in keys[start]], mean, n_detections, first, last)


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
        "id": [str(key) for key in means.ids],
        "n_detections": means.n_detections, "first_mjd": means.first_mjd, "last_mjd": means.last_mjd,
        "mean_ra": mean.ra, "mean_dec": mean.dec, "mean_ra_err": mean.ra_err, "mean_dec_err": mean.dec_err,
        "mean_ra_dec_cov": mean.ra_dec_cov,
    }  # fmt: skip
    update_objects(session, {name: plain(np.asarray(column).tolist()) for name, column in told.items()})
