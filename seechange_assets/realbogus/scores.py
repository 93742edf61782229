"""Real/bogus scores of measurements, by the name of an algorithm."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import ParameterError
from seechange_assets.products import Cutouts, Measurements, Scores

ScoreFunction = Callable[[Cutouts, Measurements], NDArray[np.float64]]


def score(cutouts: Cutouts, measurements: Measurements, *, algorithm: str = "cnn-1", cut: float = 0.5) -> Scores:
    """Score every measurement between 0 (artefact) and 1 (astrophysical).

    Parameters
    ----------
    cutouts, measurements
        Of the same detections; row ``detection`` of the measurements names the stamp.
    algorithm : str
        ``cnn-1`` (a small network on the three stamps and ten measured values), ``tabular-1`` (on the measured
        values alone), or for tests ``random`` (uniform, fixed seed) and ``allperfect`` (always 1).
    cut : float
        From this score on a row is real. What either network misses and lets pass stands in the ``.yaml``
        beside its weights.

    Returns
    -------
    Scores
        In the order of the measurements.

    Raises
    ------
    ParameterError
        For an unknown algorithm.
    """
    from astropy.table import Table

    if algorithm not in ALGORITHMS:
        raise ParameterError(
            f"scores.algorithm {algorithm!r} is not known: expected one of {', '.join(sorted(ALGORITHMS))}"
        )
    values = ALGORITHMS[algorithm](cutouts, measurements).astype(np.float32)
    return Scores(Table({"score": values, "is_real": values >= np.float32(cut)}), algorithm, float(cut))


def _cnn_1(cutouts: Cutouts, measurements: Measurements) -> NDArray[np.float64]:
    from seechange_assets.realbogus.network import evaluate, load_weights, network_input

    if len(measurements.table) == 0:
        return np.empty(0)
    return evaluate(load_weights("cnn-1"), *network_input(cutouts, measurements))


def _tabular_1(cutouts: Cutouts, measurements: Measurements) -> NDArray[np.float64]:
    from seechange_assets.realbogus.network import evaluate_features, load_weights, network_input

    if len(measurements.table) == 0:
        return np.empty(0)
    return evaluate_features(load_weights("tabular-1"), network_input(cutouts, measurements)[1])


def _random(_: Cutouts, measurements: Measurements) -> NDArray[np.float64]:
    return np.random.default_rng(0).random(len(measurements.table))


def _allperfect(_: Cutouts, measurements: Measurements) -> NDArray[np.float64]:
    return np.ones(len(measurements.table))


ALGORITHMS: dict[str, ScoreFunction] = {
    "cnn-1": _cnn_1,
    "tabular-1": _tabular_1,
    "random": _random,
    "allperfect": _allperfect,
}
#: Algorithms whose weights lie beside this module.
LEARNED = ("cnn-1", "tabular-1")
