"""Measurements that a known minor planet or moving star explains; they make no objects."""

from typing import TYPE_CHECKING, Any

import numpy as np

from seechange_assets.instruments.base import Instrument
from seechange_assets.names import printable
from seechange_assets.products import Difference, Measurements, Reference

if TYPE_CHECKING:
    from seechange_assets.ports import SkyCatalogSource
    from seechange_assets.science.minor_planets import Predictions


def identify(
    difference: Difference,
    measurements: Measurements,
    reference: Reference,
    instrument: Instrument,
    sky: "SkyCatalogSource",
    orbits: dict[str, Any] | None,
    *,
    identification_radius_arcsec: float = 2.0,
    identification_depth_mag: float = 1.5,
    moving_star_flux_ratio: float = 3.0,
) -> dict[int, dict[str, Any]]:
    """Row of `measurements` -> columns of `IdentificationRow`, for those at the place of something known that moves.

    Minor planets go before stars. All are predicted for the middle of the exposure.

    Parameters
    ----------
    orbits : dict, optional
        Arrays of `science.minor_planets.Orbits` by name; None: only stars are looked for.
    """
    from seechange_assets.science.known_sources import match_minor_planets, match_moving_stars

    table, info = measurements.table, difference.info
    ra, dec = (np.asarray(table[name], float) for name in ("ra", "dec"))
    placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if len(placed) == 0 or identification_radius_arcsec == 0:
        return {}
    centre, radius = footprint_circle(difference)
    stars = sky.cone(*centre, radius + 0.01)
    star_mag = star_magnitudes(stars, instrument, info.filter)
    found = match_moving_stars(
        ra[placed], dec[placed], _magnitudes(measurements)[placed], stars, star_mag,
        julian_year(info.mjd_mid), julian_year(reference.info.mjd_mid),
        difference.psf.fwhm_px * info.pixel_scale_arcsec, identification_radius_arcsec, moving_star_flux_ratio,
    )  # fmt: skip
    if orbits is not None:
        planets = predicted(orbits, info.mjd_mid, centre, radius, instrument.site)
        faintest = difference.limiting_magnitude + identification_depth_mag
        found |= match_minor_planets(ra[placed], dec[placed], planets, identification_radius_arcsec, faintest)
    return {int(placed[row]): told._asdict() | {"name": printable(told.name)} for row, told in found.items()}


def predicted(
    orbits: dict[str, Any], mjd: float, centre: tuple[float, float], radius_deg: float,
    site: tuple[float, float, float] | None,
) -> "Predictions":  # fmt: skip
    """Minor planets on a CCD."""
    from seechange_assets.science.minor_planets import Orbits, predict

    return predict(Orbits(**orbits), mjd, *centre, radius_deg, site)


def footprint_circle(difference: Difference) -> tuple[tuple[float, float], float]:
    """Centre (ra, dec) [deg] of a difference and the distance [deg] of its farthest corner."""
    from sql.sky import polygon_of, separation_deg

    ra, dec, (corner_ra, corner_dec) = polygon_of(difference.wcs.astropy(), difference.data.shape)
    return (ra, dec), float(np.max(separation_deg(ra, dec, corner_ra, corner_dec)))


def star_magnitudes(stars: Any, instrument: Instrument, filter_name: str) -> Any:
    """AB magnitudes of catalogue stars in a filter; a star without colour counts as one of BP-RP 0.8."""
    mag_g = np.asarray(stars.table["mag_g"], float)
    color = np.asarray(stars.table["mag_bp"], float) - np.asarray(stars.table["mag_rp"], float)
    return instrument.gaia_magnitude(filter_name, mag_g, np.where(np.isfinite(color), color, 0.8))


def julian_year(mjd: float) -> float:
    """Julian year of a Modified Julian Date."""
    return 2000.0 + (mjd - 51544.5) / 365.25


def _magnitudes(measurements: Measurements) -> Any:
    """Magnitudes of the absolute PSF fluxes; NaN where there is none."""
    flux = np.abs(np.asarray(measurements.table["flux_psf"], float))
    return measurements.zp - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
