"""Scores of real ZTF alerts beside ZTF's own verdicts: the network has seen neither the camera nor a real image."""

import sys
from itertools import pairwise

import numpy as np
import pytest

from seechange_assets.discover.scores import ScoresParameters
from seechange_assets.realbogus.scores import score
from tests.data import test_data
from tests.realbogus.ztf import measured, read_alerts

BINS = {"rb": (0, 0.3, 0.5, 0.65, 0.8, 0.9, 1.01), "drb": (0, 0.3, 0.65, 0.9, 1.01)}


@pytest.fixture(scope="module")
def judged():
    """Columns rb, drb and score of all triplets."""
    alerts = read_alerts(test_data("alerts"))
    scores = [float(score(*measured(alert)).table["score"][0]) for alert in alerts]
    return {"rb": np.array([a.rb for a in alerts]), "drb": np.array([a.drb for a in alerts]), "score": np.array(scores)}


def _table(judged, cut: float) -> str:
    lines = [f"{judged['score'].size} triplets; scores at 10, 50, 90 per cent; fraction from {cut} on"]
    for name, edges in BINS.items():
        for low, high in pairwise(edges):
            chosen = judged["score"][(judged[name] >= low) & (judged[name] < high)]
            if chosen.size:
                spread = " ".join(f"{value:.3f}" for value in np.percentile(chosen, [10, 50, 90]))
                lines.append(
                    f"{name:3s} {low:.2f}-{high:.2f} n {chosen.size:3d}  {spread}  {np.mean(chosen >= cut):.2f}"
                )
    return "\n".join(lines)


def test_scores_follow_the_verdicts_of_ztf(judged):
    cut = ScoresParameters().cut
    sys.stdout.write("\n" + _table(judged, cut) + "\n")
    good, poor = judged["score"][judged["drb"] > 0.9], judged["score"][judged["drb"] < 0.3]
    assert good.size > 200
    assert poor.size >= 10
    # Without any training on them: most of what ZTF trusts passes, most of what it rejects does not. drb is a network's
    # opinion and the subtraction is another one's, so agreement of some 0.9 is all that can be asked for.
    assert np.mean(good >= cut) > 0.85
    assert np.mean(poor >= cut) < 0.4
    assert np.median(good) > 0.9
    assert np.median(poor) < 0.1
