"""The projection and its inverse."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seechange_assets.simulation.geometry import Geometry


@given(
    ra=st.floats(0, 359.99), dec=st.floats(-85, 85), rotation=st.floats(-2, 2), distortion=st.floats(-1e-4, 1e-4),
    east=st.floats(-2, 2), north=st.floats(-2, 2),
)  # fmt: skip
def test_pixel_to_sky_is_the_inverse(ra, dec, rotation, distortion, east, north) -> None:  # type: ignore[no-untyped-def]
    geometry = Geometry(ra, dec, (400, 300), 1.0, east, north, rotation, distortion)
    x, y = np.meshgrid(np.linspace(0, 299, 5), np.linspace(0, 399, 5))
    back_x, back_y = geometry.sky_to_pixel(*geometry.pixel_to_sky(x, y))
    np.testing.assert_allclose(back_x, x, atol=1e-5)
    np.testing.assert_allclose(back_y, y, atol=1e-5)
