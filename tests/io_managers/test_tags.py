"""One row per recipe and tag whoever writes at once; a tag moves on purpose, whole or not at all."""

import multiprocessing
from pathlib import Path

import pytest
import sqlalchemy as sa

from io_managers.lookups import SurveyStore
from io_managers.recipes import changes_between, recipe_of_reference_set, stored
from io_managers.tags import Tags
from resources.archive import Archive
from resources.database import Database
from resources.settings import Settings
from seechange_assets.definitions import build_recipes
from seechange_assets.errors import ProductNotFound, TagConflict
from seechange_assets.provenance import Recipes
from sql.models import ProvenanceRow, ProvenanceTagRow, ProvenanceUpstreamRow
from tests.sensors import rows

N_PROCESSES = 4


def configured(folder: Path, body: str = "") -> Recipes:
    file = folder / "site.yaml"
    file.write_text(body)
    environment = {"SEECHANGE_HOME": str(folder), "SEECHANGE_INSTRUMENT": "demo", "SEECHANGE_CONFIG": str(file)}
    return build_recipes(Settings.from_environment(environment))


@pytest.fixture
def database(database_url: str):
    database = Database(database_url)
    database.upgrade()
    yield database
    database.engine.dispose()


@pytest.fixture
def tags(database: Database) -> Tags:
    return Tags(database)


@pytest.fixture
def recipes(tmp_path: Path) -> Recipes:
    return configured(tmp_path)


@pytest.fixture
def changed(tmp_path: Path) -> Recipes:
    return configured(tmp_path, "wcs: {max_stars: 1500}")


def store_of(database: Database, folder: Path, recipes: Recipes, tag: str = "current") -> SurveyStore:
    return SurveyStore(database, Archive(str(folder / "archive")), recipes, "demo", tag)


def ids(database: Database, tag: str) -> dict[str, str]:
    query = sa.select(ProvenanceTagRow.process, ProvenanceTagRow.provenance_id).where(ProvenanceTagRow.tag == tag)
    with database.session() as session:
        return {row.process: row.provenance_id for row in session.execute(query)}


def register_at_once(url: str, folder: str, barrier) -> None:
    recipes = configured(Path(folder))
    database = Database(url)
    barrier.wait(timeout=60)
    store_of(database, Path(folder), recipes).register_recipes()
    database.engine.dispose()


def test_processes_that_register_at_once_make_one_row(database, database_url, recipes, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(N_PROCESSES)
    processes = [
        context.Process(target=register_at_once, args=(database_url, str(tmp_path), barrier))
        for _ in range(N_PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=90)
    assert [process.exitcode for process in processes] == [0] * N_PROCESSES
    with database.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(ProvenanceRow)) == len(recipes)
        links = sum(len(set(recipe.upstream_ids)) for recipe in recipes.values())
        assert session.scalar(sa.select(sa.func.count()).select_from(ProvenanceUpstreamRow)) == links
    assert ids(database, "current") == {process: recipe.id for process, recipe in recipes.items()}


def test_the_first_use_makes_a_tag_and_no_use_moves_it(database, tmp_path, recipes, changed):
    store_of(database, tmp_path, recipes).register_recipes()
    before = ids(database, "current")
    with pytest.raises(
        TagConflict, match=r"tag 'current' names other recipes .* for wcs .*provenance tag move current"
    ):
        store_of(database, tmp_path, changed).register_recipes()
    assert ids(database, "current") == before
    store_of(database, tmp_path, changed, tag="test").register_recipes()
    assert ids(database, "test")["wcs"] == changed["wcs"].id


def test_a_move_changes_exactly_what_differs(database, tags, recipes, changed):
    tags.create("current", recipes.values())
    moves = tags.move("current", changed.values())
    assert {move.process for move in moves} == {"wcs", *changed.descendants("wcs")}
    assert all((m.old, m.new) == (recipes[m.process].id, changed[m.process].id) for m in moves)
    assert tags.recipes("current")["wcs"].id == changed["wcs"].id
    assert tags.recipes("current")["psf"].id == recipes["psf"].id
    assert tags.move("current", changed.values()) == []
    tags.move("current", recipes.values())
    assert {process: tags.recipes("current")[process].id for process in recipes} == {
        process: recipe.id for process, recipe in recipes.items()
    }


def test_a_tag_may_name_several_reference_sets_and_nothing_else_twice(database, tags, recipes, changed):
    tags.create("current", recipes.values())
    tags.move("current", changed.values())
    shown = tags.show("current")
    assert {len(versions) for process, versions in shown.items() if process != "reference"} == {1}
    assert [recipe.id for recipe in shown["reference"]] == [recipes["reference"].id, changed["reference"].id]
    with pytest.raises(sa.exc.IntegrityError, match="one_per_process"), database.session() as session:
        session.add(ProvenanceTagRow(tag="current", process="wcs", provenance_id=recipes["wcs"].id))


def test_create_refuses_a_tag_that_names_other_recipes(database, tags, recipes, changed):
    tags.create("dr1", recipes.values())
    tags.create("dr1", recipes.values())
    with pytest.raises(TagConflict):
        tags.create("dr1", changed.values())
    assert tags.recipes("dr1")["wcs"].id == recipes["wcs"].id


def test_clone_and_delete(database, tags, recipes, changed):
    tags.create("current", recipes.values())
    tags.clone("current", "dr1")
    tags.move("current", changed.values())
    assert tags.recipes("dr1")["alerts"].id == recipes["alerts"].id
    with pytest.raises(TagConflict):
        tags.clone("current", "dr1")
    assert tags.delete("dr1") == len(recipes)
    assert tags.names() == {"current": len(recipes) + 1}
    with pytest.raises(ProductNotFound, match="there is no tag 'dr1'; there are: current"):
        tags.show("dr1")
    with database.session() as session:
        assert session.get(ProvenanceRow, recipes["alerts"].id) is not None


def test_a_provenance_id_names_its_process_and_all_that_feeds_it(database, tags, recipes):
    tags.create("current", recipes.values())
    for name in (recipes["zp"].id, recipes["zp"].short_id):
        family = tags.recipes(name)
        assert {p: r.id for p, r in family.items() if p in ("wcs", "zp", "image")} == {
            p: recipes[p].id for p in ("wcs", "zp", "image")
        }
        assert "diff" not in family
    with pytest.raises(ProductNotFound, match="no recipe begins with"):
        tags.recipes("zzzzzzzz")


def test_recipes_read_back_are_the_ones_written(database, tags, recipes):
    tags.create("current", recipes.values())
    with database.session() as session:
        found = stored(session, [recipes["alerts"].id])
    everything = {**found, **{recipe.id: recipe for recipe in recipes.values()}}
    for recipe in found.values():
        assert changes_between(recipe, recipes[recipe.process], everything) == ()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("wcs: {max_stars: 1500}", {("wcs", "max_stars", 2000, 1500)}),
        ("alerts: {resend: true}", set()),
        ("measurements: {bad_thresholds: {elongation: 2.5}}", {("measurements", "bad_thresholds.elongation", 3, 2.5)}),
        (
            "image: {cosmic_rays: false}\nzp: {min_stars: 8}",
            {("image", "cosmic_rays", True, False), ("zp", "min_stars", 10, 8)},
        ),
    ],
)
def test_a_difference_is_named_however_deep(database, tags, recipes, tmp_path, body, expected):
    other = configured(tmp_path, body)
    tags.create("a", recipes.values())
    tags.create("b", other.values())
    with database.session() as session:
        known = stored(session, [recipes["alerts"].id, other["alerts"].id])
    changes = changes_between(known[recipes["alerts"].id], known[other["alerts"].id], known)
    own = {(c.process, c.parameter, c.old, c.new) for c in changes if not c.process.startswith("reference/")}
    assert own == expected


def test_a_reference_set_keeps_the_recipe_it_was_begun_with(database, tags, recipes, changed):
    tags.create("current", recipes.values())
    with database.session() as session:
        assert recipe_of_reference_set(session, changed["reference"], "demo") is None
        session.add(rows.reference(recipes))
    with database.session() as session:
        made = recipe_of_reference_set(session, changed["reference"], "demo")
        assert recipe_of_reference_set(session, changed["reference"], "ls4") is None
    pinned = changed.pinned(made)
    assert pinned["reference"].id == recipes["reference"].id
    assert pinned["wcs"].id == changed["wcs"].id
    assert pinned["diff"].id not in (recipes["diff"].id, changed["diff"].id)
    assert pinned.references.parameters("wcs").max_stars == 2000
    assert recipes.pinned(made) is recipes


def test_another_name_begins_another_reference_set(database, tags, recipes, tmp_path):
    tags.create("current", recipes.values())
    with database.session() as session:
        session.add(rows.reference(recipes))
    other = configured(tmp_path, "reference: {name: deep}\nwcs: {max_stars: 1500}")
    with database.session() as session:
        assert recipe_of_reference_set(session, other["reference"], "demo") is None
