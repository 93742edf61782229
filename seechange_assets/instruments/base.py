"""What an instrument must define; `docs/instruments.md` walks through a new one.

An instrument is a subclass of `Instrument` registered by name. It knows its CCDs,
reads a raw file (or a calibrated one) and turns the header into `ExposureInfo`.
Nothing here touches Dagster, the database or the environment.
"""

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import ParameterError
from seechange_assets.files import once_per_file
from seechange_assets.products import ExposureInfo, FlagImage, FloatImage, ImageInfo, plain

_REGISTRY: dict[str, type["Instrument"]] = {}


@dataclass(frozen=True, slots=True)
class Amplifier:
    """One read-out channel of a CCD. Slices are ``(y, x)`` numpy slices.

    ``raw_data`` and ``raw_overscan`` index the raw array, ``ccd`` the trimmed CCD frame.
    """

    name: str
    raw_data: tuple[slice, slice]
    raw_overscan: tuple[slice, slice]
    ccd: tuple[slice, slice]
    gain: float
    read_noise: float
    saturation: float
    nonlinearity: float = 0.0


@dataclass(frozen=True, slots=True)
class RawCcd:
    """The pixels of one CCD as read from a file.

    ``data`` is the raw array (untrimmed) for raw files or the calibrated frame when
    ``info.steps_done`` says so; ``flags`` and ``variance`` come from the file where it has them
    (calibrated frames only). ``amplifiers`` is empty for calibrated frames.
    """

    info: ImageInfo
    data: NDArray[np.float32]
    amplifiers: tuple[Amplifier, ...] = ()
    flags: FlagImage | None = None
    variance: FloatImage | None = None


class Instrument(ABC):
    """Base class of every instrument. Subclasses register under ``name``."""

    name: ClassVar[str] = ""
    telescope: ClassVar[str] = ""
    #: Longitude (east), latitude [deg] and height [m] of the telescope; None if it can be anywhere.
    site: ClassVar[tuple[float, float, float] | None] = None
    ccds: ClassVar[tuple[str, ...]] = ()
    ccd_shape: ClassVar[tuple[int, int]] = (0, 0)
    pixel_scale_arcsec: ClassVar[float] = float("nan")
    filters: ClassVar[tuple[str, ...]] = ()
    #: Rows and columns of the CCDs on the sky, where they form a grid. Without a value here: `constants` are recipes.
    grid: ClassVar[tuple[int, int]]
    #: Calibration steps that are left out in a filter, whatever is wanted; parameters go before.
    skip_by_filter: ClassVar[dict[str, tuple[str, ...]]] = {}
    #: Whether each CCD has its own filter for ever, so that one night's flats are of one filter per CCD.
    filter_by_ccd: ClassVar[bool] = False
    #: Colour transform from Gaia: filter -> polynomial c_i with
    #: m_filter = G - sum c_i (BP-RP)^i; see `gaia_magnitude`.
    gaia_colors: ClassVar[dict[str, tuple[float, ...]]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.name:
            _REGISTRY[cls.name] = cls

    @functools.cached_property
    def exposure_of(self) -> Callable[[Path], ExposureInfo]:
        """`read_exposure`, which reads the headers of all CCDs, once for a file."""
        return once_per_file(self.read_exposure)

    @abstractmethod
    def read_exposure(self, path: Path) -> ExposureInfo:
        """Parse and validate the header of a file (every extension's presence too).

        Raises
        ------
        BadExposure
            Not FITS, truncated, wrong extensions, or a missing or absurd value; one
            line that names the keyword or extension.
        """

    @abstractmethod
    def read_ccd(self, path: Path, ccd: str) -> RawCcd:
        """Read the pixels of one CCD.

        Raises
        ------
        BadExposure
            When the extension cannot be read.
        """

    def constants(self) -> dict[str, Any]:
        """Every plain public attribute of the class: what the camera is assumed to be.

        They are part of the provenance of all its products. A subclass that reads tables (bad pixels,
        linearity) gives their version in an attribute of its own.
        """
        names = [name for name in dir(type(self)) if not name.startswith("_")]
        values = {name: getattr(type(self), name) for name in names}
        plain_types = (str, int, float, tuple, dict)
        return {name: json.loads(json.dumps(plain(v))) for name, v in values.items() if isinstance(v, plain_types)}

    def bad_pixels(self, ccd: str) -> FlagImage:  # noqa: ARG002 (cameras with a known mask look it up by CCD)
        """The standard bad-pixel flags of a CCD (none by default), shape ``ccd_shape``."""
        return np.zeros(self.ccd_shape, np.uint16)

    def gaia_magnitude(self, filter_name: str, mag_g: NDArray, color: NDArray) -> NDArray:
        """AB magnitude in a filter from Gaia G and BP-RP; identity where no transform is known."""
        coefficients = self.gaia_colors.get(filter_name, ())
        return mag_g - sum((c * color**i for i, c in enumerate(coefficients)), start=np.zeros_like(mag_g))


def get_instrument(name: str) -> Instrument:
    """The instrument registered under `name`.

    Raises
    ------
    ParameterError
        With the names that exist.
    """
    from seechange_assets.instruments import decam, demo, generic, ls4  # noqa: F401  (they register themselves)

    if name not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise ParameterError(f"instrument {name!r} is not known: expected one of {known}")
    return _REGISTRY[name]()
