"""A small camera with the file format of LS4, for fast tests and for learning the system."""

from typing import ClassVar

from seechange_assets.instruments.ls4 import Ls4


class Demo(Ls4):
    """Two CCDs of 512 x 512 pixels, one behind an r and one behind a g filter."""

    name = "demo"
    telescope = "simulated"
    ccds = ("01", "02")
    ccd_shape = (512, 512)
    grid = (1, 2)
    # With a single row of CCDs only the northern quadrants exist.
    quadrant_filters: ClassVar[tuple[str, str, str, str]] = ("r", "g", "r", "g")
