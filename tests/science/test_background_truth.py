"""The sky against the truth, in units of its noise: away from sources, around a bright galaxy, in crowds."""

import numpy as np
import pytest

from seechange_assets.science.background import level_map, measure_background, rms_map
from tests.science.fields import CROWDED_DENSITY, moffat_field, show, simulated_field
from tests.science.skies import GAIN, READ_NOISE

# Effective radius [pixel], surface brightness there [ADU; the noise is 24], Sersic index.
GALAXIES = [(60, 300.0, 1.0), (25, 3000.0, 1.0), (40, 1000.0, 4.0)]


def residual(field, **options):
    return field.error(level_map(measure_background(field.image, **options)))


@pytest.mark.parametrize("seed", [31, 32])
def test_away_from_sources(seed):
    field = simulated_field(seed)
    assert abs(residual(field)[field.away()].mean()) < 0.05
    field = moffat_field(seed)
    assert abs(residual(field)[field.away()].mean()) < 0.05


@pytest.mark.parametrize("galaxy", GALAXIES)
def test_around_a_bright_galaxy(galaxy):
    field = moffat_field(33, galaxy=galaxy)
    assert abs(residual(field)[field.around_galaxy()].mean()) < 0.2
    # Without masks the sky holds part of the halo.
    assert (
        abs(residual(field)[field.around_galaxy()].mean())
        < abs(residual(field, mask_passes=0)[field.around_galaxy()].mean()) + 0.02
    )


def test_at_twenty_times_the_density():
    field = simulated_field(34, density=CROWDED_DENSITY)
    assert abs(residual(field).mean()) < 0.2
    # One star per 105 pixels of 4.4 pixels FWHM: the light of the faint ones is everywhere.
    field = moffat_field(34, stars_per_mpx=9600.0)
    assert abs(residual(field).mean()) < 0.2
    assert abs(residual(field, mask_passes=0).mean()) > 0.3


@pytest.mark.parametrize(
    "shape_of_sky",
    [
        lambda x, y: 45 * ((x - 0.5) ** 2 + (y - 0.5) ** 2),
        lambda x, y: 60 * (y - 0.5) ** 3,
        lambda x, y: -90 * ((x - 0.5) ** 2 + (y - 0.5) ** 2),
        lambda x, _: 24.0 * (x > 0.5),
    ],
    ids=["bowl", "cubic", "vignette", "amplifier"],
)
def test_structure_of_the_sky_is_no_source(shape_of_sky):
    y, x = np.indices((1280, 1024)) / 1024
    field = moffat_field(35, (1280, 1024), extra_sky=shape_of_sky(x, y))
    masked, plain = residual(field), residual(field, mask_passes=0)
    # The step between amplifiers is smeared over a box by any mesh; masks must not add much to that. The ends of the
    # cubic, where it departs by a sigma from the trend, may be off by a third of that.
    assert masked.std() < plain.std() + 0.05
    assert abs(masked.mean()) < 0.08


# The last boxes of the first are whole, those of the second 132 and 188 pixels wide: the mesh is not even there.
@pytest.mark.parametrize("shape", [(1024, 1024), (900, 1212)])
@pytest.mark.parametrize("stars_per_mpx", [480.0, 9600.0])
@pytest.mark.parametrize("slope", [0.03, 0.3])
def test_a_steep_sky_is_neither_noise_nor_structure(slope, stars_per_mpx, shape):
    y, x = np.indices(shape)
    ramp = 900 * slope * (x / shape[1] - 0.7 * y / shape[0])
    field = moffat_field(37, shape, stars_per_mpx, extra_sky=ramp)
    background = measure_background(field.image)
    error = field.error(level_map(background))
    assert abs(error.mean()) < (0.05 if stars_per_mpx < 1000 else 0.2)
    assert error.std() < 0.03
    noise = np.sqrt(field.sky / GAIN + (READ_NOISE / GAIN) ** 2)
    assert (rms_map(background) / noise).mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(41, 46))
def test_all_scenes_over_seeds(seed):
    figures = {"away": abs(residual(one := simulated_field(seed, (2048, 2048)))[one.away()].mean())}
    for galaxy in GALAXIES:
        field = moffat_field(seed, (2048, 2048), galaxy=galaxy)
        error = residual(field)
        figures[f"galaxy {galaxy}"] = abs(error[field.around_galaxy()].mean())
        assert abs(error[field.away()].mean()) < 0.05
    for filter_name, seeing in (("r", 1.8), ("g", 2.5)):
        crowd = simulated_field(seed, density=CROWDED_DENSITY, filter_name=filter_name, seeing_px=seeing)
        figures[f"20x {filter_name}"] = abs(residual(crowd).mean())
    figures["20x wide"] = abs(residual(moffat_field(seed, stars_per_mpx=9600.0)).mean())
    show(seed, {name: round(float(value), 3) for name, value in figures.items()})
    assert figures.pop("away") < 0.05
    assert max(figures.values()) < 0.2


def test_forms_of_the_sky():
    field = simulated_field(36)
    scalar = measure_background(field.image, form="scalar")
    assert np.ptp(level_map(scalar)) == 0
    assert scalar.level == pytest.approx(np.median(field.sky), abs=0.1 * field.noise)
    plane = residual(field, form="polynomial", polynomial_degree=1, box_size_px=128)
    # The truth is a plane: the fit to 64 boxes beats each of them.
    assert abs(plane.mean()) < 0.02
    assert np.abs(plane).max() < 0.08
    bowl = residual(field, form="polynomial", polynomial_degree=2, box_size_px=128)
    assert np.abs(bowl).max() < 0.15
