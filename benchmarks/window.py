"""`make bench-window`: Dagster's pages, the sensor and the commands in a window of 3,000 exposures of 32 CCDs.

    make bench-window                                  about half an hour, most of it for making the rows
    make bench-window ARGS="--exposures 600 --json"

The real definitions and services with tiny CCDs (`benchmarks/tiny_survey.py`). One exposure goes through the chain;
its rows, in the survey's tables and in Dagster's, are then copied by the database itself to as many exposures of ten
nights. Timed before and after: new exposures from the drop directory to the alerts of their CCDs. Timed after: the
pages in a real browser, `retire` of six nights and `activate` of one, with what Dagster counts each time.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402  (after the number of threads is set)
import typer  # noqa: E402

from benchmarks.orchestration import Night  # noqa: E402
from benchmarks.seed import WindowSeed  # noqa: E402
from benchmarks.tiny_survey import settings_of  # noqa: E402
from resources import services  # noqa: E402
from seechange_assets.cli.common import print_json, progress_bar  # noqa: E402

Show = Callable[[str], None]
N_NIGHTS = 10
#: Exposures that are timed one by one.
N_TIMED = 5
#: Loads of a page; the first is cold.
N_LOADS = 4
#: A page that asks nothing for so long has all it wants [s].
_QUIET_S = 0.5
ASSETS = ("image", "zp", "diff", "alerts")
COUNTS = "{ assetNodes { assetKey { path } partitionStats { numMaterialized numFailed } } }"
#: Page -> (address below the UI, text that a person waits for, beside every answer of the server).
PAGES = {
    "asset": ("/assets/diff", "Latest materialization"),
    "asset, partitions": ("/assets/diff?view=partitions", "Materialized ("),
    "lineage": ("/asset-groups", "publish"),
    "runs": ("/runs", "process_ccd"),
}
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def main(
    exposures: Annotated[int, typer.Option(min=N_NIGHTS, help="Exposures to fill the window with.")] = 3000,
    ccds: Annotated[int, typer.Option(min=1, max=32)] = 32,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    home: Annotated[Path | None, typer.Option(help="Folder of the benchmark; default a temporary one.")] = None,
    keep: Annotated[bool, typer.Option(help="Leave services and folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Fill the window and print the figures."""
    folder = home or Path(tempfile.mkdtemp(prefix="seechange-window-"))
    night = Night(settings_of(folder, workers), ccds)
    figures: dict[str, Any] = {}
    try:
        with progress_bar("window") as show:
            measure(night, exposures, figures, lambda what: show(what, 0.0))
    finally:
        if not keep:
            services.down(night.settings)
            shutil.rmtree(folder)
        if as_json:
            print_json(figures)
        else:
            print(json.dumps(figures, indent=1))


def measure(night: Night, n_exposures: int, figures: dict[str, Any], show: Show) -> None:
    """All figures, in the order in which they come."""
    night.start(show, n_exposures=1000)
    figures["empty_window"] = timed_exposures(night, show)
    seed = WindowSeed(night.database, night.dagster)
    began = time.monotonic()
    seed.fill(n_exposures, N_NIGHTS, show)
    night.count_anew()
    figures["seeded"] = {"exposures": n_exposures, "seconds": round(time.monotonic() - began)}
    figures["full_window"] = timed_exposures(night, show)
    figures["counts"], figures["database_mb"] = counts(night), sizes_mb(night)
    figures["pages_s"] = pages(night.settings.ui_url, show)
    show("retire six nights")
    figures["retire_s"] = command(night, "retire", "--before", seed.nights[6])
    figures["counts_after_retire"], figures["database_mb_after_retire"] = counts(night), sizes_mb(night)
    show("activate one night")
    figures["activate_s"] = command(night, "activate", seed.nights[5])
    figures["counts_after_activate"], figures["database_mb_after_activate"] = counts(night), sizes_mb(night)
    figures["after_activate"] = timed_exposures(night, show)


def timed_exposures(night: Night, show: Show) -> dict[str, float]:
    """Exposures that arrive one by one, medians [s]: to the first run at work, from there to all alerts, in all."""
    begun, done = [], []
    for number in range(N_TIMED):
        start = time.time()
        night.process(1, lambda what, _, number=number: show(f"exposure {number + 1} of {N_TIMED}: {what}"), ahead=1)
        (first,) = night.rows_of_dagster("select min(start_time) from runs where start_time > :start", start=start)
        begun.append(float(first[0]) - start)
        done.append(time.time() - start)
    waited, total = np.array(begun), np.array(done)
    medians = {"first_run_s": waited, "processing_s": total - waited, "alerts_s": total}
    return {name: round(float(np.median(values)), 1) for name, values in medians.items()}


def counts(night: Night) -> dict[str, Any]:
    """What Dagster's pages say of how many partitions are materialized."""
    url = f"{night.settings.ui_url}/graphql"
    body = json.dumps({"query": COUNTS}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=600) as response:
        nodes = json.load(response)["data"]["assetNodes"]
    stats = {node["assetKey"]["path"][-1]: node["partitionStats"] for node in nodes}
    return {name: stats[name]["numMaterialized"] for name in ASSETS}


def sizes_mb(night: Night) -> dict[str, int]:
    """Sizes of the two databases."""
    return {name: round(size / 1e6) for name, size in night.sizes().items()}


def pages(url: str, show: Show) -> dict[str, Any]:
    """Seconds until a page shows what a person waits for: cold, and the median of the following loads."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        return {"skipped": "no browser: apt-get install chromium"}
    told = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(120_000)
        for name, (address, awaited) in PAGES.items():
            show(f"page: {name}")
            times = [_load(page, url + address, awaited) for _ in range(N_LOADS)]
            told[name] = {"cold": round(times[0], 2), "warm": round(float(np.median(times[1:])), 2)}
            page.screenshot(path=Path(tempfile.gettempdir()) / f"window-{name.replace(', ', '-')}.png")
        browser.close()
    return told


def _load(page: Any, address: str, awaited: str) -> float:
    """Seconds until the text is there and no query has been open for a moment."""
    open_queries: set[Any] = set()
    answered = [time.monotonic()]

    def asked(request: Any) -> None:
        if request.url.endswith("/graphql"):
            open_queries.add(request)

    def done(request: Any) -> None:
        if request in open_queries:
            open_queries.discard(request)
            answered[0] = time.monotonic()

    events = {"request": asked, "requestfinished": done, "requestfailed": done}
    for name, handler in events.items():
        page.on(name, handler)
    start = time.monotonic()
    page.goto(address)
    page.get_by_text(awaited).filter(visible=True).first.wait_for()
    shown = time.monotonic()
    while open_queries or time.monotonic() - answered[0] < _QUIET_S:
        page.wait_for_timeout(50)
    for name, handler in events.items():
        page.remove_listener(name, handler)
    return max(shown, answered[0]) - start


def command(night: Night, *arguments: str) -> float:
    """Seconds of a command as a user types it."""
    start = time.monotonic()
    environment = os.environ | night.settings.as_environment()
    tiny = "import benchmarks.trivial; from seechange_assets.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", tiny, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - start, 1)


if __name__ == "__main__":
    typer.run(main)
