"""Simulated LS4 raw frames with everything that is true of them: pixels, cosmic rays, stars."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seechange_assets.instruments.base import RawCcd
from seechange_assets.instruments.ls4 import Ls4
from seechange_assets.products import ImageInfo, Master
from seechange_assets.science.masters import build_bias, build_flat
from seechange_assets.simulation.detector import (
    Detector,
    add_dark_and_fringes,
    draw_cosmic_rays,
    expose,
    make_detector,
)
from seechange_assets.simulation.geometry import Geometry
from seechange_assets.simulation.render import MoffatField
from seechange_assets.simulation.scene import Conditions, render_scene
from seechange_assets.simulation.sky import Sky, Stars, Transients, draw_galaxies, draw_stars

GAIN = float(np.mean(Ls4.gains))
READ_NOISE = float(np.sqrt(np.mean(np.square(Ls4.read_noises))))
FLAT_E = 38000.0
CENTER_DEG = (52.5, -27.5)
_NONE = np.zeros(0)
NO_TRANSIENTS = Transients(_NONE, _NONE, _NONE, _NONE, _NONE, _NONE, _NONE, _NONE, _NONE, 0.0)


class SmallLs4(Ls4):
    """LS4 with smaller CCDs."""

    name = "ls4_small"
    ccd_shape = (1024, 1024)


@dataclass
class RawScene:
    """A raw exposure, its masters and its truth in electrons (cosmic rays apart)."""

    raw: RawCcd
    masters: dict[str, Master]
    detector: Detector
    electrons: NDArray[np.float32]
    cosmic_rays: NDArray[np.float32]
    x: NDArray
    y: NDArray
    star_e: NDArray
    sky_e: float
    seeing_px: float
    stars: Stars


def info(kind: str, i: int, exptime_s: float, filter_name: str = "r") -> ImageInfo:
    saturation = min(Ls4.saturation_adu * gain / GAIN for gain in Ls4.gains)
    return ImageInfo(
        exposure=f"{kind}{i}", ccd="01", instrument="ls4", field="f", filter=filter_name, mjd=61000 + i / 1000,
        exptime_s=exptime_s, airmass=1.1, target="", project="", gain=GAIN, read_noise=READ_NOISE,
        saturation=saturation, pixel_scale_arcsec=1.0,
    )  # fmt: skip


def frames(
    rng, detector: Detector, kind: str, count: int, level_e: float, exptime_s: float, sky_e=0.0, cosmic_rays=True
) -> list[RawCcd]:
    shape = detector.flat.shape
    return [
        RawCcd(
            info(kind, i, exptime_s),
            expose(
                rng, np.full(shape, level_e, np.float32), detector, exptime_s=exptime_s, sky_e=sky_e,
                cosmic_rays=cosmic_rays,
            ).astype(np.float32),
            detector.amplifiers,
        )
        for i in range(count)
    ]  # fmt: skip


def raw_scene(
    seed: int,
    camera: Ls4,
    *,
    filter_name: str = "r",
    seeing_px: float = 1.7,
    exptime_s: float = 45.0,
    tracks: int = 30,
    density_deg2: float | None = None,
    n_flats: int = 5,
    dark_e_s: float = 0.0,
    fringe_fraction: float = 0.0,
) -> RawScene:
    """A sky through a camera, with master bias and flat from frames of the same camera."""
    rng = np.random.default_rng(seed)
    shape = camera.ccd_shape
    detector = make_detector(rng, camera.amplifiers(), camera.raw_shape, shape, edge_distance=(0.6, 0.4))
    plain = detector
    detector = add_dark_and_fringes(rng, detector, dark_e_s=dark_e_s, fringe_fraction=fringe_fraction)
    bias = build_bias(frames(rng, plain, "bias", 5, 0.0, 0.0))
    flat = build_flat(frames(rng, plain, "flat", n_flats, FLAT_E, 5.0), bias)
    cell = Geometry(*CENTER_DEG, shape, 1.0)
    stars = draw_stars(rng, cell, density_deg2)
    sky = Sky(stars, draw_galaxies(rng, cell), NO_TRANSIENTS)
    conditions = Conditions(61000.0, exptime_s, seeing_px)
    scene = render_scene(
        sky, camera, filter_name, cell, MoffatField(seeing_px, shape), conditions, with_transients=False
    )
    rays = draw_cosmic_rays(rng, shape, tracks)
    sky_e = conditions.sky_e(filter_name, 1.0)
    # Cosmic rays do not pass through the optics: the response is divided out before it is put on.
    arriving = scene.electrons + rays / np.maximum(detector.flat, 0.05)
    pixels = expose(rng, arriving, detector, exptime_s=exptime_s, cosmic_rays=False, sky_e=sky_e)
    x, y = cell.sky_to_pixel(*stars.position(conditions.epoch_yr))
    star_e = 10 ** (-0.4 * (stars.magnitude(camera, filter_name) - conditions.zero_point_e(filter_name)))
    raw = RawCcd(
        replace(info("science", 0, exptime_s), filter=filter_name), pixels.astype(np.float32), detector.amplifiers
    )
    return RawScene(
        raw, {"bias": bias, "flat": flat}, detector, scene.electrons, rays, x, y, star_e, sky_e, seeing_px, stars
    )  # fmt: skip
