"""Sources that the catalogue misses beside brighter ones, found where the model of all known sources is taken off.

Where stars are crowded, detection loses the faint neighbours of the bright ones. Left in the image they give the
PSF wings that it does not have and the stars flux that is not theirs, by a per cent at 20 times the usual density.
A second search on the residual image finds them (Stetson 1987, PASP 99, 191, section III.E, does likewise).
"""

import numba
import numpy as np
from numpy.typing import NDArray

from seechange_assets.products import Psf
from seechange_assets.science.joint_photometry import Frame, JointPhotometry, core_radius_px
from seechange_assets.science.psf import native_size
from seechange_assets.science.psf_photometry import unit_stamps

# Least matched-filter S/N of a peak of the residual image, and least S/N of its pixel, which saves looking closer.
MIN_SNR, MIN_PIXEL_SNR = 5.0, 2.0
# The model is wrong by up to this share of its value: what stays below that is no source.
MODEL_ERROR = 0.03
# Closer to a known source [FWHM] a residual tells of the wrong shape of that one.
MIN_DISTANCE_FWHM = 0.8
# At most so many per fitted source, the most significant ones: where there are more, stars are closer together than
# any survey can part, and most of what is left is the sum of several.
MOST_PER_FITTED = 0.5

FloatArray = NDArray[np.float64]


def unseen_sources(
    psf: Psf,
    frame: Frame,
    fit: JointPhotometry,
    known_x: FloatArray,
    known_y: FloatArray,
    near: tuple[FloatArray, FloatArray] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Positions of the significant point-like peaks of the residual image that lie apart from all known sources.

    Parameters
    ----------
    psf : Psf
    frame : Frame
        What was fitted.
    fit : JointPhotometry
        Its ``residual``: `frame` without the known sources.
    known_x, known_y : ndarray, shape (n,)
        Every known source [pixel], fitted or not.
    near : tuple of ndarray, optional
        Positions x, y: only sources that can reach into the stamps there are looked for.

    Returns
    -------
    tuple of ndarray, shape (m,)
        x, y [pixel], row by row.
    """
    from scipy.spatial import cKDTree

    ny, nx = psf.shape
    middle = np.array([np.floor(nx / 2.0)]), np.array([np.floor(ny / 2.0)])
    stamp = unit_stamps(psf, *middle, native_size(psf), middle)[0]
    wanted = _wanted(frame.usable, near, native_size(psf) // 2 + int(core_radius_px(psf)))
    peaks = _peaks(frame.data, fit.residual, frame.rms, wanted, frame.usable, frame.gain, stamp, core_radius_px(psf))
    row, column = np.asarray(peaks[:, :2], np.int64).T
    left = fit.residual
    x = column + _vertex(left[row, column - 1], left[row, column], left[row, column + 1])
    y = row + _vertex(left[row - 1, column], left[row, column], left[row + 1, column])
    if not (x.size and known_x.size):
        return x, y
    distance, _ = cKDTree(np.stack([known_x, known_y], axis=1)).query(np.stack([x, y], axis=1))
    apart = np.flatnonzero(distance > MIN_DISTANCE_FWHM * psf.fwhm_px)
    best = np.argsort(-peaks[apart, 2], kind="stable")[: int(MOST_PER_FITTED * fit.flux.size)]
    kept = apart[np.sort(best)]
    return x[kept], y[kept]


def _wanted(usable: NDArray[np.bool_], near: tuple[FloatArray, FloatArray] | None, reach_px: int) -> NDArray[np.bool_]:
    """Usable pixels no farther than that along both axes from some of the positions; all usable ones without any."""
    if near is None:
        return usable
    wanted = np.zeros_like(usable)
    for x, y in zip(*(np.floor(axis + 0.5).astype(np.int64) for axis in near), strict=True):
        wanted[max(y - reach_px, 0) : y + reach_px + 1, max(x - reach_px, 0) : x + reach_px + 1] = True
    return wanted & usable


def _vertex(before: NDArray[np.floating], at: NDArray[np.floating], after: NDArray[np.floating]) -> FloatArray:
    """Place of the top of a parabola through three pixels, relative to the middle one."""
    bend = 2.0 * at.astype(np.float64) - before - after
    top: FloatArray = np.where(bend > 0, 0.5 * (after - before) / np.where(bend > 0, bend, 1.0), 0.0)
    return np.clip(top, -0.5, 0.5)


@numba.njit(cache=True)
def _peaks(data, residual, rms, wanted, usable, gain, stamp, core_px):  # type: ignore[no-untyped-def]
    """Row, column and S/N of the local maxima of significant PSF flux; the noise is that of sky, light and model."""
    ny, nx = residual.shape
    half, reach = stamp.shape[0] // 2, min(int(core_px), stamp.shape[0] // 2)
    found = [(0.0, 0.0, 0.0) for _ in range(0)]
    for row in range(reach, ny - reach):
        for column in range(reach, nx - reach):
            if not wanted[row, column] or residual[row, column] < MIN_PIXEL_SNR * rms[row, column]:
                continue
            if not _is_top(residual, row, column):
                continue
            signal = noise = 0.0
            for j in range(-reach, reach + 1):
                for i in range(-reach, reach + 1):
                    if j * j + i * i > core_px * core_px or not usable[row + j, column + i]:
                        continue
                    sky = float(rms[row + j, column + i]) ** 2
                    left = residual[row + j, column + i]
                    model = max(data[row + j, column + i] - left, 0.0)
                    weight = stamp[half + j, half + i] / sky
                    signal += weight * left
                    noise += weight * weight * (sky + model / gain + (MODEL_ERROR * model) ** 2)
            if signal > MIN_SNR * np.sqrt(noise):
                found.append((float(row), float(column), signal / np.sqrt(noise)))
    result = np.empty((len(found), 3))
    for k in range(len(found)):
        result[k, 0], result[k, 1], result[k, 2] = found[k]
    return result


@numba.njit(cache=True)
def _is_top(image, row, column):  # type: ignore[no-untyped-def]
    """Whether no neighbour is higher."""
    for j in range(-1, 2):
        for i in range(-1, 2):
            if image[row + j, column + i] > image[row, column]:
                return False
    return True
