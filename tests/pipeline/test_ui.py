"""What a person sees in the Dagster UI: the lineage, the numbers of a product, its picture. Read in a real browser."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pytest

from resources import services
from resources.services.supervisor import Supervisor
from seechange_assets.cli.services import start
from seechange_assets.partitions import Partition
from tests.pipeline.world import World

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'seechange-dagster[dev]'")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000
WINDOW = {"width": 1600, "height": 1000}
# The sensors would find the exposures too and run everything again while the browser looks.
WITHOUT_SENSORS = """
import dagster as dg
from resources.settings import Settings
from seechange_assets.definitions import build_definitions

@dg.definitions
def defs():
    whole = build_definitions(Settings.from_environment())
    return dg.Definitions(
        assets=whole.assets, asset_checks=whole.asset_checks, jobs=whole.jobs, executor=whole.executor,
        resources=whole.resources,
    )
"""
WORKSPACE = "load_from: [{python_file: {relative_path: without_sensors.py, location_name: seechange}}]"
WITH_PREVIEW = ("image", "background", "psf", "diff", "cutouts")


@pytest.fixture(scope="module")
def chromium_path() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser: apt-get install chromium")
    return path


@pytest.fixture
def surveyed(chromium_path: str, short_home: Path) -> Iterator[World]:
    """One CCD of one exposure through the whole chain, then the UI on a free port."""
    (short_home / "without_sensors.py").write_text(WITHOUT_SENSORS)
    (short_home / "workspace.yaml").write_text(WORKSPACE)
    world = World(short_home, {"SEECHANGE_UI_PORT": "0", "SEECHANGE_WORKSPACE": str(short_home / "workspace.yaml")})
    simulated = world.simulated
    with world.as_environment():
        start(world.settings, ui=False)
        files = [*simulated.biases, *simulated.flats, *simulated.references, simulated.science[0]]
        assert world.ingest(files).code == 0
        world.build_masters()
        for file in simulated.references:
            assert world.process(simulated.keys[file], "01", "zp").success
        world.build_references()
        assert world.process(simulated.keys[simulated.science[0]], "01").success
        start(world.settings, ui=True)
    yield world
    services.down(world.settings)


@pytest.fixture
def page(chromium_path: str):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path, args=FLAGS)
        page = browser.new_page(viewport=WINDOW)
        page.set_default_timeout(PATIENCE_MS)
        yield page
        browser.close()


def open_partition(page, world: World, asset: str) -> None:
    exposure = world.simulated.keys[world.simulated.science[0]]
    query = urlencode({"view": "partitions", "partition": f"01|{exposure}"})
    page.goto(f"{world.settings.ui_url}/assets/{asset}?{query}")
    page.get_by_text("file", exact=True).wait_for()  # the last row of the metadata


def shown(page, name: str) -> str:
    """What the page says beside a name in the table of metadata."""
    row = page.locator("tr", has=page.get_by_text(name, exact=True)).filter(visible=True)
    return row.locator("td").nth(1).inner_text()


def test_a_person_finds_lineage_numbers_and_pictures(surveyed, page, tmp_path):
    lineage_has_every_asset(page, surveyed, tmp_path / "lineage.png")
    overview_explains_the_asset(page, surveyed, tmp_path / "overview.png")
    partition_has_its_numbers(page, surveyed, tmp_path)
    for asset in WITH_PREVIEW:
        preview_is_a_picture(page, surveyed, asset, tmp_path / f"preview_{asset}.png")
    check_is_visible(page, surveyed, tmp_path / "check.png")

    browsers = [c for c in psutil.Process(os.getpid()).children(recursive=True) if "chrom" in c.name()]
    assert browsers
    page.context.browser.close()
    assert psutil.wait_procs(browsers, timeout=10)[1] == []
    assert "dagster" in services.down(surveyed.settings)
    assert Supervisor(surveyed.home).leftovers() == []


def lineage_has_every_asset(page, world, screenshot):
    page.set_viewport_size({"width": 2560, "height": 1300})  # wide enough to read the names in the picture
    page.goto(f"{world.settings.ui_url}/asset-groups")
    page.get_by_text("publish", exact=True).filter(visible=True).first.wait_for()
    page.keyboard.press("Alt+e")  # "Expand all groups" of the menu
    names = list(world.session.store.recipes)
    assert len(names) >= 18
    for name in names:
        page.get_by_text(name, exact=True).filter(visible=True).first.wait_for()
    page.wait_for_timeout(1500)  # the graph moves into place
    page.screenshot(path=screenshot)
    page.set_viewport_size(WINDOW)


def overview_explains_the_asset(page, world, screenshot):
    page.goto(f"{world.settings.ui_url}/assets/zp")
    page.get_by_text("Zero point, aperture corrections and limiting magnitude.").wait_for()
    parameters = page.locator("tr", has=page.get_by_text("parameters", exact=True))
    parameters.get_by_text("match_radius_arcsec").wait_for()
    page.screenshot(path=screenshot)


def partition_has_its_numbers(page, world, folder):
    exposure = world.simulated.keys[world.simulated.science[0]]
    numbers = {"zp": ("zp", "zp_err", "limiting_magnitude"), "diff": ("limiting_magnitude", "alignment_rms_px")}
    for asset, names in numbers.items():
        row = world.session.store.row(asset, Partition(exposure, "01"))
        open_partition(page, world, asset)
        for name in names:
            assert float(shown(page, name)) == pytest.approx(row.summary[name], rel=1e-3), name
        assert shown(page, "file") == row.filepath
        page.screenshot(path=folder / f"{asset}.png")


def preview_is_a_picture(page, world, asset, screenshot):
    open_partition(page, world, asset)
    link, picture = page.get_by_text("[Show Markdown]"), page.locator('img[alt="preview"]')
    link.or_(picture).wait_for()
    if link.is_visible():  # Dagster shows a short text at once, a long one when asked
        link.click()
    picture.wait_for()
    assert picture.get_attribute("src").startswith("data:image/png;base64,")
    width, height = picture.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert min(width, height) >= 128  # large enough to see something
    page.screenshot(path=screenshot)


def check_is_visible(page, world, screenshot):
    page.goto(f"{world.settings.ui_url}/assets/zp?view=checks")
    page.get_by_text("zero_point_scatter", exact=True).filter(visible=True).first.click()
    page.get_by_text("at most 0.1 mag").filter(visible=True).first.wait_for()
    page.get_by_text("Passed", exact=True).filter(visible=True).first.wait_for()
    page.screenshot(path=screenshot)
