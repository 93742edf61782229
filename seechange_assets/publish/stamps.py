"""Stamps of an alert: small FITS files with WCS, flags and the PSF.

Each stamp is one FITS file (standard 4.0, sections 4 and 7.1): the pixels as float32 in the primary HDU, the flags
as 8-bit integers in the extension ``FLAGS``; that of the difference also has its ``PSF``.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from astropy.wcs import WCS

    from seechange_assets.products import Cutouts, Psf, Wcs

Cards = dict[str, float | str]
#: Side of the PSF's image [pixel], smaller where its table is.
PSF_SIZE = 25
_BITPIX = {"f": -32, "u": 8}


def alert_stamps(
    sources: Sequence[Mapping[str, Any]], cutouts: "Cutouts", wcs: "Wcs", psf: "Psf"
) -> list[tuple[bytes, bytes, bytes]]:
    """FITS stamps (difference, new, reference) of each source.

    Parameters
    ----------
    sources : sequence of mapping
        ``x, y`` [pixel], ``detection`` (row in `cutouts`) and ``zp`` of each.
    """
    from seechange_assets.science.psf import render

    if not sources:
        return []
    x, y = (np.array([source[name] for source in sources], float) for name in ("x", "y"))
    rows = [source["detection"] for source in sources]
    all_cards = stamp_wcs(wcs.astropy(), x, y, cutouts.corner[rows])
    psfs = render(psf, np.floor(x + 0.5), np.floor(y + 0.5), PSF_SIZE).astype(np.float32)
    stamps = []
    for k, (row, source) in enumerate(zip(rows, sources, strict=True)):
        header = _stamp_header(cutouts.sub.shape[1:], all_cards[k] | {"BUNIT": "adu", "MAGZERO": source["zp"]})
        difference, new, reference = (
            header + _data(pixels[row]) + fits_extension("FLAGS", low_byte(flags[row]))
            for pixels, flags in (
                (cutouts.sub, cutouts.sub_flags), (cutouts.new, cutouts.new_flags), (cutouts.ref, cutouts.ref_flags),
            )
        )  # fmt: skip
        stamps.append((difference + fits_extension("PSF", psfs[k]), new, reference))
    return stamps


def low_byte(flags: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The flags that alerts tell: all that have a published meaning fit into eight bits."""
    return (flags & 0xFF).astype(np.uint8)


def fits_stamp(pixels: NDArray[np.float32], cards: Mapping[str, str | float]) -> bytes:
    """The smallest valid FITS file of a 2-D float image; extensions may follow."""
    return _stamp_header(pixels.shape, cards) + _data(pixels)


def fits_extension(name: str, pixels: NDArray[Any]) -> bytes:
    """An image extension (float or unsigned 8-bit)."""
    return _extension_header(name, pixels.dtype.kind, pixels.shape) + _data(pixels)


def _stamp_header(shape: tuple[int, ...], cards: Mapping[str, str | float]) -> bytes:
    return _header([_card("SIMPLE", "T")], "f", shape, [_card("EXTEND", "T"), *_cards(cards)])


@lru_cache(maxsize=64)
def _extension_header(name: str, kind: str, shape: tuple[int, ...]) -> bytes:
    counts = [_card("PCOUNT", "0"), _card("GCOUNT", "1")]
    return _header([_card("XTENSION", "'IMAGE   '")], kind, shape, [*counts, *_cards({"EXTNAME": name})])


def _header(first: list[str], kind: str, shape: tuple[int, ...], after: list[str]) -> bytes:
    ny, nx = shape
    cards = [*first, _card("BITPIX", str(_BITPIX[kind])), _card("NAXIS", "2")]
    cards += [_card("NAXIS1", str(nx)), _card("NAXIS2", str(ny)), *after, f"{'END':<80}"]
    return _padded("".join(cards).encode("ascii"), b" ")


def _data(pixels: NDArray[Any]) -> bytes:
    return _padded(pixels.astype(">f4" if pixels.dtype.kind == "f" else np.uint8).tobytes(), b"\0")


def _cards(cards: Mapping[str, str | float]) -> list[str]:
    return [
        _card(keyword, f"'{value:<8}'" if isinstance(value, str) else f"{value:.15E}")
        for keyword, value in cards.items()
    ]


def _card(keyword: str, value: str) -> str:
    text = f"{value:<20}" if value.startswith("'") else f"{value:>20}"
    return f"{keyword:<8}= {text}".ljust(80)


def _padded(block: bytes, filler: bytes) -> bytes:
    return block + filler * (-len(block) % 2880)


def stamp_wcs(wcs: "WCS", x: NDArray[np.float64], y: NDArray[np.float64], corner: NDArray[np.int32]) -> list[Cards]:
    """WCS cards of stamps: the tangent plane at each source, linear within the stamp.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Sources in the image [pixel].
    corner : ndarray of int, shape (n, 2)
        (x, y) of the first pixel of each stamp.
    """
    if len(x) == 0:
        return []
    step = 5.0
    ra, dec = wcs.all_pix2world(x, y, 0)
    matrix = np.empty((len(x), 2, 2))
    for axis, (dx, dy) in enumerate([(step, 0.0), (0.0, step)]):
        ahead = wcs.all_pix2world(x + dx, y + dy, 0)
        behind = wcs.all_pix2world(x - dx, y - dy, 0)
        width = _tangent_plane(ahead[0], ahead[1], ra, dec) - _tangent_plane(behind[0], behind[1], ra, dec)
        matrix[:, :, axis] = width / (2 * step)
    return [
        {
            "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS",
            "CRVAL1": float(ra[i]), "CRVAL2": float(dec[i]),
            "CRPIX1": float(x[i] - corner[i, 0] + 1), "CRPIX2": float(y[i] - corner[i, 1] + 1),
            "CD1_1": float(matrix[i, 0, 0]), "CD1_2": float(matrix[i, 0, 1]),
            "CD2_1": float(matrix[i, 1, 0]), "CD2_2": float(matrix[i, 1, 1]),
        }
        for i in range(len(x))
    ]  # fmt: skip


def _tangent_plane(ra: Any, dec: Any, ra0: Any, dec0: Any) -> NDArray[np.float64]:
    """Gnomonic coordinates [deg] around (ra0, dec0), shape (n, 2)."""
    alpha, delta, delta0 = np.deg2rad(ra - ra0), np.deg2rad(dec), np.deg2rad(dec0)
    cosine = np.sin(delta0) * np.sin(delta) + np.cos(delta0) * np.cos(delta) * np.cos(alpha)
    xi = np.cos(delta) * np.sin(alpha) / cosine
    eta = (np.cos(delta0) * np.sin(delta) - np.sin(delta0) * np.cos(delta) * np.cos(alpha)) / cosine
    plane: NDArray[np.float64] = np.rad2deg(np.column_stack([xi, eta]))
    return plane
