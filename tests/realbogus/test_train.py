"""The shipped classifiers: their size and speed, their recipe, their operating point on unseen mosaics, their rerun."""

import time
from importlib.resources import files

import numpy as np
import pytest
import yaml

from seechange_assets.discover.scores import ScoresParameters
from seechange_assets.provenance import Recipes
from seechange_assets.realbogus import network
from seechange_assets.realbogus.network import evaluate, load_weights, weights_digest
from seechange_assets.realbogus.painters import KINDS, REAL_KINDS
from seechange_assets.realbogus.scores import LEARNED
from seechange_assets.realbogus.train import SEED, operating_cut, rates, sample, scored, trained

UNSEEN = 31337
FOLDER = files("seechange_assets.realbogus")


@pytest.mark.parametrize("name", LEARNED)
def test_weights_are_small_and_stand_beside_their_operating_point(name):
    assert len(FOLDER.joinpath(f"{name}.npz").read_bytes()) < 500_000
    report = yaml.safe_load(FOLDER.joinpath(f"{name}.yaml").read_text())
    assert set(report["missed_by_kind"]) == set(REAL_KINDS)
    assert set(report["passed_by_kind"]) == set(KINDS) - set(REAL_KINDS)


def test_the_default_cut_is_the_operating_point():
    assert ScoresParameters().cut == yaml.safe_load(FOLDER.joinpath("cnn-1.yaml").read_text())["cut"]


def test_new_weights_make_scores_stale(monkeypatch):
    def recipe() -> str:
        return Recipes({"scores": ScoresParameters()}, {"scores": ()})["scores"].id

    before = recipe()
    assert ScoresParameters().critical_values()["weights"] == weights_digest("cnn-1")
    assert weights_digest("cnn-1") != weights_digest("tabular-1")
    assert "weights" not in ScoresParameters(algorithm="random").critical_values()
    monkeypatch.setattr(network, "weights_digest", lambda _name: "of other weights")
    assert recipe() != before


def test_a_detection_takes_less_than_ten_milliseconds():
    generator = np.random.default_rng(1)
    stamps = generator.normal(size=(256, 3, 33, 33)).astype(np.float32)
    features = generator.normal(size=(256, len(network.FEATURES))).astype(np.float32)
    weights = load_weights("cnn-1")
    start = time.process_time()
    evaluate(weights, stamps, features)
    assert (time.process_time() - start) / 256 < 0.01


def _at_one_percent(seed: int, n_mosaics: int) -> dict:
    data = sample(seed, n_mosaics)
    score = scored("cnn-1", load_weights("cnn-1"), data)
    return rates(score, *data[2:], operating_cut(score, data[2]))


def test_misses_two_percent_at_one_percent_false():
    missed, number = _at_one_percent(UNSEEN, 10)["missed"]
    # The cut itself is uncertain: the hundredth part of some 300 artefacts is 3 of them.
    assert missed < 0.02 + 3 * np.sqrt(0.02 / number) + 0.01


@pytest.mark.slow
def test_misses_two_percent_at_one_percent_false_on_many():
    missed, number = _at_one_percent(UNSEEN + 1, 120)["missed"]
    assert number > 3000
    assert missed <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_training_again_gives_the_same_weights(name):
    data, same = sample(SEED, 4), sample(SEED, 4, workers=2)
    assert all((a == b).all() for a, b in zip(data, same, strict=True))
    first, second = trained(name, data, epochs=2), trained(name, same, epochs=2)
    assert all((first[key] == second[key]).all() for key in first)
