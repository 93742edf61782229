"""Catalogue of the sources of one image: detection, positions, fluxes, shapes, stars.

Detection and deblending are in `extraction`, positions and sizes in `shapes`, sums of light in `apertures`, the
separation of stars from galaxies in `stellar_locus`. Columns mean what those of SExtractor (Bertin & Arnouts 1996,
A&AS 117, 393) mean.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.errors import BadPixels
from seechange_assets.products import Background, Flag, FloatImage, Image, Sources
from seechange_assets.science.apertures import aperture_sums, kron_radii
from seechange_assets.science.background import level_map, rms_map
from seechange_assets.science.extraction import TRUNCATED, extract_objects
from seechange_assets.science.shapes import FWHM_PER_SIGMA, WindowedShapes, phase_corrected, windowed_shapes
from seechange_assets.science.stellar_locus import profile_fwhm, star_scores, stellar_size

if TYPE_CHECKING:
    from astropy.table import Table
    from astropy.wcs import WCS

# Pixels that hold no sky. Saturated ones stay: without them a bright star falls to pieces.
UNUSABLE = Flag.BAD | Flag.NO_DATA | Flag.OUT_OF_BOUNDS | Flag.COSMIC_RAY | Flag.STREAK
# Bit of ``extraction_flags`` beside those of `extraction`: the position is that of the isophote.
NO_CENTROID = 256
# The isophotes reach farther out than those SExtractor is usually given, so the first moment is taken within 5 of their
# radii instead of 6. The least radius, FWHM and pixels, is that of its PHOT_AUTOPARAMS 2.5, 3.5 for a star.
KRON_FACTOR, KRON_REACH, KRON_MIN_RADIUS_FWHM, KRON_MIN_RADIUS_PX = 2.5, 5.0, 1.7, 0.8
# Bright enough to tell the seeing, and what to assume before anything is known.
SEEING_SNR = 20.0
FIRST_GUESS_SIGMA_PX, GUESS_RANGE_SIGMA_PX = 1.3, (0.6, 6.0)
QUICK_LOOK_PX, QUICK_LOOK_SIGMA = 1024, 5.0
# More of the image than this over the threshold is no sky with sources.
MAX_LIT_SHARE = 0.9
# With so many clean stars of the seeing, blended ones do not take part in it.
ENOUGH_STARS = 5
UNDERSAMPLED_FWHM_PX = 2.8

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Pixels:
    """The image as the measurements see it: background-subtracted, with noise and mask."""

    data: FloatImage
    rms: FloatImage
    masked: NDArray[np.bool_]
    flags: NDArray[np.uint16]
    gain: float
    name: str


@dataclass(frozen=True, slots=True)
class _Seeing:
    """The mean star: FWHM and exponent of its Moffat profile, and sigma of the Gaussian that matches it [pixel]."""

    fwhm_px: float
    sigma_px: float
    beta: float = 3.0
    measured: bool = True


def extract_sources(
    image: Image,
    background: Background,
    *,
    threshold: float = 4.0,
    aperture_radii_fwhm: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0),
    min_area_px: int = 3,
    deblend_contrast: float = 0.005,
    deblend_significance: float = 2.5,
    star_score_min: float = 0.5,
    max_sources: int = 20000,
) -> Sources:
    """Detect and measure the sources of an image.

    Parameters
    ----------
    image : Image
    background : Background
        Of the same image.
    threshold : float
        Detection limit: signal to noise of a pixel after a matched filter of the seeing.
    aperture_radii_fwhm : tuple of float
        Radii of the circular apertures in units of the seeing.
    min_area_px : int
        Connected pixels over the threshold that make a source.
    deblend_contrast : float
        A peak beside a higher one is a source if it has this share of the other's light above their saddle ...
    deblend_significance : float
        ... and rises above the saddle by this many sigma of the filtered noise.
    star_score_min : float
        ``is_star`` needs a ``star_score`` above this.
    max_sources : int
        Where more are detected, the brightest this many in filtered light are measured. The others still part and
        flag their neighbours: they are left out after deblending.

    Returns
    -------
    Sources
        Possibly with no rows. Without any source bright enough to tell the seeing ``fwhm_px`` is NaN.
        ``n_detected`` is the number before the cut to `max_sources`.

    Raises
    ------
    BadPixels
        If nearly all of the image lies over the threshold.
    """
    pixels = _pixels(image, background)
    guess = _guessed_seeing(pixels)
    detected = _detected(pixels, guess, threshold, min_area_px, deblend_contrast, deblend_significance)
    found = _brightest(detected, max_sources)
    shapes, seeing = _measured_shapes(pixels, found, guess)
    radii = tuple(float(radius * seeing.fwhm_px) for radius in aperture_radii_fwhm)
    columns = _columns(pixels, found, shapes, seeing, radii)
    columns["star_score"] = star_scores(
        columns["x"], columns["y"], columns["fwhm_px"], columns["snr"],
        columns["is_good"] & (columns["extraction_flags"] == 0), image.data.shape,
    )  # fmt: skip
    columns["is_star"] = columns["is_good"] & (columns["star_score"] > star_score_min)
    fwhm_px = seeing.fwhm_px if seeing.measured else float("nan")
    return Sources(
        table=_sorted_table(columns), aperture_radii_px=radii, fwhm_px=fwhm_px, n_detected=int(detected.size)
    )


def _pixels(image: Image, background: Background) -> _Pixels:
    data = image.data - level_map(background)
    unusable = ((image.flags & UNUSABLE) != 0) & ((image.flags & Flag.INTERPOLATED) == 0)
    unusable |= ~np.isfinite(data)
    data[unusable] = 0.0
    name = f"{image.info.exposure} {image.info.ccd}"
    return _Pixels(data, rms_map(background), unusable, image.flags, image.info.gain, name)


def _guessed_seeing(pixels: _Pixels) -> _Seeing:
    """The seeing of the bright sources that a first look finds."""
    bright = _quick_look(pixels)
    isophotal = np.sqrt(np.median(bright["a"] * bright["b"])) if bright.size else FIRST_GUESS_SIGMA_PX
    sigma_px = float(np.clip(isophotal, *GUESS_RANGE_SIGMA_PX))
    guess = _Seeing(FWHM_PER_SIGMA * sigma_px, sigma_px, measured=False)
    return _measured_seeing(pixels, bright, _shapes(pixels, bright, guess.sigma_px), guess)


def _detected(
    pixels: _Pixels,
    guess: _Seeing,
    threshold: float,
    min_area_px: int,
    deblend_contrast: float,
    deblend_significance: float,
) -> NDArray[np.void]:
    """All objects under the matched filter of the guess."""
    found = extract_objects(
        pixels.data, pixels.rms, pixels.masked, taps=matched_taps(guess.fwhm_px), threshold=threshold,
        gain=pixels.gain, min_area_px=min_area_px, deblend_contrast=deblend_contrast,
        deblend_significance=deblend_significance,
    )  # fmt: skip
    if found["npix"].sum() > MAX_LIT_SHARE * pixels.data.size:
        raise BadPixels(
            f"sources of {pixels.name}: nearly all pixels lie over the threshold; check the background and its rms"
        )
    return found


def _brightest(found: NDArray[np.void], count: int) -> NDArray[np.void]:
    """The objects with most detected light, in the order they were found; of equal ones the first."""
    if found.size <= count:
        return found
    return found[np.sort(np.argsort(-found["flux"], kind="stable")[:count])]


def _measured_shapes(pixels: _Pixels, found: NDArray[np.void], guess: _Seeing) -> tuple[WindowedShapes, _Seeing]:
    """Positions and sizes under the window of the guess, and the seeing that they tell."""
    shapes = _shapes(pixels, found, guess.sigma_px)
    seeing = _measured_seeing(pixels, found, shapes, guess)
    if found.size and seeing.fwhm_px < UNDERSAMPLED_FWHM_PX:
        shapes = phase_corrected(shapes, fwhm_px=seeing.fwhm_px, beta=seeing.beta, seeing_sigma_px=guess.sigma_px)
    return shapes, seeing


def matched_taps(fwhm_px: float) -> NDArray[np.float32]:
    """Gaussian of the seeing along one axis, of sum 1, that reaches 3/4 FWHM from the centre."""
    half = int(np.clip(np.ceil(0.75 * fwhm_px), 1, 7))
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) * (FWHM_PER_SIGMA / fwhm_px)) ** 2)
    return np.asarray(taps / taps.sum(), np.float32)


def _quick_look(pixels: _Pixels) -> NDArray[np.void]:
    """Bright sources in the middle of the image, or of all of it where that holds too few."""
    ny, nx = pixels.data.shape
    low_y, low_x = max(ny // 2 - QUICK_LOOK_PX // 2, 0), max(nx // 2 - QUICK_LOOK_PX // 2, 0)
    found = _bright_objects(pixels, low_y, low_x)
    return found if found.size >= 50 else _bright_objects(pixels, 0, 0)


def _bright_objects(pixels: _Pixels, low_y: int, low_x: int) -> NDArray[np.void]:
    """Objects over the unfiltered noise, borders of that width left out."""
    ny, nx = pixels.data.shape
    part = np.s_[low_y : ny - low_y, low_x : nx - low_x]
    found = extract_objects(
        np.ascontiguousarray(pixels.data[part]), np.ascontiguousarray(pixels.rms[part]),
        np.ascontiguousarray(pixels.masked[part]), taps=np.ones(1, np.float32),
        threshold=QUICK_LOOK_SIGMA, gain=pixels.gain, min_area_px=3, deblend_contrast=0.05, deblend_significance=3.0,
    )  # fmt: skip
    for axis, offset in (("x", low_x), ("y", low_y)):
        for name in (axis, f"{axis}min", f"{axis}max"):
            found[name] += offset
    return found


def _shapes(pixels: _Pixels, found: NDArray[np.void], sigma_px: float) -> WindowedShapes:
    return windowed_shapes(
        pixels.data, pixels.rms, pixels.masked, found["x"], found["y"], seeing_sigma_px=sigma_px, gain=pixels.gain
    )


def _measured_seeing(pixels: _Pixels, found: NDArray[np.void], shapes: WindowedShapes, guess: _Seeing) -> _Seeing:
    """The size of the stars among bright sources; the guess if there are none."""
    bright = shapes.ok & (shapes.snr > SEEING_SNR) & np.isfinite(shapes.sigma_px) & ((found["flag"] & TRUNCATED) == 0)
    bright &= _flags_near(pixels, found, guess.fwhm_px) == 0
    if not bright.any():
        return guess
    clean = found["flag"] == 0
    sizes = np.log(np.where(bright, shapes.sigma_px, 1.0))
    mode = stellar_size(sizes[bright], shapes.snr[bright], clean[bright])
    alike = bright & (np.abs(sizes - mode) < 0.1)
    # Blended stars have a say only where there is hardly another one.
    stars = np.flatnonzero(alike & clean) if np.count_nonzero(alike & clean) >= ENOUGH_STARS else np.flatnonzero(alike)
    stars = stars[np.argsort(-shapes.snr[stars], kind="stable")][:200]
    sigma_px = float(np.exp(np.median(sizes[stars])))
    fwhm_px, beta = profile_fwhm(pixels.data, shapes.x[stars], shapes.y[stars], shapes.sigma_px[stars], pixels.masked)
    if not np.isfinite(fwhm_px):
        return _Seeing(FWHM_PER_SIGMA * sigma_px, sigma_px)
    return _Seeing(fwhm_px, sigma_px, beta)


def _columns(
    pixels: _Pixels,
    found: NDArray[np.void],
    shapes: WindowedShapes,
    seeing: _Seeing,
    radii: tuple[float, ...],
) -> dict[str, NDArray[Any]]:
    """The columns of `Sources` that need no comparison with other sources."""
    x, y = np.where(shapes.ok, shapes.x, found["x"]), np.where(shapes.ok, shapes.y, found["y"])
    x_err = np.where(shapes.ok, shapes.x_err, np.sqrt(np.maximum(found["errx2"], 0.0)))
    y_err = np.where(shapes.ok, shapes.y_err, np.sqrt(np.maximum(found["erry2"], 0.0)))
    apertures = [_circle_flux(pixels, x, y, radius) for radius in radii]
    auto, auto_err = _kron_flux(pixels, found, x, y, seeing.fwhm_px)
    image_flags = _flags_near(pixels, found, seeing.fwhm_px)
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = np.where(shapes.ok, shapes.snr, apertures[0][0] / apertures[0][1])
    good = shapes.ok & (image_flags == 0) & ((found["flag"] & TRUNCATED) == 0) & (np.nan_to_num(auto) > 0)
    return {
        "x": x, "y": y, "x_err": x_err, "y_err": y_err,
        "flux_auto": auto, "flux_auto_err": auto_err,
        "flux_aper": np.stack([flux for flux, _ in apertures], axis=1),
        "flux_aper_err": np.stack([error for _, error in apertures], axis=1),
        "a": found["a"], "b": found["b"], "theta": found["theta"],
        # Sizes are Gaussian sigmas; this brings them to the scale of the seeing.
        "fwhm_px": shapes.sigma_px * (seeing.fwhm_px / seeing.sigma_px),
        "peak": found["peak"].astype(np.float64),
        "snr": snr,
        "extraction_flags": (found["flag"] | np.where(shapes.ok, 0, NO_CENTROID)).astype(np.int32),
        "image_flags": image_flags,
        "is_good": good,
    }  # fmt: skip


def _circle_flux(pixels: _Pixels, x: FloatArray, y: FloatArray, radius_px: float) -> tuple[FloatArray, FloatArray]:
    """Flux in circles; NaN where the border of the image cuts."""
    flux, error, cut = aperture_sums(
        pixels.data, pixels.rms, pixels.masked, x, y, (radius_px, radius_px, 0.0), gain=pixels.gain
    )
    return np.where(cut, np.nan, flux), np.where(cut, np.nan, error)


def _kron_flux(
    pixels: _Pixels, found: NDArray[np.void], x: FloatArray, y: FloatArray, fwhm_px: float
) -> tuple[FloatArray, FloatArray]:
    """Flux in 2.5 Kron (1980) radii, at least in a circle of some two FWHM."""
    a, b, theta = (found[name] for name in ("a", "b", "theta"))
    scale = KRON_FACTOR * kron_radii(pixels.data, pixels.masked, x, y, (a, b, theta), KRON_REACH)
    least = KRON_MIN_RADIUS_FWHM * fwhm_px + KRON_MIN_RADIUS_PX
    small = ~(scale * np.sqrt(a * b) > least)
    ellipse = np.where(small, least, a * scale), np.where(small, least, b * scale), np.where(small, 0.0, theta)
    return aperture_sums(pixels.data, pixels.rms, pixels.masked, x, y, ellipse, gain=pixels.gain)[:2]


def _flags_near(pixels: _Pixels, found: NDArray[np.void], fwhm_px: float) -> NDArray[np.uint16]:
    """OR of the flags inside the isophote: its box cut to the ellipse of three sigma, at least one FWHM wide."""
    ellipse = np.stack([found[name] for name in ("x", "y", "cxx", "cyy", "cxy")], axis=1).astype(np.float64)
    box = np.stack([found[name] for name in ("xmin", "xmax", "ymin", "ymax")], axis=1).astype(np.int64)
    flags: NDArray[np.uint16] = _or_flags(pixels.flags, ellipse, box, 0.5 * fwhm_px)
    return flags


@numba.njit(cache=True)
def _or_flags(flags, ellipse, box, core_px):  # type: ignore[no-untyped-def]
    ny, nx = flags.shape
    result = np.zeros(len(ellipse), np.uint16)
    for s in range(len(ellipse)):
        x, y, cxx, cyy, cxy = ellipse[s]
        core = int(np.ceil(core_px))
        cx, cy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        for j in range(max(min(box[s, 2], cy - core), 0), min(max(box[s, 3], cy + core), ny - 1) + 1):
            for i in range(max(min(box[s, 0], cx - core), 0), min(max(box[s, 1], cx + core), nx - 1) + 1):
                dx, dy = i - x, j - y
                inside = cxx * dx * dx + cyy * dy * dy + cxy * dx * dy <= 9.0
                if inside or dx * dx + dy * dy <= core_px * core_px:
                    result[s] |= flags[j, i]
    return result


def _sorted_table(columns: dict[str, NDArray[Any]]) -> "Table":
    """By decreasing flux, ties and unmeasured ones by position, so that the order is unique."""
    from astropy.table import Table

    flux = np.nan_to_num(columns["flux_auto"], nan=-np.inf)
    order = np.lexsort((columns["x"], columns["y"], -flux))
    return Table({name: np.ascontiguousarray(values[order]) for name, values in columns.items()})


def to_region_file(sources: Sources, wcs: "WCS | None" = None) -> str:
    """A DS9 region file: one circle of the seeing per source, stars green, other good ones cyan, the rest red.

    Parameters
    ----------
    sources : Sources
    wcs : astropy.wcs.WCS, optional
        With it the circles are on the sky (ICRS), else in image pixels, which DS9 counts from 1.
    """
    table = sources.table
    color = np.where(table["is_star"], "green", np.where(table["is_good"], "cyan", "red"))
    lines = ["# Region file format: DS9 version 4.1", "icrs" if wcs is not None else "image"]
    if wcs is None:
        first, second = np.asarray(table["x"]) + 1.0, np.asarray(table["y"]) + 1.0
        places, radius = [f"{a:.3f},{b:.3f}" for a, b in zip(first, second, strict=True)], f"{sources.fwhm_px:.3f}"
    else:
        from astropy.wcs.utils import proj_plane_pixel_scales

        first, second = wcs.all_pix2world(table["x"], table["y"], 0)
        places = [f"{a:.7f},{b:.7f}" for a, b in zip(first, second, strict=True)]
        radius = f'{sources.fwhm_px * float(np.mean(proj_plane_pixel_scales(wcs))) * 3600.0:.3f}"'
    lines += [f"circle({place},{radius}) # color={c}" for place, c in zip(places, color, strict=True)]
    return "\n".join(lines) + "\n"
