"""Galactic or extragalactic: one recipe with two branches, chosen by the catalogue's star density."""

import numpy as np
import pytest
from astropy.table import Table

from seechange_assets.calibrate.sources import SourcesParameters
from seechange_assets.content import freeze
from seechange_assets.discover.detections import DetectionsParameters
from seechange_assets.errors import CatalogError, ParameterError
from seechange_assets.products import Detections, SkyCatalog, header_text
from seechange_assets.science.field_kind import star_density
from tests.science.star_fields import linear_header, make_info

SHAPE = (1024, 512)


def info():
    return make_info(header_text(linear_header(0.01, 60.0, SHAPE, 1.0)), 1.0)


def stars_around(density):
    """A cone search with that many stars per square degree."""

    def cone(ra_deg, dec_deg, radius_deg, max_mag):
        n = round(density * np.pi * radius_deg**2)
        return SkyCatalog(Table({"mag_g": np.full(n, max_mag)}), 2016.0, "counted")

    return cone


@pytest.mark.parametrize("density", [500.0, 50_000.0])
def test_density_of_a_catalogue(density):
    assert star_density(info(), SHAPE, stars_around(density), limit_mag=20.0) == pytest.approx(density, rel=0.05)


def test_no_wcs_no_density_and_no_stars_an_error():
    def empty(*_args, **_kwargs):
        raise CatalogError("no stars")

    assert np.isnan(star_density(make_info("", 1.0), SHAPE, empty, limit_mag=20.0))
    with pytest.raises(CatalogError):
        star_density(info(), SHAPE, empty, limit_mag=20.0)


def test_the_branch_changes_the_arguments_and_nothing_else():
    plain, galactic = (SourcesParameters().arguments(kind) for kind in ("extragalactic", "galactic"))
    assert (plain.pop("threshold"), galactic.pop("threshold")) == (4.0, 10.0)
    assert plain == galactic
    assert "galactic" not in plain
    assert DetectionsParameters().arguments("galactic")["threshold"] == 10.0


def test_rule_and_branches_belong_to_the_recipe():
    values = SourcesParameters().critical_values()
    assert values["galactic"] == {"threshold": 10.0}
    assert {"galactic_density_deg2", "density_limit_mag"} <= set(values)
    other = SourcesParameters.from_overrides({"galactic": {"threshold": 8.0, "deblend_contrast": 0.01}})
    assert other.arguments("galactic")["deblend_contrast"] == 0.01
    assert other.critical_values() != values


@pytest.mark.parametrize("branch", [{"treshold": 8.0}, {"threshold": -1.0}, {"galactic": {}}])
def test_a_branch_is_checked_like_the_parameters(branch):
    with pytest.raises(ParameterError):
        SourcesParameters.from_overrides({"galactic": branch})


def test_the_branch_taken_is_recorded_in_the_row():
    from io_managers.rows import inputs

    product = freeze(Detections(Table(), 10.0, "galactic"))
    assert inputs(product)["field_kind"] == "galactic"
