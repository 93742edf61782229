"""Layers of YAML: later over earlier, every value with its origin; what is unknown or of a wrong type is refused."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from resources.settings import Settings
from seechange_assets.cli.main import build_app
from seechange_assets.errors import ParameterError
from seechange_assets.layers import effective_values, load_layers
from seechange_assets.pipeline import build_recipes, configured_layers


def settings_of(folder: Path, *bodies: str) -> Settings:
    files = []
    for number, body in enumerate(bodies):
        files.append(folder / f"layer{number}.yaml")
        files[-1].write_text(body)
    environment = {"SEECHANGE_HOME": str(folder), "SEECHANGE_INSTRUMENT": "demo"}
    environment["SEECHANGE_CONFIG"] = ":".join(str(file) for file in files)
    return Settings.from_environment(environment)


def test_later_layers_win_parameter_by_parameter(tmp_path):
    settings = settings_of(
        tmp_path, "wcs: {max_stars: 1000, min_matched: 12}\nzp:\n  min_stars: 8\n", "\nwcs:\n\n  max_stars: 1500\n"
    )
    recipes, layers = build_recipes(settings), configured_layers(settings)
    shown = {v.parameter: v for v in effective_values(recipes.parameters("wcs"), layers["wcs"])}
    assert (shown["max_stars"].value, shown["max_stars"].default) == (1500, 2000)
    assert shown["max_stars"].origin == f"{tmp_path}/layer1.yaml:4"
    assert (shown["min_matched"].value, shown["min_matched"].origin) == (12, f"{tmp_path}/layer0.yaml:1")
    assert (shown["clip_sigma"].value, shown["clip_sigma"].origin) == (4.0, "default")
    assert recipes.parameters("zp").min_stars == 8


def test_critical_and_other_parameters_are_told_apart(tmp_path):
    recipes = build_recipes(settings_of(tmp_path))
    shown = {v.parameter: v.is_critical for v in effective_values(recipes.parameters("alerts"), None)}
    assert shown == {"history_days": True, "streams": False, "resend": False, "enabled": False}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("wcs: {match_radius: 2}", r"layer0.yaml:1: unknown parameter 'wcs.match_radius'.*'wcs.match_radius_arcsec'"),
        ("wsc: {max_stars: 2}", r"layer0.yaml:1: unknown parameter 'wsc'; did you mean 'wcs'"),
        ("wcs:\n  max_stars: '5'", r"layer0.yaml:2: wcs.max_stars: .*valid integer \(got '5'\)"),
        ("wcs: {max_stars: true}", r"wcs.max_stars: .*valid integer \(got True\)"),
        ("wcs: {max_stars: 12.5}", r"wcs.max_stars: .*valid integer"),
        ("wcs: {clip_sigma: .nan}", r"wcs.clip_sigma: .*finite"),
        ("wcs: {clip_sigma: 1}", r"wcs.clip_sigma: .*greater than or equal to 2"),
        ("image: {cosmic_rays: 1}", r"image.cosmic_rays: .*valid boolean"),
        ("image: {steps: [overscan, bia]}", r"image.steps.1: .*'bias'"),
        ("measurements: {bad_thresholds: {elongatio: 2}}", r"did you mean 'measurements.bad_thresholds.elongation'"),
        ("sources: {galactic: {treshold: 3}}", r"did you mean 'sources.galactic.threshold'"),
        ("sources: {galactic: {threshold: '3'}}", r"in galactic fields: sources.threshold: .*valid number"),
        ("wcs:\n  max_stars: 5\n  max_stars: 6", r"'max_stars' stands there twice"),
        ("wcs: [1, 2]", r"section 'wcs' must map parameters to values, found a list"),
        ("- wcs", r"expected sections of parameters, found a list"),
        ("wcs: {max_stars: [", r"cannot read the configuration"),
        ("exposure: {instrument: ls4}", r"unknown parameter 'exposure'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path, body, message):
    with pytest.raises(ParameterError, match=message):
        build_recipes(settings_of(tmp_path, body))


def test_whole_numbers_and_lists_are_taken_for_floats_and_tuples(tmp_path):
    recipes = build_recipes(settings_of(tmp_path, "wcs: {clip_sigma: 5}\nmeasurements: {aperture_radii_fwhm: [1, 2]}"))
    assert recipes.parameters("wcs").clip_sigma == 5.0
    assert recipes.parameters("measurements").aperture_radii_fwhm == (1.0, 2.0)


def test_an_empty_file_or_section_says_nothing(tmp_path):
    settings = settings_of(tmp_path, "", "wcs:\n# all as it is\n")
    assert load_layers(settings.config) == {"wcs": {}}
    assert build_recipes(settings)["wcs"].id == build_recipes(settings_of(tmp_path))["wcs"].id


def test_the_same_values_written_otherwise_are_the_same_recipe(tmp_path):
    plain = build_recipes(settings_of(tmp_path))
    same = build_recipes(settings_of(tmp_path, "zp: {clip_sigma: 4}\nsources: {galactic: {threshold: 10}}\nwcs: {}"))
    assert {name: recipe.id for name, recipe in same.items()} == {name: recipe.id for name, recipe in plain.items()}


@pytest.fixture
def command(tmp_path, monkeypatch):
    settings = settings_of(tmp_path, "wcs: {max_stars: 1500}\nalerts: {resend: true}")
    monkeypatch.setenv("SEECHANGE_HOME", str(tmp_path))
    monkeypatch.setenv("SEECHANGE_INSTRUMENT", "demo")
    monkeypatch.setenv("SEECHANGE_CONFIG", ":".join(str(file) for file in settings.config))

    def run(*arguments: str):
        answer = CliRunner().invoke(build_app(), ["parameters", *arguments, "--json"], catch_exceptions=False)
        assert answer.exit_code == 0
        return json.loads(answer.stdout)

    return run


def test_show_and_diff_commands(command, tmp_path):
    assert {row["process"] for row in command("show", "wcs", "zp")} == {"wcs", "zp"}
    assert all(row["description"] for row in command("show", "wcs"))
    changed = {(row["process"], row["parameter"], row["is_critical"]) for row in command("diff")}
    assert changed == {("wcs", "max_stars", True), ("alerts", "resend", False)}
    other = tmp_path / "other.yaml"
    other.write_text("wcs: {max_stars: 1200}\nalerts: {resend: true}")
    (row,) = command("diff", str(other))
    assert (row["here"], row["there"], row["origin there"]) == (1500, 1200, f"{other}:1")
