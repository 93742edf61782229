"""One CCD of 32 fails, at one asset after the other: 31 reach their alerts, the one says why, and is made again alone.

CCDs are tiny and most algorithms ready-made (`benchmarks/tiny_survey.py`); all else is real.
"""

import importlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.tiny_survey import TinySurvey
from benchmarks.trivial import ALGORITHMS, Tiny, replace_algorithms
from resources import services
from resources.database import Database
from resources.services.dagster_ui import prepare_home
from seechange_assets.science import field_kind
from tests.pipeline.test_failing_ccd import BAD, FUNCTIONS, REASON, faulty, shown_failures, state  # noqa: F401  (fixture)
from tests.pipeline.world import World

pytestmark = pytest.mark.faults
OTHERS = [ccd for ccd in Tiny.ccds if ccd != BAD]


class TinyWorld(World):
    """A survey of 32 tiny CCDs whose exposures come when a test says so."""

    instrument = Tiny.name


@pytest.fixture(scope="module")
def tiny() -> Iterator[TinyWorld]:
    home = Path(tempfile.mkdtemp(prefix="seechange-tiny-"))
    world = TinyWorld(home, {})
    replaced = [(importlib.import_module(f"seechange_assets.{module}"), names) for module, names in ALGORITHMS.items()]
    with pytest.MonkeyPatch.context() as patch, world.as_environment():
        try:
            services.up(world.settings, ui=False)
            prepare_home(world.settings)
            Database(world.settings.database_url).upgrade()
            world.survey = TinySurvey(world.settings, len(Tiny.ccds))
            world.survey.prepare(lambda _: None)
            for module, names in [*replaced, (field_kind, ["star_density"])]:
                for name in names:
                    patch.setattr(module, name, getattr(module, name))  # to be put back in the end
            replace_algorithms(home)
            yield world
        finally:
            services.down(world.settings)
            shutil.rmtree(home)


def new_exposure(world: TinyWorld) -> str:
    (key,) = world.survey.arrivals(1)
    (file,) = world.settings.drop.glob("*.fits")
    assert world.cli("ingest", str(file)).code == 0
    file.unlink()
    return key


@pytest.mark.parametrize("asset", FUNCTIONS)
def test_31_go_on(tiny, faulty, monkeypatch, asset):  # noqa: F811
    exposure = new_exposure(tiny)
    faulty(asset)
    answer = tiny.cli("process", exposure, "--json")
    monkeypatch.undo()
    assert answer.code == 1
    outcomes = {told["ccd"]: told["outcome"] for told in answer.json}
    assert outcomes == {BAD: "failed", **dict.fromkeys(OTHERS, "done")}
    told = state(tiny, exposure)
    assert (told["state"], told["counts"]) == ("failed", {"failed": 1, "done": 31})
    (bad,) = [ccd for ccd in told["ccds"] if ccd["ccd"] == BAD]
    assert (bad["step"], bad["reason"]) == (asset, f"TooFewStars: {REASON}")
    (shown,) = shown_failures(tiny, exposure)
    assert shown["stepKey"] == asset
    assert f"TooFewStars: {REASON}" in shown["error"]["message"]
    again = tiny.cli("process", exposure, "--ccd", BAD, "--json")
    assert (again.code, again.json[0]["outcome"]) == (0, "done"), again.err
    assert state(tiny, exposure)["counts"] == {"done": 32}


def test_all_of_it_is_sound(tiny):
    verified = tiny.cli("verify", "--json")
    assert verified.code == 0, verified.out + verified.err
