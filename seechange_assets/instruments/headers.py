"""Reading FITS headers that somebody else wrote, without trusting them.

Every refusal is a `BadExposure` of one line: which file, which extension and keyword,
what is wrong, what to do. Shared by the instruments.
"""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import BadExposure, InvalidName
from seechange_assets.names import checked_name
from seechange_assets.products import header_text

if TYPE_CHECKING:
    from astropy.io.fits import HDUList, Header

MJD_ZERO = datetime(1858, 11, 17, tzinfo=UTC)
YEAR_RANGE = (1990, 2100)
MIN_EXPTIME_S, MAX_EXPTIME_S = 0.001, 3600.0
MAX_TEXT = 80

#: Values of IMAGETYP or OBSTYPE (lower case) and the kind of exposure they mean.
KINDS = {
    "object": "science", "science": "science", "light": "science", "standard": "science",
    "bias": "bias", "zero": "bias", "dark": "dark",
    "flat": "flat", "dome flat": "flat", "domeflat": "flat", "sky flat": "flat", "skyflat": "flat", "twilight": "flat",
    "twilight flat": "flat", "twiflat": "flat",
}  # fmt: skip
#: The type of flat that a kind of exposure names, by how it begins.
FLAT_TYPES = {"dome": "dome", "sky": "sky", "twi": "twilight"}

_MISSING: Any = object()


def exposure_key(instrument: str, mjd: float) -> str:
    """The key of an exposure: instrument and UTC start, e.g. ``ls4_20261122T031502``.

    Fractions of a second are dropped; a millisecond of slack keeps a start on the full
    second from falling into the second before when it went through a float.
    """
    start = MJD_ZERO + timedelta(days=mjd) + timedelta(milliseconds=1)
    return checked_name(f"{instrument}_{start:%Y%m%dT%H%M%S}", "exposure key")


def night_of(mjd: float) -> str:
    """Date on which the observing night began, ``YYYY-MM-DD``: the date of UTC minus 12 hours.

    That puts the change of date at noon UTC, in daylight from the Canaries to Chile and Hawaii.
    """
    return f"{MJD_ZERO + timedelta(days=mjd) - timedelta(hours=12):%Y-%m-%d}"


def field_name(label: str, ra_deg: float, dec_deg: float) -> str:
    """The name of the field: the header's if it passes the allow-list, else the rounded pointing.

    The pointing is rounded to a tenth of a degree; ``p`` and ``m`` stand for the sign of the
    declination because ``+`` is no allowed character: ``f150.1p2.2``. Calibrations without a
    pointing get ``none``.
    """
    try:
        return checked_name(label, "field")
    except InvalidName:
        pass
    if not (math.isfinite(ra_deg) and math.isfinite(dec_deg)):
        return "none"
    return f"f{round(ra_deg, 1) % 360:.1f}{'m' if round(dec_deg, 1) < 0 else 'p'}{abs(dec_deg):.1f}"


def clean_text(text: str) -> str:
    """Free text of a header made safe: disallowed characters become ``_``, at most 80 remain."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]", "_", text.strip())[:MAX_TEXT]
    return "_" * len(cleaned) if set(cleaned) == {"."} else cleaned


def section_slices(section: str) -> tuple[slice, slice]:
    """A FITS section ``[x1:x2,y1:y2]`` (1-based, inclusive) as numpy slices ``(y, x)``.

    Raises
    ------
    ValueError
        When the text is no section with ascending, positive limits.
    """
    match = re.fullmatch(r"\s*\[\s*(\d{1,6})\s*:\s*(\d{1,6})\s*,\s*(\d{1,6})\s*:\s*(\d{1,6})\s*\]\s*", str(section))
    if match is None:
        raise ValueError(f"{str(section)[:40]!r} is not a section like [1:1024,1:4096]")
    x1, x2, y1, y2 = (int(part) for part in match.groups())
    if not (1 <= x1 <= x2 and 1 <= y1 <= y2):
        raise ValueError(f"{str(section)[:40]!r} must have ascending limits from 1")
    return slice(y1 - 1, y2), slice(x1 - 1, x2)


@contextmanager
def open_fits(path: Path, *, is_checked: bool = False) -> Iterator["HDUList"]:
    """Open a FITS file with every header read and its size checked against what they promise.

    Where that has been done before (`is_checked`), headers are read as they are needed.

    Raises
    ------
    BadExposure
        Missing, not FITS, a corrupt header, or shorter than its headers say.
    """
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyUserWarning

    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore", AstropyUserWarning)
        try:
            hdus = stack.enter_context(fits.open(path, memmap=False, lazy_load_hdus=is_checked))
            if not is_checked:
                _check_structure(path, hdus)
        except FileNotFoundError as error:
            raise BadExposure(f"{path}: no such file") from error
        except (*_CORRUPT, fits.VerifyError) as error:
            raise BadExposure(f"{path}: not a readable FITS file ({_one_line(error)}): transfer it again") from error
        yield hdus


#: FITS files consist of blocks of so many bytes.
_BLOCK = 2880
#: What astropy raises on damaged bytes, besides `VerifyError`; anything else would be a fault of ours.
_CORRUPT = (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, OverflowError)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


#: Keywords that astropy itself relies on; it reads them when it pleases, so they are tried at once.
_STRUCTURE = (
    "XTENSION",
    "BITPIX",
    "NAXIS",
    "NAXIS1",
    "NAXIS2",
    "PCOUNT",
    "GCOUNT",
    "EXTNAME",
    "BZERO",
    "BSCALE",
    "BLANK",
)


def _check_structure(path: Path, hdus: "HDUList") -> None:
    """Read the structural keywords; compare the size of an uncompressed file with the end of each data unit."""
    from astropy.io import fits

    for hdu in hdus:
        for keyword in _STRUCTURE:
            hdu.header.get(keyword)
    if path.suffix in (".gz", ".bz2", ".xz"):
        return
    size = path.stat().st_size
    for hdu in hdus:
        place, shape = hdu.fileinfo(), image_shape(hdu)
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise BadExposure(f"{path}: extension {hdu.name or 'PRIMARY'} has the impossible shape {shape}")
        # Blocks are padded to 2880 bytes; a missing padding at the end loses nothing. The size of a tile-compressed
        # image is that of its decompressed pixels, so only the padded span is known.
        span = place["datSpan"] if isinstance(hdu, fits.CompImageHDU) else min(place["datSpan"], hdu.size)
        if place["datLoc"] + span > size:
            raise BadExposure(
                f"{path}: truncated in extension {hdu.name or 'PRIMARY'}: {size} bytes, its headers promise"
                f" {place['datLoc'] + span}: transfer it again"
            )


def check_complete(path: Path) -> None:
    """Refuse a raw file whose last block is cut: a transfer that has not ended would claim the exposure's key.

    Raises
    ------
    BadExposure
        When the size of an uncompressed file is no multiple of 2880 bytes.
    """
    excess = path.stat().st_size % _BLOCK
    if excess and path.suffix not in (".gz", ".bz2", ".xz", ".fz"):
        raise BadExposure(
            f"{path}: truncated: {_BLOCK - excess} bytes are missing in its last block: transfer it again"
        )


def image_shape(hdu: Any) -> tuple[int, ...]:
    """Shape (y, x) of an image extension; empty for tables and for extensions of unknown type."""
    return tuple(hdu.shape) if getattr(hdu, "is_image", False) and hasattr(hdu, "shape") else ()


def read_pixels(path: Path, hdus: "HDUList", extension: str | int) -> NDArray[np.float32]:
    """The two-dimensional pixels of an extension as native float32.

    Raises
    ------
    BadExposure
        When the extension is missing, is no image, or cannot be read.
    """
    from astropy.io.fits import VerifyError

    try:
        hdu = hdus[extension]
    except (KeyError, IndexError) as error:
        raise BadExposure(f"{path}: no extension {extension!r}: is this a file of another instrument?") from error
    try:
        data = hdu.data
    except (*_CORRUPT, VerifyError) as error:
        raise BadExposure(f"{path}: extension {extension!r} cannot be read ({_one_line(error)})") from error
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.dtype.kind not in "uif":
        raise BadExposure(f"{path}: extension {extension!r} holds no two-dimensional image")
    return np.ascontiguousarray(data, dtype=np.float32)


_WCS_KEYWORD = re.compile(
    r"WCSAXES|(CTYPE|CUNIT|CRVAL|CRPIX|CDELT|CROTA)\d|(CD|PC|PV)\d_\d{1,2}|(A|B|AP|BP)_(ORDER|\d_\d)"
    r"|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX"
)


def wcs_text(header: "Header") -> str:
    """The WCS in a header as header text (`products.header_text`); empty if it holds no celestial WCS."""
    from astropy.io.fits import VerifyError

    cards = [card for card in header.cards if _WCS_KEYWORD.fullmatch(card.keyword)]
    try:
        values = {card.keyword: card.value for card in cards}
    except (VerifyError, ValueError):
        return ""
    types = str(values.get("CTYPE1", "")), str(values.get("CTYPE2", ""))
    has_matrix = "CD1_1" in values or "CDELT1" in values or "PC1_1" in values
    if not (any(t.startswith("RA--") for t in types) and any(t.startswith("DEC-") for t in types) and has_matrix):
        return ""
    return header_text(type(header)(cards))


class Keywords:
    """Typed access to the headers of one extension; the first header that has a keyword wins.

    Parameters
    ----------
    path : Path
        For the messages.
    extension : str
        For the messages.
    headers : Header
        Searched in order, e.g. the extension's, then the primary one.
    """

    def __init__(self, path: Path, extension: str, *headers: "Header") -> None:
        self._path, self._extension, self._headers = path, extension, headers

    def refuse(self, keyword: str, what: str) -> BadExposure:
        """The error for a keyword: file, extension, keyword, what is wrong."""
        return BadExposure(
            f"{self._path}: {self._extension}: {keyword} {what}: correct the header or set the file aside"
        )

    def raw(self, *names: str) -> tuple[str, Any]:
        """The first of `names` that is present with a value, and that value (None if absent)."""
        from astropy.io.fits import VerifyError
        from astropy.io.fits.card import Undefined

        for name in names:
            for header in self._headers:
                try:
                    value = header.get(name)
                except (VerifyError, ValueError) as error:
                    raise self.refuse(name, "is not a readable FITS card") from error
                if value is not None and not isinstance(value, Undefined):
                    return name, value
        return names[0], None

    def text(self, *names: str, default: str = _MISSING) -> str:
        """A text value, stripped."""
        _, value = self.raw(*names)
        if value is None:
            if default is _MISSING:
                raise self.refuse(" or ".join(names), "is missing")
            return default
        return str(value).strip()

    def number(self, *names: str, low: float = -math.inf, high: float = math.inf, default: float = _MISSING) -> float:
        """A finite number inside ``[low, high]``."""
        name, value = self.raw(*names)
        if value is None:
            if default is _MISSING:
                raise self.refuse(" or ".join(names), "is missing")
            return default
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError) as error:
            raise self.refuse(name, f"is {str(value)[:40]!r}, not a number") from error
        if not low <= number <= high:
            raise self.refuse(name, f"is {number!r}, expected {low:g} to {high:g}")
        return number

    def angle(self, name: str, low: float, high: float, *, hours: bool = False) -> float:
        """An angle in degrees, from a number of degrees or ``hh:mm:ss`` / ``dd:mm:ss`` text."""
        _, value = self.raw(name)
        match = re.fullmatch(r"\s*([+-]?)(\d{1,3}):(\d{1,2}):(\d{1,2}(?:\.\d*)?)\s*", str(value))
        if match is None:
            return self.number(name, low=low, high=high)
        sign, whole, minutes, seconds = match.groups()
        degrees = (int(whole) + int(minutes) / 60 + float(seconds) / 3600) * (15.0 if hours else 1.0)
        degrees = -degrees if sign == "-" else degrees
        if not low <= degrees <= high:
            raise self.refuse(name, f"is {value!r}, expected {low:g} to {high:g} degrees")
        return degrees

    def start_mjd(self) -> float:
        """Start of the exposure as MJD (UTC), from DATE-OBS (with TIME-OBS) or MJD-OBS; years 1990 to 2100."""
        name, value = self.raw("DATE-OBS")
        if value is None:
            low, high = (365.25 * (year - 1858.877) for year in YEAR_RANGE)
            _, mjd = self.raw("MJD-OBS")
            if mjd is None:
                raise self.refuse("DATE-OBS", "is missing")
            return self.number("MJD-OBS", low=low, high=high)
        text = str(value).strip()
        if "T" not in text:
            text = f"{text}T{self.text('TIME-OBS', 'UT', default='00:00:00')}"
        try:
            start = datetime.fromisoformat(text)
        except ValueError as error:
            raise self.refuse(name, f"is {text[:40]!r}, not a date like 2026-11-22T03:15:02.5") from error
        if not YEAR_RANGE[0] <= start.year <= YEAR_RANGE[1]:
            raise self.refuse(name, f"is {text[:40]!r}, expected a year from {YEAR_RANGE[0]} to {YEAR_RANGE[1]}")
        start = start.replace(tzinfo=UTC) if start.tzinfo is None else start
        return (start - MJD_ZERO) / timedelta(days=1)

    def exptime_s(self, kind: str) -> float:
        """Exposure time of an exposure of this kind, at most 3600 s; only bias and dark frames may have none."""
        low = 0.0 if kind in ("bias", "dark") else MIN_EXPTIME_S
        return self.number("EXPTIME", low=low, high=MAX_EXPTIME_S)

    def kind(self, *names: str, default: str = _MISSING) -> str:
        """``science``, ``bias``, ``dark`` or ``flat``."""
        text = self.text(*names, default=default)
        kind = KINDS.get(text.lower())
        if kind is None:
            raise self.refuse(names[0], f"is {text[:40]!r}, expected one of {', '.join(sorted(KINDS))}")
        return kind

    def flat_type(self, *names: str) -> str:
        """``dome``, ``twilight`` or ``sky`` where the kind of a flat says it, else empty."""
        text = self.text(*names, default="").lower()
        if KINDS.get(text) != "flat":
            return ""
        return next((kind for start, kind in FLAT_TYPES.items() if text.startswith(start)), "")

    def filter_name(self, known: Sequence[str], *, default: str = _MISSING) -> str:
        """One of the instrument's filters; only the first word counts (``r DECam SDSS c0002``)."""
        text = self.text("FILTER", default=default)
        first = (text.split() or [""])[0]
        if first not in known:
            raise self.refuse("FILTER", f"is {text[:40]!r}, expected one of {', '.join(known)}")
        return first

    def section(self, name: str, shape: tuple[int, int]) -> tuple[slice, slice]:
        """A section keyword as slices inside `shape`."""
        try:
            rows, columns = section_slices(self.text(name))
        except ValueError as error:
            raise self.refuse(name, str(error)) from error
        if rows.stop > shape[0] or columns.stop > shape[1]:
            raise self.refuse(name, f"reaches outside the {shape[1]} x {shape[0]} pixels")
        return rows, columns
