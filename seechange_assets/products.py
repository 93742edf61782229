"""What flows between the assets: frozen dataclasses of arrays, tables and plain values.

Conventions (all products): pixels are 0-based with the centre of the first pixel at
(0, 0); arrays are ``[y, x]`` with shape ``(ny, nx)``; images are float32 ADU; flags are
uint16 bits (`Flag`); sky positions are ICRS degrees; times are MJD in UTC; FWHM carries
its unit in the name. Arrays are handed over read-only. A NaN in a table means "not
measured"; a NaN pixel is always flagged.
"""

import functools
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.table import Table
    from astropy.wcs import WCS

FloatImage = NDArray[np.float32]
FlagImage = NDArray[np.uint16]

#: AB zero point of fluxes in nanojansky.
NJY_ZERO_POINT = 31.4


class Flag(IntFlag):
    """Bits of the flag images and of the ``image_flags`` columns."""

    BAD = 1
    NO_DATA = 2
    SATURATED = 4
    OUT_OF_BOUNDS = 8
    COSMIC_RAY = 16
    STREAK = 32
    BLEED = 64
    INTERPOLATED = 128


@dataclass(frozen=True, slots=True)
class ExposureInfo:
    """The header of a registered exposure, in the project's own terms.

    ``kind`` is one of ``science``, ``bias``, ``dark``, ``flat``; ``mjd`` is the start of the
    exposure; ``ra_deg``, ``dec_deg`` the pointing of the boresight (NaN for calibrations);
    ``filters`` gives the filter of each CCD; ``flat_type`` of a flat is ``dome``, ``twilight`` or ``sky``
    (empty where the header does not say).
    """

    key: str
    instrument: str
    kind: str
    night: str
    mjd: float
    exptime_s: float
    ra_deg: float
    dec_deg: float
    airmass: float
    target: str
    project: str
    field: str
    filters: dict[str, str]
    flat_type: str = ""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is known of one CCD image beside its pixels.

    ``gain`` [e-/ADU] and ``read_noise`` [e-] are effective values of the whole CCD after
    gain equalisation; ``saturation`` [ADU] refers to the calibrated pixels (the lowest amplifier);
    ``wcs_guess`` is the text of a FITS header holding the WCS the telescope believed
    (empty if none); ``steps_done`` lists the calibration steps applied, here or upstream.
    """

    exposure: str
    ccd: str
    instrument: str
    field: str
    filter: str
    mjd: float
    exptime_s: float
    airmass: float
    target: str
    project: str
    gain: float
    read_noise: float
    saturation: float
    pixel_scale_arcsec: float
    wcs_guess: str = ""
    steps_done: tuple[str, ...] = ()

    @property
    def mjd_mid(self) -> float:
        """Middle of the exposure, MJD UTC."""
        return self.mjd + self.exptime_s / 2 / 86400.0


@dataclass(frozen=True, slots=True)
class Master:
    """A stacked calibration frame of one CCD.

    On the trimmed CCD frame, by ``kind``: ``bias`` [ADU of each amplifier]; ``dark`` [ADU/s after gain
    equalisation]; ``flat`` and ``illumination`` (normalised to median 1); ``fringe`` (fraction of the sky, mean 0).
    Valid from ``valid_from`` to ``valid_to`` (MJD). ``calibration_set`` is ``nightly`` (built here) or
    ``external`` (supplied as a file); ``flat_type`` as in `ExposureInfo`.
    """

    kind: str
    calibration: str
    ccd: str
    instrument: str
    filter: str
    valid_from: float
    valid_to: float
    data: FloatImage
    flags: FlagImage
    members: tuple[str, ...]
    noise: float = float("nan")
    flat_type: str = ""
    calibration_set: str = "nightly"


@dataclass(frozen=True, slots=True)
class Image:
    """A calibrated CCD image, background not subtracted.

    ``masters`` records what the data decided: kind of master to its identifier. ``steps`` says of each wanted
    step whether it was ``applied``, done ``upstream`` or ``skipped`` for the filter; ``fringe_amplitude`` is the
    fitted factor of the fringe master [ADU].
    """

    info: ImageInfo
    data: FloatImage
    flags: FlagImage
    masters: dict[str, str] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    fringe_amplitude: float = float("nan")


@dataclass(frozen=True, slots=True)
class Background:
    """Sky level and rms on a mesh; `science.background.level_map` and `rms_map` render them.

    ``level_mesh`` and ``rms_mesh`` are ``(n_boxes_y, n_boxes_x)`` float32 ADU for boxes of
    ``box_size_px`` starting at pixel (0, 0); ``level`` and ``rms`` are their medians.
    """

    level_mesh: FloatImage
    rms_mesh: FloatImage
    box_size_px: int
    shape: tuple[int, int]
    level: float
    rms: float


@dataclass(frozen=True, slots=True)
class Sources:
    """Sources of one image, sorted by decreasing flux.

    Columns: ``x, y, x_err, y_err`` (windowed centroid, pixel), ``flux_auto, flux_auto_err``,
    ``flux_aper, flux_aper_err`` (n, n_apertures) [ADU], ``a, b`` [pixel], ``theta`` [radian],
    ``fwhm_px``, ``peak`` [ADU], ``snr``, ``extraction_flags``, ``image_flags`` (OR of `Flag`
    inside the isophote), ``star_score`` (0 galaxy … 1 star), ``is_good``, ``is_star``.
    ``fwhm_px`` is the seeing: the median FWHM of the stars. ``field_kind`` is ``galactic`` or ``extragalactic``,
    from the catalogue's ``star_density_deg2`` [1/deg^2]; NaN if nobody asked. ``n_detected`` is the number of
    sources found, of which only the brightest are in the table if ``is_limited``; -1 where nobody counted.
    """

    table: "Table"
    aperture_radii_px: tuple[float, ...]
    fwhm_px: float
    field_kind: str = "extragalactic"
    star_density_deg2: float = float("nan")
    n_detected: int = -1

    @property
    def is_limited(self) -> bool:
        """Whether more sources were found than measured: the image is confusion limited."""
        return self.n_detected > len(self.table)


@dataclass(frozen=True, slots=True)
class Psf:
    """Spatially varying point spread function.

    ``coefficients`` is ``(n_terms, size, size)`` float64, odd ``size``, sampled ``oversampling``
    times per pixel; term order is that of ``science.psf.polynomial_terms``: products of
    x' and y' up to ``degree``, where x' = 2x/(nx-1) - 1. ``science.psf.render`` makes stamps.
    ``photometry`` has one row per row of the `Sources` it was made from: ``flux_psf``,
    ``flux_psf_err`` [ADU], ``chi2`` (reduced), ``used`` (fitted the model), ``reserved``.
    ``form`` is ``pixels``, ``moffat`` or ``gaussian`` (fallbacks when stars are few). ``enclosed`` is the
    share of a star's light that the table holds (error ``enclosed_err``): PSF fluxes are those of the whole star.
    ``blank_noise`` is the scatter of PSF fluxes on blank sky over what the noise of single pixels gives.
    """

    coefficients: NDArray[np.float64]
    oversampling: int
    degree: int
    shape: tuple[int, int]
    fwhm_px: float
    form: str
    n_stars: int
    chi2: float
    photometry: "Table"
    enclosed: float = 1.0
    enclosed_err: float = 0.0
    blank_noise: float = 1.0


@dataclass(frozen=True, slots=True)
class SkyCatalog:
    """Stars of an external catalogue around a field, at the catalogue's epoch.

    Columns: ``ra, dec`` [deg, ICRS], ``ra_err, dec_err`` [mas], ``pm_ra`` (times cos dec), ``pm_dec``
    [mas/yr], ``parallax`` [mas], ``mag_g, mag_bp, mag_rp`` and their ``_err`` [mag, Vega as Gaia
    gives them]; unknown values are NaN. ``epoch_yr`` is a Julian year, ``name`` identifies
    source and content (first ten characters of a hash included).
    """

    table: "Table"
    epoch_yr: float
    name: str


@dataclass(frozen=True, slots=True)
class Wcs:
    """Astrometric solution.

    ``header`` is the text of a FITS header (TAN or TAN-SIP). Residuals are robust
    (1.4826 MAD) standard deviations against the catalogue in mas, ``_bright`` for S/N > 100.
    ``matches``: ``source`` (row in `Sources`), ``ra, dec`` at the epoch of the image, ``mag_g``,
    ``mag_bp``, ``mag_rp`` and their ``_err``, ``d_ra_mas, d_dec_mas`` (source - catalogue), ``used``.
    ``catalog`` identifies the catalogue excerpt.
    """

    header: str
    degree: int
    n_matched: int
    n_catalog: int
    residual_ra_mas: float
    residual_dec_mas: float
    residual_ra_bright_mas: float
    residual_dec_bright_mas: float
    catalog: str
    matches: "Table"

    def astropy(self) -> "WCS":
        """The solution as an `astropy.wcs.WCS`."""
        return wcs_from_text(self.header)


@dataclass(frozen=True, slots=True)
class ZeroPoint:
    """Photometric calibration: ``mag = -2.5 log10(flux_psf) + zp`` (AB), PSF flux of the whole star in ADU.

    ``aperture_corrections`` [mag] bring each aperture of `Sources` to the PSF-flux system.
    ``scatter`` is the robust scatter of single stars, ``zp_err`` the error of ``zp`` [mag].
    ``stars``: ``source``, ``mag_catalog``, ``mag_instrumental``, ``color``, ``residual``, ``used``.
    ``residual_map`` is ``(n_boxes_y, n_boxes_x)`` float32: the median residual [mag] (catalogue minus image) of
    the stars in boxes of ``residual_box_px``, NaN where they are few; ``residual_map_err`` its error.
    """

    zp: float
    zp_err: float
    scatter: float
    color_term: float
    n_stars: int
    aperture_radii_px: tuple[float, ...]
    aperture_corrections: tuple[float, ...]
    limiting_magnitude: float
    stars: "Table"
    residual_map: FloatImage = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    residual_map_err: FloatImage = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    residual_box_px: int = 0


@dataclass(frozen=True, slots=True)
class CalibratedImage:
    """An image with everything that was measured on it; ``psf.photometry`` is that of ``sources``."""

    image: Image
    background: Background
    sources: Sources
    psf: Psf
    wcs: Wcs
    zp: ZeroPoint


@dataclass(frozen=True, slots=True)
class Reference:
    """A deep, background-subtracted coadd of one field, filter and CCD, calibrated by itself.

    ``variance`` [ADU^2] is infinite where there is no data. ``members`` are the exposures
    inside; ``name`` is the reference set.
    """

    name: str
    info: ImageInfo
    data: FloatImage
    variance: FloatImage
    flags: FlagImage
    sources: Sources
    psf: Psf
    wcs: Wcs
    zp: ZeroPoint
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """New minus reference on the pixel grid and flux scale of the new image.

    ``score`` is the matched-filter S/N image (unit noise on blank sky); ``flux`` and
    ``flux_err`` the best PSF flux of a point source at each pixel [ADU of the new image];
    ``noise`` is the standard deviation of ``data`` per pixel; ``psf`` the PSF of the
    difference; ``reference_wcs`` the header text of the WCS (of the reference's pixels)
    refined star to star, with which the reference was warped, ``flux_scale`` the factor that
    brings reference counts to new counts; ``psf_flux_error`` the relative error of all PSF fluxes beyond noise.
    """

    info: ImageInfo
    data: FloatImage
    noise: FloatImage
    score: FloatImage
    flux: FloatImage
    flux_err: FloatImage
    flags: FlagImage
    psf: Psf
    wcs: Wcs
    zp: float
    zp_err: float
    limiting_magnitude: float
    method: str
    flux_scale: float
    reference_wcs: str
    reference_id: str = ""
    n_alignment_stars: int = 0
    alignment_rms_px: float = float("nan")
    masked_fraction: float = float("nan")
    psf_flux_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Detections:
    """Peaks of the score image, both signs, sorted by decreasing |score|.

    Columns: ``x, y`` [pixel], ``ra, dec`` [deg], ``score`` (signed), ``flux, flux_err`` [ADU],
    ``n_pixels``, ``image_flags``, ``kind`` (``point``, ``streak`` or ``star_residual``).
    ``threshold`` is that of the field's kind, see `Sources`.
    """

    table: "Table"
    threshold: float
    field_kind: str = "extragalactic"


@dataclass(frozen=True, slots=True)
class Cutouts:
    """Stamps around each detection, on one flux scale, same order as the detections.

    ``new``, ``ref``, ``sub`` are ``(n, size, size)`` float32 ADU, background-subtracted, NaN
    outside the images; the flags stamps have the same shape. ``corner`` is ``(n, 2)`` int32: the
    (x, y) of the stamps' first pixel in the new image.
    """

    new: NDArray[np.float32]
    ref: NDArray[np.float32]
    sub: NDArray[np.float32]
    new_flags: NDArray[np.uint16]
    ref_flags: NDArray[np.uint16]
    sub_flags: NDArray[np.uint16]
    corner: NDArray[np.int32]
    size: int


@dataclass(frozen=True, slots=True)
class Measurements:
    """Photometry, shape and artefact diagnostics of each detection that was not deleted.

    Columns: ``detection`` (row in `Detections` and `Cutouts`), ``x, y, x_err, y_err, xy_cov``
    [pixel], ``ra, dec, ra_err, dec_err, ra_dec_cov`` [deg; errors on the sky, deg], ``flux_psf,
    flux_psf_err, flux_aper, flux_aper_err`` [ADU], ``mag, mag_err``, ``snr``, ``chi2``, ``score``,
    ``fwhm_px, elongation, position_angle_deg``, ``dipole_score``, ``trail_score``,
    ``negative_fraction``, ``negative_flux_fraction``, ``n_bad_pixels``, ``distance_px``
    (fit - detection), ``ref_source_distance_arcsec, ref_source_mag, ref_source_star_score``,
    ``cosmic_ray_score``, ``kind``, ``is_bad`` and ``bad_reasons`` (comma-separated).
    """

    table: "Table"
    aperture_radii_px: tuple[float, ...]
    zp: float
    zp_err: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Real/bogus score in [0, 1] of each row of `Measurements`: columns ``score, is_real``."""

    table: "Table"
    algorithm: str
    cut: float


@dataclass(frozen=True, slots=True)
class Associations:
    """Kept measurements linked to objects.

    Columns ``measurement`` (row), ``measurement_id``, ``object_id``, ``object_name``,
    ``separation_arcsec``, ``is_new``.
    """

    table: "Table"


@dataclass(frozen=True, slots=True)
class ForcedPhotometry:
    """PSF flux on the difference at known objects.

    Columns ``object_id, object_name, ra, dec, x, y``, ``flux_psf, flux_psf_err`` [ADU],
    ``flux_njy, flux_njy_err``, ``image_flags``.
    """

    table: "Table"


@dataclass(frozen=True, slots=True)
class Alerts:
    """The alerts of one CCD: ``alert_id, measurement_id, object_name``."""

    table: "Table"


def header_text(header: "Header") -> str:
    """A FITS header as text, one card per line, without trailing blanks."""
    return header.tostring(sep="\n", endcard=False, padding=False).rstrip()


def header_from_text(text: str) -> "Header":
    """The inverse of `header_text`."""
    from astropy.io.fits import Header

    return Header.fromstring(text, sep="\n")


@functools.lru_cache(maxsize=16)
def wcs_from_text(text: str) -> "WCS":
    """An `astropy.wcs.WCS` from header text; the standard header fixes are silent.

    Whoever asks for the same text gets the same object: copy it before you change it.
    """
    import warnings

    from astropy.wcs import WCS, FITSFixedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        return WCS(header_from_text(text))


def plain(value: Any) -> Any:
    """Numpy scalars to Python ones, NaN and infinities to None, tuples to lists."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
