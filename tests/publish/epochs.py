"""Eight epochs of one CCD with transients of known flux, as differences with rows, without files."""

from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from seechange_assets.products import NJY_ZERO_POINT, Difference
from seechange_assets.publish.associations import associate_measurements
from seechange_assets.publish.forced_photometry import force_at_objects, measure_history
from sql.base import deterministic_id
from sql.light_curves import LIGHT_CURVE_RECIPES, light_curve
from sql.models import AssociationSetRow, DifferenceRow, ExposureRow, ReferenceRow
from sql.objects import ObjectRow
from sql.sky import healpix_of, polygon_of
from tests.publish.sky import MJD, PROVENANCES, ZP, difference, measurements, scores, tan_wcs

SHAPE, NOISE, FWHM_PX = (260, 260), 5.0, 2.6
IDS = {name: PROVENANCES[name] for name in LIGHT_CURVE_RECIPES}
#: Error of a PSF flux on this noise [ADU]: a Gaussian has 4 pi s^2 noise pixels.
FLUX_ERR = NOISE * np.sqrt(4 * np.pi) * FWHM_PX / 2.3548


@dataclass(frozen=True)
class Transient:
    """Place at epoch 0 [pixel], motion [pixel per epoch] and flux [ADU] at each epoch."""

    kind: str
    x: float
    y: float
    motion: tuple[float, float]
    flux: np.ndarray


def transients(rng: np.random.Generator) -> list[Transient]:
    """A grid of rising, fading, moving and variable sources; the rising ones are invisible at first."""
    t = np.arange(8)
    shapes = {
        "rising": lambda a: a * np.clip(t - 2, 0, None) / 5,
        "fading": lambda a: a * 0.6**t,
        "moving": lambda a: np.full(8, a),
        "variable": lambda a: a * np.sin(2 * np.pi * (t + 0.5) / 5.3),
    }
    places = [(x, y) for x in range(30, 250, 40) for y in range(30, 250, 40)]
    found = []
    for k, (x, y) in enumerate(places):
        kind = list(shapes)[k % 4]
        amplitude = FLUX_ERR * rng.uniform(15, 100)
        angle, speed = rng.uniform(0, 2 * np.pi), 0.2 if kind == "moving" else 0.0
        motion = (speed * np.cos(angle), speed * np.sin(angle))
        dx, dy = rng.uniform(-0.5, 0.5, 2)
        found.append(Transient(kind, x + dx, y + dy, motion, shapes[kind](amplitude)))
    return found


@dataclass
class Epoch:
    """A difference, and what was detected on it: places on the sky and fluxes with the noise of the pixels."""

    difference: Difference
    detected: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    flux: np.ndarray


def make_epoch(number: int, sources: list[Transient], seed: int) -> Epoch:
    """Pixels with all sources, and detections beyond five sigma with the position errors of PSF fits."""
    rng = np.random.default_rng([seed, number])
    x = np.array([s.x + number * s.motion[0] for s in sources])
    y = np.array([s.y + number * s.motion[1] for s in sources])
    flux = np.array([s.flux[number] for s in sources])
    stars = list(zip(x, y, flux, strict=True))
    product = difference(SHAPE, stars, NOISE, seed=[seed, 100 + number], exposure=f"ls4_{number}", mjd=MJD + 3 * number)
    snr = np.abs(flux) / FLUX_ERR
    detected = np.flatnonzero(snr > 5)
    error = FWHM_PX / 2.3548 * np.sqrt(2) / snr[detected]
    x, y = (axis[detected] + rng.normal(0, error) for axis in (x, y))
    ra, dec = tan_wcs(SHAPE).all_pix2world(x, y, 0)
    return Epoch(product, detected, ra, dec, flux[detected])


def store_difference(session, product: Difference) -> None:
    """The rows that a stored difference has."""
    info = product.info
    ra, dec, (corner_ra, corner_dec) = polygon_of(product.wcs.astropy(), product.data.shape)
    corners = {"ra": corner_ra, "dec": corner_dec}
    place = {"ra_deg": ra, "dec_deg": dec, "healpix": healpix_of(ra, dec)}
    file = {"sha256": "0" * 64, "content_hash": "0" * 64, "n_bytes": 1, "summary": {}, "inputs": {}}
    reference = deterministic_id("reference of these tests")
    session.merge(ReferenceRow(
        id=reference, partition="f1.r", ccd="S1", provenance_id=PROVENANCES["reference"], filepath="ref", name="test",
        instrument="ls4", field="f1", filter="r", limiting_magnitude=22.0, fwhm_px=2.6, members=[], corners=corners,
        **place, **file,
    ))  # fmt: skip
    session.merge(ExposureRow(
        key=info.exposure, instrument="ls4", kind="science", night="2025-10-01", mjd=info.mjd, exptime_s=info.exptime_s,
        target="t", project="p", field="f1", filters={}, filepath=info.exposure, provenance_id=PROVENANCES["diff"],
        sha256="0" * 64, n_bytes=1, **place,
    ))  # fmt: skip
    session.merge(DifferenceRow(
        id=deterministic_id("diff", info.exposure, info.ccd), partition=info.exposure, ccd=info.ccd,
        provenance_id=PROVENANCES["diff"], filepath=f"{info.exposure}/{info.ccd}", reference_id=reference,
        method="test", mjd=info.mjd, filter="r", limiting_magnitude=product.limiting_magnitude, corners=corners,
        **place, **file,
    ))  # fmt: skip


def store_associations(session, product: Difference) -> None:
    """The row of a difference whose detections have been linked to objects."""
    info = product.info
    session.merge(AssociationSetRow(
        id=deterministic_id("associations", info.exposure, info.ccd), partition=info.exposure, ccd=info.ccd,
        provenance_id=IDS["associations"], filepath=f"{info.exposure}/{info.ccd}/associations", sha256="0" * 64,
        content_hash="0" * 64, n_bytes=1, summary={}, inputs={}, n_associated=0, n_new_objects=0,
    ))  # fmt: skip


def process(database, epochs: list[Epoch], order: list[int], *, max_offset_arcsec: float = 0.05) -> None:
    """Run epochs in an order through associations and forced photometry, as their assets do."""
    by_key = {epoch.difference.info.exposure: epoch.difference for epoch in epochs}
    for number in order:
        epoch = epochs[number]
        product = epoch.difference
        with database.session() as session:
            store_difference(session, product)
        snr = np.abs(epoch.flux) / FLUX_ERR
        found = measurements(epoch.ra, epoch.dec, epoch.flux)
        found.table["flux_psf_err"] = FLUX_ERR
        found.table["snr"] = epoch.flux / FLUX_ERR
        for name in ("ra_err", "dec_err"):
            found.table[name] = FWHM_PX / 2.3548 * np.sqrt(2) / snr / 3600
        associate_measurements(
            database, product.info, found, scores(len(epoch.ra)), provenance_id=IDS["associations"]
        )  # fmt: skip
        with database.session() as session:
            store_associations(session, product)
        force_at_objects(database, product, provenance_id=IDS["forced_photometry"], associations_id=IDS["associations"])
        measure_history(
            database, lambda exposure, _: by_key[exposure], product, provenance_ids=IDS,
            max_offset_arcsec=max_offset_arcsec,
        )  # fmt: skip


def light_curves(database) -> dict[tuple[float, float], list[dict]]:
    """Light curve of each object by its mean position, to 0.4 arcsec."""
    with database.session() as session:
        objects = list(session.scalars(sa.select(ObjectRow)))
        return {(o.mean_ra, o.mean_dec): light_curve(session, o.name, IDS) for o in objects}


def truth_njy(flux: float) -> float:
    """ADU to nJy."""
    return float(flux * 10 ** (-0.4 * (ZP - NJY_ZERO_POINT)))
