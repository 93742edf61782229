"""A world for the tests of each file of this folder; each test leaves it as it was or adds to it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources import services
from resources.settings import Settings
from tests.pipeline.world import World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Services and a processed survey for the tests of one file.

    What one file adds would take part in what another counts, and the order of files is nobody's.
    """
    home = Path(tempfile.mkdtemp(prefix="seechange-world-"))
    environment = {"SEECHANGE_HOME": str(home)}
    settings = Settings.from_environment(environment)
    try:
        services.up(settings, ui=False)
        world = World(home, environment)
        world.run_everything()
        yield world
    finally:
        services.down(settings)
        shutil.rmtree(home)


@pytest.fixture
def exposure(world: World) -> str:
    """Key of the exposure that went through the whole chain."""
    return world.simulated.keys[world.simulated.science[0]]


@pytest.fixture
def second_exposure(world: World) -> str:
    """Key of a registered exposure that the tests may process."""
    return world.simulated.keys[world.simulated.science[1]]
