"""Point spread functions: rendering a `Psf` into pixels, and simple analytic ones.

The model is an *effective* PSF (Anderson & King 2000, PASP 112, 1360): the value of a
pixel as a function of its distance from the star, pixel response included. It is tabulated
``oversampling`` times per pixel and interpolated with a Lanczos-4 kernel; each table
entry is a polynomial of the position on the CCD. Fitting it to stars is in `psf_fit`.
"""

from typing import TYPE_CHECKING

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from seechange_assets.errors import BadPixels
from seechange_assets.products import Psf

if TYPE_CHECKING:
    from astropy.table import Table

LANCZOS_ORDER = 4
# Fewer table entries per FWHM than this alias visibly through the interpolation.
SAMPLES_PER_FWHM = 3.2
MAX_OVERSAMPLING = 4
# Exponent of the Moffat profile that the wings of stars are taken to have.
WING_BETA = 3.0

FloatArray = NDArray[np.float64]


def polynomial_terms(x: ArrayLike, y: ArrayLike, degree: int, shape: tuple[int, int]) -> FloatArray:
    """Products ``x'^i y'^j`` with ``i + j <= degree``, the basis in which the PSF varies.

    Parameters
    ----------
    x, y : array_like, shape (n,)
        Positions [pixel]; those outside the image take the value at its border, because
        a polynomial must not be extrapolated.
    degree : int
        Highest total power.
    shape : tuple of int
        ``(ny, nx)`` of the image; ``x' = 2x/(nx-1) - 1`` runs from -1 to 1.

    Returns
    -------
    ndarray, shape (n, (degree+1)(degree+2)/2)
        Ordered by total power, within it by falling power of x: 1, x, y, x², xy, y², ...
    """
    ny, nx = shape
    u = np.clip(2.0 * np.atleast_1d(np.asarray(x, float)) / max(nx - 1, 1) - 1.0, -1.0, 1.0)
    v = np.clip(2.0 * np.atleast_1d(np.asarray(y, float)) / max(ny - 1, 1) - 1.0, -1.0, 1.0)
    terms = [u ** (total - j) * v**j for total in range(degree + 1) for j in range(total + 1)]
    return np.stack(terms, axis=-1)


def native_size(psf: Psf) -> int:
    """Side [pixel] of the odd stamp that holds the whole tabulated PSF."""
    half: int = (psf.coefficients.shape[-1] - 1) // 2
    return 2 * (half // psf.oversampling) + 1


def render(psf: Psf, x: ArrayLike, y: ArrayLike, size: int | None = None) -> FloatArray:
    """Stamps of the PSF at given positions, each with sum 1.

    Parameters
    ----------
    psf : Psf
    x, y : array_like, shape (n,)
        Positions of the stars [pixel]. The stamp's central pixel is
        ``floor(x + 0.5), floor(y + 0.5)``, the PSF sits at its sub-pixel place within it.
    size : int, optional
        Odd side of the stamps; `native_size` by default. Pixels beyond the table are zero.

    Returns
    -------
    ndarray of float64, shape (n, size, size)
    """
    stamps = raw_stamps(psf, x, y, native_size(psf) if size is None else size)
    total: FloatArray = stamps.sum(axis=(1, 2), keepdims=True)
    return stamps / total


def raw_stamps(
    psf: Psf,
    x: ArrayLike,
    y: ArrayLike,
    size: int,
    *,
    centered: bool = False,
    center: tuple[ArrayLike, ArrayLike] | None = None,
) -> FloatArray:
    """As `render` without the normalisation, so smaller stamps are crops of larger ones.

    With ``centered`` the PSF of that place is drawn exactly on the central pixel. ``center`` puts the
    stamps' central pixels (x, y) elsewhere; they need not be near the stars.
    """
    if size % 2 != 1 or size < 1:
        raise ValueError(f"a PSF stamp has an odd size, got {size}")
    x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    terms = polynomial_terms(x, y, psf.degree, psf.shape)
    n_terms, n_grid, _ = psf.coefficients.shape
    grids = (terms @ psf.coefficients.reshape(n_terms, -1)).reshape(-1, n_grid, n_grid)
    if centered:
        center = (x, y)
    elif center is None:
        center = (np.floor(x + 0.5), np.floor(y + 0.5))
    stamps: FloatArray = _resample(grids, x - center[0], y - center[1], psf.oversampling, size)
    return stamps


def enclosed_at(psf: Psf, x: ArrayLike, y: ArrayLike) -> FloatArray:
    """Share of a star's light that the table holds at each position: `Psf.enclosed` is that of the mean star.

    The wings of a Moffat profile beyond a fixed radius hold light as ``width^(2 beta - 2)``, and its peak falls as
    ``width^-2``: where a star is sharper, less is lost. At a variation of 15 % this is half a per cent of the flux.
    """
    n_grid = psf.coefficients.shape[-1]
    center = psf.coefficients[:, n_grid // 2, n_grid // 2]
    terms = polynomial_terms(x, y, psf.degree, psf.shape)
    if psf.degree == 0 or psf.enclosed >= 1.0 or center[0] <= 0.0:
        return np.full(len(terms), psf.enclosed)
    sharpness = np.clip(terms @ center / center[0], 0.5, 2.0)
    share: FloatArray = 1.0 - (1.0 - psf.enclosed) * sharpness ** (1.0 - WING_BETA)
    return share


def centered_image(psf: Psf, x: float, y: float, shape: tuple[int, int]) -> FloatArray:
    """A frame of ``shape`` with the PSF of position (x, y) centred on pixel (0, 0), wrapped around.

    This is the form a Fourier transform wants: convolving with it moves nothing.
    """
    size = min(native_size(psf), shape[0] - (shape[0] + 1) % 2, shape[1] - (shape[1] + 1) % 2)
    stamp = raw_stamps(psf, x, y, size, centered=True)[0]
    frame = np.zeros(shape)
    frame[:size, :size] = stamp / stamp.sum()
    return np.roll(frame, (-(size // 2), -(size // 2)), axis=(0, 1))


def effective_area(stamp: ArrayLike) -> float:
    """Pixels of sky noise in a PSF flux: ``1 / sum(psf^2)`` for a stamp of sum 1."""
    return float(1.0 / np.sum(np.square(np.asarray(stamp, float))))


def constant_psf(stamp: ArrayLike, shape: tuple[int, int], fwhm_px: float) -> Psf:
    """A PSF that is the same everywhere, from an odd, centred stamp sampled once per pixel.

    Raises
    ------
    ValueError
        If the stamp is not square and odd.
    BadPixels
        If it is not finite or its sum is not positive.
    """
    stamp = np.array(stamp, dtype=np.float64)
    if stamp.ndim != 2 or stamp.shape[0] != stamp.shape[1] or stamp.shape[0] % 2 != 1:
        raise ValueError(f"a PSF stamp is square with an odd side, got shape {stamp.shape}")
    return analytic_psf(stamp, shape, fwhm_px, 1, "pixels")


def gaussian_psf(
    fwhm_px: float, shape: tuple[int, int], size: int | None = None, oversampling: int | None = None
) -> Psf:
    """A round Gaussian of that FWHM in the image (pixel response included), ``size`` pixels wide."""
    sigma = fwhm_px / np.sqrt(8.0 * np.log(2.0))
    oversampling, r2 = _radius_squared(fwhm_px, size, oversampling)
    return analytic_psf(np.exp(-0.5 * r2 / sigma**2), shape, fwhm_px, oversampling, "gaussian")


def moffat_psf(
    fwhm_px: float, beta: float, shape: tuple[int, int], size: int | None = None, oversampling: int | None = None
) -> Psf:
    """A round Moffat (1969) profile ``(1 + r²/α²)^-β`` of that FWHM in the image."""
    alpha = fwhm_px / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
    oversampling, r2 = _radius_squared(fwhm_px, size, oversampling)
    return analytic_psf((1.0 + r2 / alpha**2) ** -beta, shape, fwhm_px, oversampling, "moffat")


def analytic_psf(table: FloatArray, shape: tuple[int, int], fwhm_px: float, oversampling: int, form: str) -> Psf:
    """A constant `Psf` from its table; no photometry, no stars."""
    total = table.sum()
    if not np.isfinite(total) or total <= 0:
        raise BadPixels(f"a PSF needs finite pixels with a positive sum, got sum {total}")
    return Psf(
        coefficients=(table * (oversampling**2 / total))[None],
        oversampling=oversampling,
        degree=0,
        shape=(int(shape[0]), int(shape[1])),
        fwhm_px=float(fwhm_px),
        form=form,
        n_stars=0,
        chi2=float("nan"),
        photometry=empty_photometry(0),
    )


def empty_photometry(n: int) -> "Table":
    """The ``photometry`` table of a `Psf`, nothing measured yet."""
    from astropy.table import Table

    nan = np.full(n, np.nan)
    return Table({
        "flux_psf": nan, "flux_psf_err": nan.copy(), "chi2": nan.copy(),
        "used": np.zeros(n, bool), "reserved": np.zeros(n, bool),
    })  # fmt: skip


def oversampling_for(fwhm_px: float) -> int:
    """Table entries per pixel that a seeing needs: 1 when well sampled, up to 4."""
    return int(np.clip(np.ceil(SAMPLES_PER_FWHM / fwhm_px), 1, MAX_OVERSAMPLING))


def default_size(fwhm_px: float) -> int:
    """Odd side [pixel] of a stamp that reaches three FWHM from the centre, at least 11."""
    return max(2 * int(np.ceil(3.0 * fwhm_px)) + 1, 11)


def _radius_squared(fwhm_px: float, size: int | None, oversampling: int | None) -> tuple[int, FloatArray]:
    """Oversampling and squared distance from the centre [pixel²] of each table entry."""
    if not np.isfinite(fwhm_px) or fwhm_px <= 0:
        raise ValueError(f"the FWHM of a PSF is a positive number of pixels, got {fwhm_px}")
    size = default_size(fwhm_px) if size is None else size
    if size % 2 != 1:
        raise ValueError(f"a PSF stamp has an odd size, got {size}")
    oversampling = oversampling or oversampling_for(fwhm_px)
    half = (size // 2) * oversampling
    axis = np.arange(-half, half + 1) / oversampling
    return oversampling, axis[:, None] ** 2 + axis[None, :] ** 2


@numba.njit(cache=True)
def _lanczos_taps(fraction: float) -> FloatArray:
    """Weights of the 8 table entries around a point `fraction` (0..1) past the fourth, sum 1."""
    taps = np.empty(2 * LANCZOS_ORDER)
    for k in range(2 * LANCZOS_ORDER):
        t = fraction + LANCZOS_ORDER - 1 - k
        if abs(t) < 1e-9:
            taps[k] = 1.0
        elif abs(t) >= LANCZOS_ORDER:
            taps[k] = 0.0
        else:
            pt = np.pi * t
            taps[k] = LANCZOS_ORDER * np.sin(pt) * np.sin(pt / LANCZOS_ORDER) / (pt * pt)
    unit_sum: FloatArray = taps / taps.sum()
    return unit_sum


@numba.njit(cache=True)
def _resample(grids: FloatArray, shift_x: FloatArray, shift_y: FloatArray, oversampling: int, size: int) -> FloatArray:
    """Sample each table at the pixels of a stamp whose star is shifted from the central pixel.

    The phase between pixels and table entries is the same for all pixels of a star, so one set
    of Lanczos weights per axis serves the whole stamp.
    """
    n, n_grid, _ = grids.shape
    half = size // 2
    center = (n_grid - 1) // 2
    stamps = np.zeros((n, size, size))
    # Rows first, so that all inner loops run over neighbours; dark entries at both ends spare questions about them.
    margin = 2 * LANCZOS_ORDER
    rows = np.zeros((size, n_grid + 2 * margin))
    for s in range(n):
        start_x = center - oversampling * (half + shift_x[s])
        start_y = center - oversampling * (half + shift_y[s])
        first_x, first_y = int(np.floor(start_x)), int(np.floor(start_y))
        taps_x, taps_y = _lanczos_taps(start_x - first_x), _lanczos_taps(start_y - first_y)
        for i in range(size):
            bottom = first_y + oversampling * i - LANCZOS_ORDER + 1
            _weighted_rows(grids[s], bottom, taps_y, rows[i, margin : margin + n_grid])
        left = first_x - LANCZOS_ORDER + 1 + margin
        # The other columns see nothing of the table.
        low = min(max(0, -(left // oversampling)), size)
        high = max(min(size, (n_grid + margin - left) // oversampling + 1), low)
        t0, t1, t2, t3, t4, t5, t6, t7 = taps_x
        for i in range(size):
            row, stamp = rows[i, left + oversampling * low :], stamps[s, i, low:]
            for j in range(high - low):
                k = oversampling * j
                stamp[j] = (
                    t0 * row[k] + t1 * row[k + 1] + t2 * row[k + 2] + t3 * row[k + 3]
                    + t4 * row[k + 4] + t5 * row[k + 5] + t6 * row[k + 6] + t7 * row[k + 7]
                )  # fmt: skip
    return stamps


@numba.njit(cache=True)
def _weighted_rows(grid: FloatArray, bottom: int, taps: FloatArray, out: FloatArray) -> None:
    """The sum of 8 rows of the table from `bottom` on, some of which may not exist, times the taps."""
    if bottom >= 0 and bottom + 2 * LANCZOS_ORDER <= len(grid):
        t0, t1, t2, t3, t4, t5, t6, t7 = taps
        r0, r1, r2, r3 = grid[bottom], grid[bottom + 1], grid[bottom + 2], grid[bottom + 3]
        r4, r5, r6, r7 = grid[bottom + 4], grid[bottom + 5], grid[bottom + 6], grid[bottom + 7]
        for g in range(out.size):
            out[g] = (
                t0 * r0[g] + t1 * r1[g] + t2 * r2[g] + t3 * r3[g] + t4 * r4[g] + t5 * r5[g] + t6 * r6[g] + t7 * r7[g]
            )
        return
    out[:] = 0.0
    for k in range(max(0, -bottom), min(2 * LANCZOS_ORDER, len(grid) - bottom)):
        tap, row = taps[k], grid[bottom + k]
        for g in range(out.size):
            out[g] += tap * row[g]
