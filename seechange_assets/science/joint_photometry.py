"""PSF fluxes of all sources of an image together, neighbours taken out."""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import Background, FloatImage, Image, Psf
from seechange_assets.science.background import level_map, rms_map, sky_of_pixels
from seechange_assets.science.psf import native_size
from seechange_assets.science.psf_photometry import MIN_WEIGHT_FRACTION, chunks, unit_stamps

# A model is trusted to this share of its value.
MODEL_ACCURACY = 0.01
# The fluxes are fitted within this radius; the whole stamps are subtracted.
CORE_FWHM, MIN_CORE_PX = 1.5, 2.5
# A correction below the first share of the sky's part in the error of the flux is not worth a subtraction, and one
# below the second no new look at the neighbours. Blends of bright sources alone need more than three sweeps.
NEGLIGIBLE_STEP, DISTURBING_STEP, MOST_SWEEPS = 1e-3, 1e-2, 4
# Side of the cells in which is noted when light changed last.
CELL_PX = 8
# With the sources subtracted and masked most of the skew left is that of the Poisson noise, which asks for -1.
RESIDUAL_SKEW_FACTOR = -0.5

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Frame:
    """Background-subtracted pixels and sky rms [ADU], usable pixels, gain [e-/ADU], mesh of the background.

    ``weight`` is the inverse of the sky's variance, zero where a pixel is not usable.
    """

    data: FloatImage
    rms: FloatImage
    weight: FloatImage
    usable: NDArray[np.bool_]
    gain: float
    box_size_px: int


def sky_free_frame(image: Image, background: Background) -> Frame:
    """The image as PSF photometry sees it: no pixel with a flag takes part."""
    data = image.data - level_map(background)
    usable = (image.flags == 0) & np.isfinite(data)
    data[~usable] = 0.0
    rms = rms_map(background)
    weight = np.where(usable, 1.0 / np.square(rms), np.float32(0.0))
    return Frame(data, rms, weight, usable, image.info.gain, background.box_size_px)


@dataclass(frozen=True, slots=True)
class JointPhotometry:
    """PSF photometry of many sources at once.

    ``flux, flux_err, chi2, misfit`` are ``(n,)``: ``misfit`` is chi2 with the accuracy of the model counted
    as noise. ``information`` ``(n,)`` is the inverse variance of each flux in the noise of the sky, ``stamps``
    ``(n, size, size)`` are the PSFs and ``residual`` is the image without any of the sources.
    """

    flux: FloatArray
    flux_err: FloatArray
    chi2: FloatArray
    misfit: FloatArray
    information: FloatArray
    stamps: FloatImage
    residual: FloatImage

    def first(self, n: int) -> "JointPhotometry":
        """The first `n` sources alone; the residual image stays without the others too."""
        return JointPhotometry(
            self.flux[:n], self.flux_err[:n], self.chi2[:n], self.misfit[:n], self.information[:n], self.stamps[:n],
            self.residual,
        )  # fmt: skip


def joint_photometry(
    psf: Psf,
    frame: Frame,
    x: FloatArray,
    y: FloatArray,
    *,
    sweeps: int = MOST_SWEEPS,
    refine_sky: bool = False,
    fluxes_only: bool = False,
    start: JointPhotometry | None = None,
) -> JointPhotometry:
    """PSF fluxes of all sources together, brightest first, each fitted on the image without the others.

    The weights are those of the sky alone: then the flux of a source that the model fits badly is wrong by the same
    factor whatever its brightness. At most so many sweeps are a Gauss-Seidel solution of the joint fit.

    With ``refine_sky`` the sky is measured again on what the first sweeps leave: the wings of the sources raise the
    mesh by some hundredths of sigma, which faint fluxes would miss. ``start`` is the photometry of the first of these
    sources with the same PSF on the same frame, its sky not refined; the sweeps go on from there. With
    ``fluxes_only`` errors, chi2 and misfit are NaN, which is for such a start.
    """
    size, n_known = native_size(psf), 0 if start is None else start.flux.size
    center = (np.floor(x + 0.5), np.floor(y + 0.5))
    stamps = np.empty((x.size, size, size), np.float32)
    for part in (slice(n_known + new.start, n_known + new.stop) for new in chunks(x.size - n_known)):
        stamps[part] = unit_stamps(psf, x[part], y[part], size, (center[0][part], center[1][part]))
    residual = frame.data.copy() if start is None else start.residual.copy()
    low_x, low_y = (axis.astype(np.int64) - size // 2 for axis in center)
    spans = core_spans(psf)
    if start is not None:
        stamps[:n_known] = start.stamps
    information = _information(frame.weight, stamps[n_known:], low_x[n_known:], low_y[n_known:], spans)
    flux = 0.0 * information
    if start is not None:
        information, flux = np.concatenate([start.information, information]), np.concatenate([start.flux, flux])
    _sweep(flux, information, residual, frame.weight, stamps, low_x, low_y, spans, sweeps)
    data = frame.data
    if refine_sky:
        sky = level_map(
            sky_of_pixels(residual, frame.usable, frame.box_size_px, "the residual image",
                          mask_passes=1, skew_factor=RESIDUAL_SKEW_FACTOR)
        )  # fmt: skip
        residual -= sky
        data = data - sky
        _sweep(flux, information, residual, frame.weight, stamps, low_x, low_y, spans, sweeps)
    flux_err, chi2, misfit = np.full((3, x.size), np.nan)
    if not fluxes_only:
        flux_err, chi2, misfit = _errors(data, residual, frame.weight, frame.gain, stamps, low_x, low_y, flux, spans)
    return JointPhotometry(flux, flux_err, chi2, misfit, information, stamps, residual)


def core_radius_px(psf: Psf) -> float:
    """Radius [pixel] within which fluxes are fitted."""
    return max(CORE_FWHM * psf.fwhm_px, MIN_CORE_PX)


def core_spans(psf: Psf) -> NDArray[np.int64]:
    """Half width [pixel] of the core in each row of a stamp, -1 where the row misses it."""
    size = native_size(psf)
    room = np.floor(core_radius_px(psf) ** 2 - (np.arange(size) - size // 2.0) ** 2)
    half = np.minimum(np.floor(np.sqrt(np.maximum(room, 0.0))), size // 2)
    return np.where(room >= 0.0, half, -1.0).astype(np.int64)


@numba.njit(cache=True)
def _sweep(flux, information, residual, weight, stamps, low_x, low_y, spans, sweeps):  # type: ignore[no-untyped-def]
    """Gauss-Seidel steps of `flux` and `residual`, both in place; sources of unknown information stay out.

    After the first sweep a source is looked at only when another one has changed the light around it since.
    """
    n, size, _ = stamps.shape
    margin = size // 2 - spans[size // 2]
    # Numbers of the last looks that changed a cell, with cells for what lies beyond the image, and of the last looks.
    changed = np.zeros((residual.shape[0] // CELL_PX + 3, residual.shape[1] // CELL_PX + 3), np.int64)
    looked, look = np.full(n, -1), 0
    for _ in range(sweeps):
        before = look
        for s in range(n):
            if np.isnan(information[s]):
                continue
            core = _cells(changed, low_x[s] + margin, low_y[s] + margin, size - 2 * margin)
            if core.max() <= looked[s]:
                continue
            look += 1
            looked[s] = look
            light = core_light(residual, weight, stamps[s], low_x[s], low_y[s], spans)
            step, error = np.float32(light / information[s]), 1.0 / np.sqrt(information[s])
            if abs(step) < NEGLIGIBLE_STEP * error:
                continue
            if abs(step) >= DISTURBING_STEP * error:
                _cells(changed, low_x[s], low_y[s], size)[:] = look
            flux[s] += step
            first, after = max(0, -low_x[s]), min(size, residual.shape[1] - low_x[s])
            for j in range(max(0, -low_y[s]), min(size, residual.shape[0] - low_y[s])):
                line, entries = residual[low_y[s] + j, low_x[s] + first :], stamps[s, j, first:]
                for i in range(after - first):
                    line[i] -= step * entries[i]
        if look == before:
            break


@numba.njit(cache=True)
def _cells(changed, low_x, low_y, size):  # type: ignore[no-untyped-def]
    """The cells that a square of pixels overlaps; beyond the image, those at its border."""
    ny, nx = changed.shape
    top, left = min(max(low_y // CELL_PX + 1, 0), ny - 1), min(max(low_x // CELL_PX + 1, 0), nx - 1)
    bottom = max(min((low_y + size - 1) // CELL_PX + 1, ny - 1), top)
    right = max(min((low_x + size - 1) // CELL_PX + 1, nx - 1), left)
    return changed[top : bottom + 1, left : right + 1]


@numba.njit(cache=True)
def _information(weight, stamps, low_x, low_y, spans):  # type: ignore[no-untyped-def]
    """Inverse variance of each flux in the noise of the sky; NaN where too little of the PSF is usable."""
    result = np.full(len(stamps), np.nan)
    for s in range(len(stamps)):
        information, share = core_information(weight, stamps[s], low_x[s], low_y[s], spans)
        if information > 0.0 and share >= MIN_WEIGHT_FRACTION:
            result[s] = information
    return result


@numba.njit(cache=True)
def core_light(residual, weight, stamp, low_x, low_y, spans):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Sum of psf * residual / rms² over the usable core."""
    middle = stamp.shape[0] // 2
    total = 0.0
    for j in range(max(0, -low_y), min(stamp.shape[0], residual.shape[0] - low_y)):
        first = max(middle - spans[j], -low_x)
        width = min(middle + spans[j] + 1, residual.shape[1] - low_x) - first
        if width > 0:
            line, weights = residual[low_y + j, low_x + first :], weight[low_y + j, low_x + first :]
            entries = stamp[j, first:]
            for i in range(width):
                total += weights[i] * entries[i] * line[i]
    return total


@numba.njit(cache=True)
def core_information(weight, stamp, low_x, low_y, spans):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Sum of psf² / rms² over the usable core, and the share of the core's psf² that is usable."""
    middle = stamp.shape[0] // 2
    information = usable = whole = 0.0
    for j in range(stamp.shape[0]):
        for i in range(middle - spans[j], middle + spans[j] + 1):
            whole += stamp[j, i] * stamp[j, i]
        if low_y + j < 0 or low_y + j >= weight.shape[0]:
            continue
        first = max(middle - spans[j], -low_x)
        width = min(middle + spans[j] + 1, weight.shape[1] - low_x) - first
        if width > 0:
            weights, entries = weight[low_y + j, low_x + first :], stamp[j, first:]
            for i in range(width):
                square = entries[i] * entries[i]
                information += weights[i] * square
                usable += square * (weights[i] > 0.0)
    return information, usable / whole if whole > 0.0 else 0.0


# The order of the sums is the compiler's, which is the same each time only where nothing calls this but Python.
@numba.njit(cache=True, fastmath={"reassoc", "nsz"})
def _errors(data, residual, weight, gain, stamps, low_x, low_y, flux, spans):  # type: ignore[no-untyped-def]
    """Rows flux_err, chi2, misfit. Photon noise is that of the model, sources and neighbours."""
    n, size, _ = stamps.shape
    out = np.full((3, n), np.nan)
    # In units of the sky's variance all terms vanish where the weight does.
    per_gain, inaccuracy = np.float32(1.0 / gain), np.float32(MODEL_ACCURACY**2)
    for s in range(n):
        if np.isnan(flux[s]):
            continue
        bottom = noise = chi2 = misfit = 0.0
        count, brightness = 0, np.float32(flux[s])
        for j in range(max(0, -low_y[s]), min(size, residual.shape[0] - low_y[s])):
            first = max(size // 2 - spans[j], -low_x[s])
            width = min(size // 2 + spans[j] + 1, residual.shape[1] - low_x[s]) - first
            if width <= 0:
                continue
            row, column = low_y[s] + j, low_x[s] + first
            entries, weights = stamps[s, j, first:], weight[row, column:]
            light, remainder = data[row, column:], residual[row, column:]
            for i in range(width):
                p, w, left = entries[i], weights[i], remainder[i]
                model = brightness * p
                variance = np.float32(1.0) + w * per_gain * max(light[i] - left, np.float32(0.0))
                information = p * p * w
                bottom += information
                noise += information * variance
                squared = left * left * w
                chi2 += squared / variance
                misfit += squared / (variance + w * inaccuracy * model * model)
                count += 1 if w > 0.0 else 0
        out[0, s] = np.sqrt(noise) / bottom
        out[1, s] = chi2 / max(count - 1, 1)
        out[2, s] = misfit / max(count - 1, 1)
    return out
