"""The report of a night: its numbers, its pictures, read in a real browser, and that it needs no other file."""

import re
import shutil
from datetime import UTC, datetime
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import dagster as dg
import numpy as np
import pytest

from seechange_assets import partitions
from seechange_assets.assess.charts import Band, bars, focal_plane, over_time
from seechange_assets.assess.night_report import headline, night_report, render, write
from seechange_assets.nights import CcdNumbers, CcdState, ExposureState, NightNumbers
from tests.pipeline.test_ui import FLAGS

CCDS = tuple(f"{number:02d}" for number in range(1, 33))
LAYOUT = {ccd: divmod(number, 8) for number, ccd in enumerate(CCDS)}
REASON = "TooFewStars: psf: 3 usable stars found, 10 required. <script>alert(1)</script> & more"


def one_night(n_exposures=20):
    rng = np.random.default_rng(3)
    exposures, ccds = [], []
    for number in range(n_exposures):
        key, mjd = f"ls4_{number:03d}", 61366.1 + number / 1000
        states = [CcdState(ccd, "done") for ccd in CCDS]
        if number == 4:
            states[6] = CcdState("07", "failed", "psf", REASON)
        if number == 5:
            states[7] = CcdState("08", "waiting", "diff", "no reference covers it")
        exposures.append(ExposureState(key, "2026-11-22", mjd, datetime(2026, 11, 22, tzinfo=UTC), None, tuple(states)))
        for state in states:
            is_done = state.state == "done"
            numbers = {
                "fwhm_px": float(2.2 + 0.1 * rng.normal()),
                "zero_point": 25.0 + 0.01 * number,
                "scatter_mag": 0.02,
                "limiting_magnitude": 21.0,
                "residual_mas": 40.0,
                "n_detections": 12,
                "n_alerts": 2,
            }
            ccds.append(CcdNumbers(key, mjd, state, filter="r", seconds=5.0, **(numbers if is_done else {})))
    steps = (
        {"step": "image", "computed": 640, "waiting": 0, "failed": 0, "median_s": 0.5, "longest_s": 1.0},
        {"step": "psf", "computed": 639, "waiting": 0, "failed": 1, "median_s": 0.4, "longest_s": 2.0},
    )
    return NightNumbers("2026-11-22", "ls4", tuple(exposures), tuple(ccds), steps, LAYOUT)


@pytest.mark.parametrize("n_exposures", [1, 20])
def test_every_picture_is_well_formed(n_exposures):
    page = render(one_night(n_exposures))
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 1 + 7 + 7
    for picture in pictures:
        tree = ET.fromstring(picture)
        for element in tree.iter():
            assert "nan" not in " ".join(element.attrib.values()).lower()


def test_an_empty_night_has_a_page():
    nothing = NightNumbers("2026-11-22", "ls4", (), (), (), {})
    assert headline(nothing)["seeing [px]"] is None
    assert "no data" in render(nothing)


def test_it_needs_no_other_file_and_trusts_no_text():
    page = render(one_night())
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)\s*=|url\(|@import", page)


def test_the_headline_counts():
    told = headline(one_night())
    assert (told["exposures"], told["CCDs"], told["CCDs done"]) == (20, 640, 638)
    assert (told["CCDs failed"], told["CCDs waiting"]) == (1, 1)
    assert (told["detections"], told["alerts"]) == (638 * 12, 638 * 2)
    assert told["seeing [px]"] == pytest.approx(2.2, abs=0.02)


def test_an_exposure_with_a_failed_ccd_is_not_done():
    exposures = one_night().exposures
    assert [exposures[i].state for i in (3, 4, 5)] == ["done", "failed", "waiting"]


@pytest.mark.parametrize("served", ["http://127.0.0.1:3001", None])
def test_the_link_is_one_that_a_browser_follows(tmp_path, served):
    """From Dagster's page, which came by http, to a file where nothing serves it."""
    settings = SimpleNamespace(home=tmp_path, reports_url=served)
    nights = SimpleNamespace(numbers=lambda _night: one_night(1))
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(partitions.night.name, ["2026-11-22"])
    result = dg.materialize(
        [night_report],
        partition_key="2026-11-22",
        resources={"nights": nights, "settings": settings},
        instance=instance,
    )
    (made,) = result.asset_materializations_for_node("night_report")
    file = tmp_path / "reports" / "ls4" / "2026-11-22.html"
    assert file.exists()
    assert made.metadata["page"].value == (f"{served}/ls4/2026-11-22.html" if served else file.as_uri())


def test_charts_take_odd_values():
    assert "no data" in over_time([], x_label="h", y_label="y")
    assert over_time([Band.of(0.0, [0.0])], x_label="h", y_label="y").count("<circle") == 1
    assert over_time([Band.of(1e6, [1e-9, 2e-9])], x_label="h", y_label="y").count("<circle") == 1
    assert "no data" in bars([], label="s")
    assert focal_plane({"01": 1.0}, {"01": (0, 0), "02": (0, 1)}, label="x").count("<rect") == 2
    assert focal_plane({}, {}, label="x").startswith("<svg")


def test_a_browser_shows_it(tmp_path):
    """All pictures have a size, the failed CCD stands there with its reason, nothing is asked of a network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'seechange-dagster[dev]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser: apt-get install chromium")
    path = write(render(one_night()), tmp_path / "deep" / "night.html")
    asked, complaints = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1240, "height": 1000})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(path.as_uri())
        boxes = [picture.bounding_box() for picture in page.locator("svg").all()]
        row = page.locator("tr.failed").first.inner_text()
        page.screenshot(path=tmp_path / "night.png", full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert asked == [path.as_uri()]
    assert complaints == []
    assert len(boxes) == 15
    assert min(min(box["width"], box["height"]) for box in boxes) > 30
    assert row.split("\t") == ["ls4_004", "07", "failed", "psf", REASON]
    assert wide <= 1240
    assert sorted(file.name for file in path.parent.iterdir()) == ["night.html"]
