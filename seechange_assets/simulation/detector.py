"""The simulated detector: from electrons falling on a CCD to the 16-bit numbers in the file."""

from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.random import Generator
from numpy.typing import NDArray

from seechange_assets.instruments.base import Amplifier
from seechange_assets.products import FloatImage

#: Full well [ADU above bias]; a little above the saturation that the header states.
FULL_WELL_ADU = 58000.0
BIAS_LEVEL_ADU = 1000.0
PIXEL_RESPONSE_RMS = 0.008
VIGNETTING = 0.06
#: Cosmic rays per million pixels and 45 s, mean track length [pixel] and median charge [e-/pixel].
COSMIC_RAYS_PER_MPIX, TRACK_LENGTH_PX, TRACK_CHARGE_E = 8.0, 6.0, 1500.0


@dataclass(frozen=True, slots=True)
class Detector:
    """The fixed properties of one CCD.

    ``flat`` is the relative response (median 1, a few dead columns near 0), ``bias`` the structure on top of
    the overscan level [ADU], hot columns included; ``bad`` marks the bad columns. ``dark`` [e-/s] and ``fringe``
    (fraction of the sky) are there when `add_dark_and_fringes` put them in.
    """

    amplifiers: tuple[Amplifier, ...]
    raw_shape: tuple[int, int]
    flat: FloatImage
    bias: FloatImage
    bad: NDArray[np.bool_]
    dark: FloatImage | None = None
    fringe: FloatImage | None = None


def make_detector(
    rng: Generator,
    amplifiers: tuple[Amplifier, ...],
    raw_shape: tuple[int, int],
    ccd_shape: tuple[int, int],
    *,
    bad_columns: int = 3,
    edge_distance: tuple[float, float] = (0.0, 0.0),
) -> Detector:
    """A CCD with pixel response, vignetting, bias structure, dead and hot columns.

    Parameters
    ----------
    edge_distance : tuple of float
        Offset of the CCD's centre from the optical axis in units of the field's radius: it shapes the vignetting.
    """
    ny, nx = ccd_shape
    v, u = np.linspace(-0.2, 0.2, ny)[:, None], np.linspace(-0.1, 0.1, nx)[None, :]
    radius2 = (u + edge_distance[0]) ** 2 + (v + edge_distance[1]) ** 2
    flat = (1 - VIGNETTING * radius2).astype(np.float32)
    flat *= 1 + np.float32(PIXEL_RESPONSE_RMS) * rng.standard_normal(ccd_shape, dtype=np.float32)
    flat /= np.median(flat[:: max(1, ny // 256), :: max(1, nx // 256)])
    columns = rng.normal(0, 1.0, nx).astype(np.float32)
    glow = 3.0 * np.exp(-np.arange(ny, dtype=np.float32) / (0.05 * ny))[:, None]
    bias = (columns[None, :] + glow).astype(np.float32)
    bad = np.zeros(ccd_shape, bool)
    for i, x in enumerate(rng.choice(np.arange(8, nx - 8), 2 * bad_columns, replace=False)):
        start = int(rng.integers(0, ny))
        bad[start:, x] = True
        if i < bad_columns:
            flat[start:, x] *= 0.05
        else:
            bias[start:, x] += rng.uniform(200, 2000)
    return Detector(amplifiers, raw_shape, flat, bias, bad)


def add_dark_and_fringes(
    rng: Generator, detector: Detector, *, dark_e_s: float = 0.0, fringe_fraction: float = 0.0
) -> Detector:
    """The same CCD with dark current and fringes.

    Parameters
    ----------
    dark_e_s : float
        Median dark current [e-/s]; it rises to one side, and one pixel in 10,000 is warm.
    fringe_fraction : float
        Rms of the fringes as a fraction of the sky.
    """
    ny, nx = detector.flat.shape
    dark = fringe = None
    if dark_e_s > 0:
        dark = (dark_e_s * rng.lognormal(0, 0.1, (ny, nx)) * np.linspace(0.7, 1.3, ny)[:, None]).astype(np.float32)
        warm = rng.integers(0, dark.size, dark.size // 10_000)
        dark.flat[warm] *= rng.uniform(5, 30, len(warm)).astype(np.float32)
    if fringe_fraction > 0:
        v, u = np.linspace(-1, 1, ny)[:, None], np.linspace(-nx / ny, nx / ny, nx)[None, :]
        a, b, c, d = rng.normal(0, 1, 4)
        # Lines of equal thickness of a bent layer, some 40 pixels apart.
        phase = ny / 40 * np.pi * (u + 0.6 * v + 0.1 * (a * u**2 + b * u * v + c * v**2) + 0.05 * d * v**3)
        fringe = (np.sqrt(2) * fringe_fraction * np.sin(phase)).astype(np.float32)
    return replace(detector, dark=dark, fringe=fringe)


def expose(
    rng: Generator,
    electrons: FloatImage,
    detector: Detector,
    *,
    exptime_s: float,
    cosmic_rays: bool = True,
    sky_e: float = 0.0,
) -> NDArray[np.uint16]:
    """The raw frame of a scene.

    Parameters
    ----------
    electrons : ndarray of float32
        Expected electrons per pixel before the pixel response, shape of the CCD.
    sky_e : float
        Sky in it that makes fringes [e-/pixel].
    """
    collected = electrons * detector.flat
    if detector.fringe is not None and sky_e > 0:
        collected += np.float32(sky_e) * detector.fringe * detector.flat
    if detector.dark is not None and exptime_s > 0:
        collected += detector.dark * np.float32(exptime_s)
    add_shot_noise(rng, collected)
    if cosmic_rays:
        count = rng.poisson(COSMIC_RAYS_PER_MPIX * collected.size / 1e6 * max(exptime_s, 1.0) / 45.0)
        collected += draw_cosmic_rays(rng, collected.shape, int(count))
    raw = np.zeros(detector.raw_shape, np.float32)
    for amp in detector.amplifiers:
        part = np.ascontiguousarray(collected[amp.ccd])
        bleed(part, FULL_WELL_ADU * amp.gain)
        adu = (
            distort_linearity((part / np.float32(amp.gain)).astype(np.float32, copy=False), amp.nonlinearity)
            + detector.bias[amp.ccd]
        )
        level = _bias_level(rng, len(adu))
        read_noise = np.float32(amp.read_noise / amp.gain)
        for section, signal in ((amp.raw_data, adu), (amp.raw_overscan, np.float32(0))):
            noise = rng.standard_normal(raw[section].shape, dtype=np.float32)
            raw[section] = signal + level[:, None] + read_noise * noise
    return np.clip(np.rint(raw, out=raw), 0, 65535, out=raw).astype(np.uint16)


def add_shot_noise(rng: Generator, electrons: FloatImage) -> None:
    """Add shot noise in place: Gaussian, exact enough above some 50 electrons, and not below zero."""
    if not electrons.any():
        return
    electrons += np.sqrt(np.maximum(electrons, 0)) * rng.standard_normal(electrons.shape, dtype=np.float32)


def distort_linearity(adu: FloatImage, coefficient: float) -> FloatImage:
    """The measured signal m of a true signal t, from ``t = m (1 + c m)``."""
    if coefficient == 0:
        return adu
    c = np.float32(coefficient)
    # The stable form of the root: no difference of nearly equal numbers.
    return 2 * adu / (1 + np.sqrt(np.maximum(1 + 4 * c * adu, np.float32(0.01))))


def draw_cosmic_rays(rng: Generator, shape: tuple[int, ...], count: int) -> FloatImage:
    """Straight tracks with charge split between neighbouring pixels [e-]; zero elsewhere."""
    ny, nx = shape
    image = np.zeros((ny + 2, nx + 2), np.float32)
    for _ in range(count):
        length = rng.exponential(TRACK_LENGTH_PX)
        angle, charge = rng.uniform(0, 2 * np.pi), TRACK_CHARGE_E * rng.lognormal(0, 0.8)
        along = np.arange(0, max(length, 0.2), 0.2)
        x = np.clip(rng.uniform(0, nx) + along * np.cos(angle), 0, nx)
        y = np.clip(rng.uniform(0, ny) + along * np.sin(angle), 0, ny)
        deposit = charge * 0.2 * rng.gamma(4.0, 0.25, len(along)) * (5.0 if len(along) == 1 else 1.0)
        ix, iy = x.astype(int), y.astype(int)
        fx, fy = x - ix, y - iy
        for dy, dx, share in (
            (0, 0, (1 - fx) * (1 - fy)),
            (0, 1, fx * (1 - fy)),
            (1, 0, (1 - fx) * fy),
            (1, 1, fx * fy),
        ):
            np.add.at(image, (iy + dy, ix + dx), (deposit * share).astype(np.float32))
    return image[:ny, :nx]


def add_streak(rng: Generator, electrons: FloatImage, width_px: float, surface_e: float) -> tuple[float, ...]:
    """Draw a satellite's trail across the whole CCD, in place; returns its end points (x1, y1, x2, y2)."""
    ny, nx = electrons.shape
    angle = rng.uniform(0.1, np.pi - 0.1)
    x0, y0 = rng.uniform(0.2, 0.8) * nx, rng.uniform(0.2, 0.8) * ny
    normal = np.array([-np.sin(angle), np.cos(angle)])
    y, x = np.ogrid[:ny, :nx]
    distance = (normal[0] * (x - x0) + normal[1] * (y - y0)).astype(np.float32)
    near = np.abs(distance) < 6 * width_px
    electrons[near] += np.float32(surface_e) * np.exp(-0.5 * (distance[near] / np.float32(width_px / 2.355)) ** 2)
    reach = np.hypot(nx, ny)
    return tuple(float(v) for s in (-reach, reach) for v in (x0 + s * np.cos(angle), y0 + s * np.sin(angle)))


def _bias_level(rng: Generator, rows: int) -> FloatImage:
    """Bias of each row: a level, a slow drift, and a little row-to-row noise."""
    drift = np.cumsum(rng.normal(0, 0.02, rows)) + rng.normal(0, 0.15, rows)
    return (BIAS_LEVEL_ADU + rng.normal(0, 5.0) + drift).astype(np.float32)


def bleed(electrons: FloatImage, full_well_e: float) -> None:
    """Spread charge beyond the full well along columns, half up and half down, in place."""
    columns = np.flatnonzero((electrons > full_well_e).any(axis=0))
    _bleed_columns(electrons, np.float32(full_well_e), columns)


@njit(cache=True)
def _bleed_columns(electrons, full_well, columns):
    ny = electrons.shape[0]
    for ix in columns:
        excess = np.zeros(ny, np.float32)
        for iy in range(ny):
            if electrons[iy, ix] > full_well:
                excess[iy] = (electrons[iy, ix] - full_well) / 2
                electrons[iy, ix] = full_well
        for start, stop, step in ((0, ny, 1), (ny - 1, -1, -1)):
            carry = np.float32(0)
            for iy in range(start, stop, step):
                room = full_well - electrons[iy, ix]
                if carry > 0 and room > 0:
                    moved = min(room, carry)
                    electrons[iy, ix] += moved
                    carry -= moved
                carry += excess[iy]
