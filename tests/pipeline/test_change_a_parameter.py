"""Change a parameter, see exactly what is stale, make exactly that again; change it back, and nothing is computed.

Stale by our own rows and by Dagster's own answer, asked of its web server for every asset and partition.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from resources import services
from resources.services import broker
from resources.services.supervisor import Supervisor
from resources.settings import deployed_version
from seechange_assets.cli.services import start
from seechange_assets.cli.session import Session
from seechange_assets.partitions import Partition
from seechange_assets.survey import Survey
from sensors.staleness_checks import CHECK, tell, verdicts
from sql.alerts import OutboxRow
from sql.models import PRODUCT_ROWS, ReportRow
from tests.pipeline.test_ui import WITHOUT_SENSORS, WORKSPACE, chromium_path, page  # noqa: F401  (fixtures)
from tests.pipeline.world import World

AFTER_WCS = {"wcs", "zp", "diff", "detections", "cutouts", "measurements", "scores", "associations",
             "forced_photometry", "alerts"}  # fmt: skip
PATIENCE_S = 400.0


@pytest.fixture(params=["0"])
def processed(short_home: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """One CCD of two reference epochs more than needed and of one exposure, and Dagster with its daemon.

    The parameter is the number of warm workers.
    """
    (short_home / "without_sensors.py").write_text(WITHOUT_SENSORS)
    (short_home / "workspace.yaml").write_text(WORKSPACE)
    (short_home / "site.yaml").write_text("")
    workspace, site = (str(short_home / name) for name in ("workspace.yaml", "site.yaml"))
    environment = {
        "SEECHANGE_UI_PORT": "0", "SEECHANGE_WORKSPACE": workspace, "SEECHANGE_CONFIG": site,
        "SEECHANGE_WORKERS": request.param,
    }  # fmt: skip
    world = World(short_home, environment)
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


def configure(world: World, text: str) -> None:
    (world.home / "site.yaml").write_text(text)
    deployed_version.cache_clear()  # a command of its own would read the file anew


def stale(world: World) -> dict[str, int]:
    answer = world.cli("stale", "--json")
    assert answer.code == 0, answer.err
    return {group["asset"]: group["partitions"] for group in answer.json}


def ask(world: World, query: str) -> dict:
    body = json.dumps({"query": query}).encode()
    request = urllib.request.Request(f"{world.settings.ui_url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["data"]


def stale_in_dagster(world: World, reload: bool = True) -> dict[str, int]:
    """Number of partitions of each asset that Dagster says are stale; its code location is loaded anew first."""
    if reload:
        ask(world, "mutation { reloadWorkspace { __typename } }")
    found = {}
    for node in ask(world, "{ assetNodes { assetKey { path } partitionKeys } }")["assetNodes"]:
        asset = node["assetKey"]["path"][-1]
        if not node["partitionKeys"]:
            continue
        asked = " ".join(
            f"p{i}: staleStatus(partition: {json.dumps(key)})" for i, key in enumerate(node["partitionKeys"])
        )
        query = f'{{ assetNodeOrError(assetKey: {{path: ["{asset}"]}}) {{ ... on AssetNode {{ {asked} }} }} }}'
        answers = list(ask(world, query)["assetNodeOrError"].values())
        assert "FRESH" in answers or "STALE" in answers or asset.startswith("master_") or asset == "night_report", asset
        if n_stale := answers.count("STALE"):
            found[asset] = n_stale
    return found


def stale_in_lineage(world: World) -> dict[str, int]:
    """Number of stale partitions that the check on each asset's node of the lineage page tells of."""
    check = """executionForLatestMaterialization { status evaluation { severity success metadataEntries {
        label ... on IntMetadataEntry { intValue } } } }"""
    query = f"""{{ assetNodes {{ assetKey {{ path }} assetChecksOrError {{
        ... on AssetChecks {{ checks {{ name {check} }} }} }} }} }}"""
    found = {}
    for node in ask(world, query)["assetNodes"]:
        for one in node["assetChecksOrError"]["checks"]:
            told = one["name"] == CHECK and one["executionForLatestMaterialization"]
            if told and not told["evaluation"]["success"]:
                assert (told["status"], told["evaluation"]["severity"]) == ("FAILED", "WARN")
                entries = {entry["label"]: entry.get("intValue") for entry in told["evaluation"]["metadataEntries"]}
                found[node["assetKey"]["path"][-1]] = entries["stale partitions"]
    return found


def wait_until_nothing_is_stale(world: World) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while stale(world):
        assert time.monotonic() < deadline, (stale(world), failures(world))
        time.sleep(3.0)


def failures(world: World) -> list[str]:
    with world.session.store.database.session() as session:
        return list(session.scalars(sa.select(ReportRow.message).where(ReportRow.outcome == "failed")))


def attempts(world: World) -> dict[tuple[str, str], object]:
    """When each step of each partition was tried last."""
    with world.session.store.database.session() as session:
        rows = session.execute(sa.select(ReportRow.step, ReportRow.partition, ReportRow.updated_at))
        return {(step, partition): at for step, partition, at in rows}


def test_change_and_change_back(processed):
    world, exposure = processed, processed.simulated.keys[processed.simulated.science[0]]
    expected = {name: 4 if name in ("wcs", "zp") else 1 for name in AFTER_WCS}
    assert stale(world) == stale_in_dagster(world) == {}
    assert world.cli("provenance", "tag", "clone", "current", "before").code == 0
    files, before = world.files(), attempts(world)

    configure(world, "alerts: {enabled: false}")  # not critical
    assert stale(world) == stale_in_dagster(world) == {}

    configure(world, "wcs: {max_stars: 1500}")
    assert stale(world) == stale_in_dagster(world) == expected
    tell_lineage(world)
    assert stale_in_lineage(world) == expected
    dry = world.cli("backfill", "--dry-run", "--json")
    assert (dry.json["partitions"], dry.json["assets"]) == (4, expected)
    assert stale(world) == expected
    assert attempts(world) == before

    backfilled_twice(world)
    wait_until_nothing_is_stale(world)
    after = attempts(world)
    assert {step for step, key in after if after[step, key] != before.get((step, key))} == AFTER_WCS
    assert stale_in_dagster(world) == {}
    assert {name: content for name, content in world.files().items() if name in files} == files
    both_versions_are_readable(world, exposure)
    the_live_topic_is_left_alone(world, exposure)

    configure(world, "")
    changed_back(world, after)


@pytest.mark.faults
def test_a_killed_backfill_is_carried_on(processed):
    """The command, its runs and all of Dagster are killed midway: the command again finishes what is left, no more."""
    world, before = processed, attempts(processed)
    configure(world, "wcs: {max_stars: 1500}")
    total = sum(stale(world).values())
    command = world.spawn("backfill")
    deadline = time.monotonic() + PATIENCE_S
    while len(tried(world, before)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    supervisor = Supervisor(world.home)
    for process in (command, *(p for p in supervisor.leftovers() if p != broker.find(supervisor))):
        process.kill()
    command.communicate()
    done = {key: at for key, at in attempts(world).items() if key in tried(world, before)}
    assert 0 < sum(stale(world).values()) < total
    with world.as_environment():
        start(world.settings, ui=True)
    assert world.cli("backfill", "--json").code == 0
    wait_until_nothing_is_stale(world)
    finished = {key for key, at in done.items() if attempts(world)[key] == at}
    assert len(finished) >= len(done) - 1  # the step that was being told to Dagster may be tried again
    assert len(tried(world, before)) == total


@pytest.mark.slow
@pytest.mark.parametrize("processed", ["1"], indirect=True)
def test_warm_workers_take_the_change_too(processed):
    """They and Dagster are started anew by the command: what they have read they keep."""
    world = processed
    configure(world, "wcs: {max_stars: 1500}")
    command = world.spawn("backfill")
    out, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 0, (out, err)
    wait_until_nothing_is_stale(world)
    states = {service.name: service.state for service in services.status(world.settings)}
    assert states["workers"] == states["dagster"] == "running", states


def tell_lineage(world: World) -> None:
    """As the sensor does, which these tests leave out."""
    with world.as_environment():
        session = Session(world.settings)  # the world's own has the recipes of before
        tell(session.instance, verdicts(session.store))


def tried(world: World, before: dict[tuple[str, str], object]) -> set[tuple[str, str]]:
    """Steps and partitions that were tried since."""
    return {key for key, at in attempts(world).items() if before.get(key) != at}


def backfilled_twice(world):
    """The second command leaves the partitions to the first one's backfill."""
    first = world.cli("backfill", "--limit", "3", "--json")
    assert first.code == 0, first.err
    assert first.json["partitions"] == 3
    second = world.cli("backfill", "--json")
    assert second.code == 0, second.err
    assert second.json["partitions"] <= 1
    assert {move["process"] for move in first.json["moved"]} == AFTER_WCS
    assert second.json["moved"] == []


def both_versions_are_readable(world, exposure):
    with world.as_environment():
        old, new = Survey.open("before"), Survey.open("current")
        by_id = Survey.open(world.session.store.reading("before").recipes["diff"].id)
    assert old.psf(exposure, "01").fwhm_px == new.psf(exposure, "01").fwhm_px
    for name in AFTER_WCS:
        with world.session.store.database.session() as session:
            rows = session.scalars(sa.select(PRODUCT_ROWS[name]).where(PRODUCT_ROWS[name].partition == exposure)).all()
        assert len({row.provenance_id for row in rows}) == 2, name
    assert old.wcs(exposure, "01").header == by_id.wcs(exposure, "01").header
    changes = world.cli("provenance", "diff", "before", "current", "--json").json
    assert [(c["process"], c["parameter"], c["old"], c["new"]) for c in changes] == [("wcs", "max_stars", 2000, 1500)]


def the_live_topic_is_left_alone(world, exposure):
    """Alerts of the backfill go to its own topic; of detections that were told before they are withheld besides."""
    with world.session.store.database.session() as session:
        rows = session.scalars(sa.select(OutboxRow).where(OutboxRow.exposure == exposure)).all()
    topics = {row.provenance_id: row.topic for row in rows}
    assert len(topics) == 2
    current = world.session.store.reading("current").recipes["alerts"].id
    night = topics[current].removeprefix("demo-backfill-")
    assert sorted(topics.values()) == [f"demo-alerts-{night}", f"demo-backfill-{night}"]
    assert {row.withheld_for for row in rows if row.provenance_id == current} <= {"repeated", None}
    assert any(row.is_withheld for row in rows if row.provenance_id == current)


def changed_back(world, after):
    assert stale(world) == {}
    began = time.monotonic()
    answer = world.cli("backfill", "--json")
    assert answer.code == 0, answer.err
    assert (answer.json["partitions"], answer.json["recognised"], answer.json["told"]) == (0, 16, 16)
    assert time.monotonic() - began < 60  # most of it Dagster's, to load the configuration again
    assert stale_in_dagster(world, reload=False) == {}
    assert stale_in_lineage(world) == {}
    assert attempts(world) == after  # no step was tried
    assert world.cli("backfill", "--json").json["recognised"] == 0


def test_a_run_recognises_what_these_recipes_made_before(world, exposure, monkeypatch):
    """Nothing is told from the log here: the step itself finds its row, and the science is not called."""
    from seechange_assets.science import photometric_calibration

    store = world.session.store
    row = store.row("zp", Partition(exposure, "01"))
    table = PRODUCT_ROWS["zp"]
    columns = {c.name: getattr(row, c.name) for c in table.__table__.columns}
    another = columns | {"id": store.row("psf", Partition(exposure, "01")).id, "filepath": "other.fits"}
    another |= {"provenance_id": store.recipes["psf"].id, "materialized_at": sa.func.clock_timestamp()}
    with store.database.session() as session:
        session.execute(sa.insert(table).values(**another))
    try:

        def not_again(*_args, **_arguments):
            raise AssertionError("computed again")

        monkeypatch.setattr(photometric_calibration, "calibrate_photometry", not_again)
        with world.as_environment():
            assert world.session.run("process_ccd", {"exposure": exposure, "ccd": "01"}, ["zp"]).success
            assert store.row("zp", Partition(exposure, "01")).updated_at == row.updated_at
            assert not world.session.run("process_ccd", {"exposure": exposure, "ccd": "01"}, ["zp"]).success
    finally:
        monkeypatch.undo()
        with store.database.session() as session:
            session.execute(sa.delete(table).where(table.id == another["id"]))
        with world.as_environment():
            assert world.process(exposure, "01").success


@pytest.mark.slow
def test_a_person_sees_it_in_the_lineage_page(processed, page, tmp_path):  # noqa: F811
    """Count, reason and remedy stand among a stale asset's checks; the lineage is drawn for a person to look at."""
    configure(processed, "wcs: {max_stars: 1500}")
    assert stale_in_dagster(processed).keys() == AFTER_WCS
    tell_lineage(processed)
    page.set_viewport_size({"width": 2560, "height": 1300})
    page.goto(f"{processed.settings.ui_url}/asset-groups")
    page.get_by_text("publish", exact=True).filter(visible=True).first.wait_for()
    page.keyboard.press("Alt+e")  # "Expand all groups" of the menu
    page.get_by_text("forced_photometry", exact=True).filter(visible=True).first.wait_for()
    page.wait_for_timeout(3000)  # the graph moves into place
    page.screenshot(path=tmp_path / "lineage.png")
    page.goto(f"{processed.settings.ui_url}/assets/zp?view=checks&checkDetail={CHECK}")
    page.get_by_text("wcs.max_stars 2000 -> 1500").filter(visible=True).first.wait_for()
    page.get_by_text("seechange backfill", exact=True).filter(visible=True).first.wait_for()
    page.screenshot(path=tmp_path / "check.png")
