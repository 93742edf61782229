"""Dark and fringe masters through the real graph: made of registered frames, used by the images of their night."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import yaml

from resources import services
from resources.database import Database
from resources.services.dagster_ui import prepare_home
from resources.settings import Settings
from seechange_assets.partitions import Partition
from seechange_assets.simulation.survey import simulate_survey
from sql.models import PRODUCT_ROWS
from tests.pipeline.world import SEED, World

CCD = "01"
DARK_E_S, FRINGES = 1.0, 0.03
CALIBRATION_NIGHT, FIRST_NIGHT, SECOND_NIGHT = "2026-11-01", "2026-11-19", "2026-11-20"
STEPS = ["overscan", "bias", "linearity", "dark", "flat", "fringe"]
RECIPE = {
    # The camera leaves fringes out in r; here they are put in.
    "image": {"steps": STEPS, "skip_by_filter": {"r": []}},
    "master_fringe": {"steps": [step for step in STEPS if step != "fringe"], "validity_days": 0.3},
}


@pytest.fixture(scope="module")
def dark_world() -> Iterator[World]:
    """Services, masters of bias and flat, darks and five exposures each of two nights; nothing made of the last two."""
    home = Path(tempfile.mkdtemp(prefix="seechange-dark-"))
    (home / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    environment = {"SEECHANGE_HOME": str(home), "SEECHANGE_CONFIG": str(home / "recipe.yaml")}
    settings = Settings.from_environment(environment)
    try:
        services.up(settings, ui=False)
        world = World(home, environment)
        prepare_home(world.settings)
        Database(world.settings.database_url).upgrade()
        world.simulated = simulate_survey(
            home / "simulation", seed=SEED, exposures=33, ccds=(CCD,), reference_epochs=0, biases=3, flats=3, darks=5,
            dark_e_s=DARK_E_S, fringe_fraction=FRINGES, instrument="demo",
        )  # fmt: skip
        simulated = world.simulated
        files = [*simulated.biases, *simulated.flats, *simulated.darks, *simulated.science[:10]]
        assert world.ingest(files).code == 0
        with world.as_environment():
            make_masters(world, CALIBRATION_NIGHT, "master_bias", "master_flat")
            yield world
    finally:
        services.down(settings)
        shutil.rmtree(home)


def make_masters(world: World, night: str, *assets: str) -> None:
    """What the calibration sensor requests of one night."""
    world.session.instance.add_dynamic_partitions("calibration", [night])
    assert world.session.run("build_masters", {"calibration": night, "ccd": CCD}, list(assets)).success


def key_of(world: World, number: int) -> str:
    return world.simulated.keys[world.simulated.science[number]]


def made_image(world: World, key: str):
    """The stored image of an exposure; None if there is none."""
    table = PRODUCT_ROWS["image"]
    with world.session.store.database.session() as session:
        found = session.scalars(sa.select(table).where(table.partition == key)).all()
    return world.session.store.load("image", Partition(key, CCD)) if found else None


def waits_for(world: World, key: str) -> str | None:
    report = world.session.store.latest_report(key, CCD)
    assert (report.step, report.outcome) == ("image", "waiting")
    return report.waits_for


def test_masters_are_made_and_used_by_their_night_alone(dark_world: World) -> None:
    """In the order of a survey: each image waits for exactly what is missing, then goes on."""
    world, key = dark_world, key_of(dark_world, 0)
    assert {world.session.registry.get(key_of(world, n)).night for n in range(5)} == {FIRST_NIGHT}
    assert world.process(key, CCD, "image").success
    assert made_image(world, key) is None
    assert waits_for(world, key) == f"master_dark//{CCD}"

    make_masters(world, CALIBRATION_NIGHT, "master_dark")
    assert world.process(key, CCD, "image").success
    assert waits_for(world, key) == f"master_fringe//{CCD}"

    make_masters(world, FIRST_NIGHT, "master_fringe")
    assert world.process(key, CCD, "zp").success
    image = made_image(world, key)
    assert image.steps == dict.fromkeys(STEPS, "applied")
    assert set(image.masters) == {"bias", "dark", "flat", "fringe"}
    assert image.masters["dark"].startswith(f"{CALIBRATION_NIGHT}/")
    assert image.masters["fringe"].startswith(f"{FIRST_NIGHT}/")
    assert image.fringe_amplitude > 0
    assert "zp" in made_products(world, key)

    other = key_of(world, 5)
    assert world.session.registry.get(other).night == SECOND_NIGHT
    assert world.process(other, CCD, "image").success
    assert made_image(world, other) is None  # the fringes of the first night are no longer valid
    assert waits_for(world, other) == f"master_fringe//{CCD}"
    assert world.cli("verify").code == 0


def made_products(world: World, key: str) -> set[str]:
    with world.session.store.database.session() as session:
        return {
            name
            for name, table in PRODUCT_ROWS.items()
            if session.scalar(sa.select(sa.func.count()).select_from(table).where(table.partition == key))
        }


def test_the_masters_hold_what_was_put_in(dark_world: World) -> None:
    store = dark_world.session.store
    dark = store.load("master_dark", Partition(CALIBRATION_NIGHT, CCD))
    gain = store.load("image", Partition(key_of(dark_world, 0), CCD)).info.gain
    # Five darks of 120 s: each pixel to 0.02 e-/s, the median of the CCD far better.
    assert np.median(dark.data) * gain == pytest.approx(DARK_E_S, rel=0.05)
    assert len(dark.members) == 5
    fringe = store.load("master_fringe", Partition(FIRST_NIGHT, CCD))
    assert len(fringe.members) == 5
    assert fringe.filter == "r"
    good = fringe.flags == 0
    # Smoothing takes some of the pattern away, and what is left of the noise adds a little.
    assert fringe.data[good].std() == pytest.approx(FRINGES, rel=0.2)


def test_another_recipe_does_without_them(dark_world: World) -> None:
    """The same exposure of the second night under the camera's own recipe: made at once, and told apart by its id."""
    plain = World(dark_world.home, dark_world.environment | {"SEECHANGE_CONFIG": "", "SEECHANGE_TAG": "plain"})
    key = key_of(dark_world, 5)
    with plain.as_environment():
        make_masters(plain, CALIBRATION_NIGHT, "master_bias", "master_flat")
        result = plain.process(key, CCD, "image")
        assert result.success, plain.session.store.latest_report(key, CCD).message
        image = plain.session.store.load("image", Partition(key, CCD))
    assert image.steps == dict.fromkeys(("overscan", "bias", "linearity", "flat"), "applied")
    assert set(image.masters) == {"bias", "flat"}
    assert np.isnan(image.fringe_amplitude)
    assert plain.session.store.recipes["image"].id != dark_world.session.store.recipes["image"].id
