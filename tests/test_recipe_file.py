"""The recipes kept in the home are those that the assets give, and change with the configuration."""

import subprocess
import sys

from io_managers.reference_sets import in_current_set
from resources.settings import Settings
from seechange_assets.definitions import build_recipes
from seechange_assets.recipe_file import FOLDER, recipes_in_force


def settings_of(folder, body):
    file = folder / "site.yaml"
    file.write_text(body)
    return Settings.from_environment(
        {"SEECHANGE_HOME": str(folder), "SEECHANGE_INSTRUMENT": "demo", "SEECHANGE_CONFIG": str(file)}
    )


def test_kept_recipes_are_those_of_the_assets(tmp_path):
    for body in ("", "wcs: {max_stars: 1500}", "measurements: {bad_thresholds: {elongation: 2.5}}"):
        settings = settings_of(tmp_path, body)
        expected = build_recipes(settings)
        for _ in range(2):  # written, then read
            kept = recipes_in_force(settings)
            assert {name: kept[name].id for name in kept} == {name: expected[name].id for name in expected}
            assert list(kept) == list(expected)
            assert kept.descendants("wcs") == expected.descendants("wcs")
        assert len(list((tmp_path / FOLDER).iterdir())) == 1


def test_kept_recipes_tell_which_references_are_in_use(tmp_path):
    """As `seechange exposures` asks while an image waits for one."""
    settings = settings_of(tmp_path, "reference: {name: deep2}")
    expected, kept = (
        in_current_set(recipes).compile().params for recipes in (build_recipes(settings), recipes_in_force(settings))
    )
    assert "deep2" in kept.values()
    assert kept == expected


def test_comparing_rows_and_moving_tags_needs_no_dagster():
    code = (
        "import sys, io_managers.staleness, io_managers.tags, seechange_assets.recipe_file, seechange_assets.cli.main;"
        "seechange_assets.cli.main.build_app();"
        "sys.exit(any(name in sys.modules for name in ('dagster', 'astropy', 'scipy', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
