"""Sorted pixels and medians are those of numpy, to the bit."""

import numpy as np
import pytest

from seechange_assets.science.ordering import ascending, part_medians

SPECIAL = np.array([0.0, -0.0, 1e-42, -1e-42, np.inf, -np.inf, 3e38, -3e38], np.float32)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_values_ascend(n):
    rng = np.random.default_rng(n)
    for values in (rng.normal(size=n), rng.integers(-3, 3, n), np.append(rng.normal(800, 30, n), SPECIAL)):
        np.testing.assert_array_equal(ascending(values.astype(np.float32)), np.sort(values.astype(np.float32)))
    many = rng.normal(size=(n, 3)).astype(np.float32)
    np.testing.assert_array_equal(ascending(many[:, 1]), np.sort(many[:, 1]))  # of a view, which stays as it is


def test_medians_of_parts():
    rng = np.random.default_rng(8)
    data = np.round(rng.normal(800, 30, (60, 50)), 1).astype(np.float32)
    usable = rng.random(data.shape) > 0.3
    usable[:20, 25:] = False
    data[~usable] = np.nan
    before = data.copy()
    found = part_medians(data, usable, 2, np.array([0, 10, 11, 30]), np.array([0, 25, 50]), 5)
    for j, rows in enumerate((slice(0, 20, 2), slice(20, 22, 2), slice(22, 60, 2))):
        for i, columns in enumerate((slice(0, 25), slice(25, 50))):
            pixels = data[rows, columns][usable[rows, columns]].astype(float)
            expected = np.median(pixels) if pixels.size >= 5 else np.nan
            np.testing.assert_equal(found[j, i], expected)
    assert np.isnan(found[0, 1])
    np.testing.assert_array_equal(data, before)
