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
# A correction below this share of the sky's part in the error of the flux is not worth a subtraction.
NEGLIGIBLE_STEP = 1e-3
# With the sources subtracted and masked most of the skew left is that of the Poisson noise, which asks for -1.
RESIDUAL_SKEW_FACTOR = -0.5

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Frame:
    """Background-subtracted pixels and sky rms [ADU], usable pixels, gain [e-/ADU], mesh of the background."""

    data: FloatImage
    rms: FloatImage
    usable: NDArray[np.bool_]
    gain: float
    box_size_px: int


def sky_free_frame(image: Image, background: Background) -> Frame:
    """The image as PSF photometry sees it: no pixel with a flag takes part."""
    data = image.data - level_map(background)
    usable = (image.flags == 0) & np.isfinite(data)
    data[~usable] = 0.0
    return Frame(data, rms_map(background), usable, image.info.gain, background.box_size_px)


@dataclass(frozen=True, slots=True)
class JointPhotometry:
    """PSF photometry of many sources at once.

    ``flux, flux_err, chi2, misfit`` are ``(n,)``: ``misfit`` is chi2 with the accuracy of the model counted
    as noise. ``stamps`` ``(n, size, size)`` are the PSFs and ``residual`` the image without any of the sources.
    """

    flux: FloatArray
    flux_err: FloatArray
    chi2: FloatArray
    misfit: FloatArray
    stamps: FloatImage
    residual: FloatImage

    def first(self, n: int) -> "JointPhotometry":
        """The first `n` sources alone; the residual image stays without the others too."""
        return JointPhotometry(
            self.flux[:n], self.flux_err[:n], self.chi2[:n], self.misfit[:n], self.stamps[:n], self.residual
        )


def joint_photometry(
    psf: Psf, frame: Frame, x: FloatArray, y: FloatArray, *, sweeps: int = 3, refine_sky: bool = False
) -> JointPhotometry:
    """PSF fluxes of all sources together, brightest first, each fitted on the image without the others.

    The weights are those of the sky alone: then the flux of a source that the model fits badly is wrong by the same
    factor whatever its brightness. Sweeps over the sources are a Gauss-Seidel solution of the joint fit.

    With ``refine_sky`` the sky is measured again on what the first sweeps leave: the wings of the sources raise the
    mesh by some hundredths of sigma, which faint fluxes would miss.
    """
    size = native_size(psf)
    center = (np.floor(x + 0.5), np.floor(y + 0.5))
    stamps = np.empty((x.size, size, size), np.float32)
    for part in chunks(x.size):
        stamps[part] = unit_stamps(psf, x[part], y[part], size, (center[0][part], center[1][part]))
    residual = frame.data.copy()
    low_x, low_y = (axis.astype(np.int64) - size // 2 for axis in center)
    core_px = core_radius_px(psf)
    flux = np.zeros(x.size)
    _sweep(flux, residual, frame.rms, frame.usable, stamps, low_x, low_y, core_px, sweeps)
    data = frame.data
    if refine_sky:
        sky = level_map(
            sky_of_pixels(residual, frame.usable, frame.box_size_px, "the residual image",
                          mask_passes=1, skew_factor=RESIDUAL_SKEW_FACTOR)
        )  # fmt: skip
        residual -= sky
        data = data - sky
        _sweep(flux, residual, frame.rms, frame.usable, stamps, low_x, low_y, core_px, sweeps)
    flux_err, chi2, misfit = _errors(
        data, residual, frame.rms, frame.usable, frame.gain, stamps, low_x, low_y, flux, core_px
    )
    return JointPhotometry(flux, flux_err, chi2, misfit, stamps, residual)


def core_radius_px(psf: Psf) -> float:
    """Radius [pixel] within which fluxes are fitted."""
    return max(CORE_FWHM * psf.fwhm_px, MIN_CORE_PX)


@numba.njit(cache=True)
def _sweep(flux, residual, rms, usable, stamps, low_x, low_y, core_px, sweeps):  # type: ignore[no-untyped-def]
    """Gauss-Seidel steps of `flux` and `residual`, both in place; flux is NaN where too little of the PSF is usable."""
    n, size, _ = stamps.shape
    whole = np.zeros(n)
    for s in range(n):
        for j, i in np.ndindex(size, size):
            if _in_core(j, i, size, core_px):
                whole[s] += stamps[s, j, i] ** 2
    for _ in range(sweeps):
        for s in range(n):
            top, bottom, left = core_sums(residual, rms, usable, stamps[s], low_x[s], low_y[s], core_px)
            if bottom <= 0.0 or left < MIN_WEIGHT_FRACTION * whole[s]:
                flux[s] = np.nan
                continue
            step = top / bottom
            if abs(step) < NEGLIGIBLE_STEP / np.sqrt(bottom):
                continue
            flux[s] += step
            for j in range(max(0, -low_y[s]), min(size, residual.shape[0] - low_y[s])):
                for i in range(max(0, -low_x[s]), min(size, residual.shape[1] - low_x[s])):
                    residual[low_y[s] + j, low_x[s] + i] -= step * stamps[s, j, i]


@numba.njit(cache=True)
def _in_core(j, i, size, core_px):  # type: ignore[no-untyped-def]
    return (j - size // 2) ** 2 + (i - size // 2) ** 2 <= core_px * core_px


@numba.njit(cache=True)
def _core_range(size, core_px):  # type: ignore[no-untyped-def]
    """First row or column of the core, and the one after the last."""
    reach = min(int(core_px), size // 2)
    return size // 2 - reach, size // 2 + reach + 1


@numba.njit(cache=True)
def core_sums(residual, rms, usable, stamp, low_x, low_y, core_px):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Sums over the usable core: psf * residual / rms², psf² / rms², psf²."""
    size = stamp.shape[0]
    first, last = _core_range(size, core_px)
    top = bottom = left = 0.0
    for j in range(max(first, -low_y), min(last, residual.shape[0] - low_y)):
        for i in range(max(first, -low_x), min(last, residual.shape[1] - low_x)):
            row, column = low_y + j, low_x + i
            if usable[row, column] and _in_core(j, i, size, core_px):
                p = stamp[j, i]
                weight = p / (rms[row, column] * rms[row, column])
                top += weight * residual[row, column]
                bottom += weight * p
                left += p * p
    return top, bottom, left


@numba.njit(cache=True)
def _errors(data, residual, rms, usable, gain, stamps, low_x, low_y, flux, core_px):  # type: ignore[no-untyped-def]
    """Rows flux_err, chi2, misfit. Photon noise is that of the model, sources and neighbours."""
    n, size, _ = stamps.shape
    out = np.full((3, n), np.nan)
    first, last = _core_range(size, core_px)
    for s in range(n):
        if not np.isfinite(flux[s]):
            continue
        bottom = noise = chi2 = misfit = 0.0
        count = 0
        for j in range(max(first, -low_y[s]), min(last, residual.shape[0] - low_y[s])):
            for i in range(max(first, -low_x[s]), min(last, residual.shape[1] - low_x[s])):
                row, column = low_y[s] + j, low_x[s] + i
                if not usable[row, column] or not _in_core(j, i, size, core_px):
                    continue
                p, left = stamps[s, j, i], residual[row, column]
                sky = float(rms[row, column]) ** 2
                variance = sky + max(data[row, column] - left, 0.0) / gain
                bottom += p * p / sky
                noise += p * p / (sky * sky) * variance
                chi2 += left * left / variance
                misfit += left * left / (variance + (MODEL_ACCURACY * flux[s] * p) ** 2)
                count += 1
        out[0, s] = np.sqrt(noise) / bottom
        out[1, s] = chi2 / max(count - 1, 1)
        out[2, s] = misfit / max(count - 1, 1)
    return out
