"""Whether a reference can be subtracted from an image at all; each refusal says why and what to do."""

import numpy as np

from seechange_assets.errors import ReferenceUnusable
from seechange_assets.products import Flag, FlagImage, Image, Psf, Reference, Wcs, wcs_from_text
from seechange_assets.science.psf import native_size

MAX_SCALE_RATIO = 2.0
MIN_STAMP_FWHM = 2.0


def check_inputs(image: Image, psf: Psf, wcs: Wcs, reference: Reference, *, max_masked: float) -> None:
    """Refuse what cannot be subtracted.

    Raises
    ------
    ReferenceUnusable
        Filters differ; an image has no celestial WCS; the pixel scales differ by more than a factor 2;
        the reference has no finite pixel, or `max_masked` of it is flagged; a PSF is wider than half its stamp.
    """
    where = f"{image.info.exposure} {image.info.ccd}"
    if image.info.filter != reference.info.filter:
        raise ReferenceUnusable(
            f"{where}: the image is in filter {image.info.filter!r}, reference {reference.name!r} in "
            f"{reference.info.filter!r}; choose a reference of the same filter"
        )
    finite = np.isfinite(reference.data)
    if not finite.any():
        raise ReferenceUnusable(f"{where}: reference {reference.name!r} has no finite pixel; rebuild it")
    masked = float(np.mean((reference.flags != 0) | ~finite))
    if masked >= max_masked:
        raise ReferenceUnusable(
            f"{where}: {100 * masked:.0f} % of reference {reference.name!r} is masked (below {100 * max_masked:.0f} % "
            "allowed); rebuild it from more images"
        )
    _check_scales(where, wcs, reference)
    for name, model in (("image", psf), ("reference", reference.psf)):
        size = native_size(model)
        if size < MIN_STAMP_FWHM * model.fwhm_px:
            raise ReferenceUnusable(
                f"{where}: the PSF of the {name} (FWHM {model.fwhm_px:.1f} px) does not fit its stamp of {size} px; "
                "measure it on a larger stamp or reject the image"
            )


def check_overlap(warped_flags: FlagImage, image: Image, min_overlap: float) -> None:
    """Refuse a reference that covers too little of the image.

    Raises
    ------
    ReferenceUnusable
        Below `min_overlap`.
    """
    overlap = float(np.mean((warped_flags & Flag.OUT_OF_BOUNDS) == 0))
    if overlap < min_overlap or overlap == 0:
        raise ReferenceUnusable(
            f"{image.info.exposure} {image.info.ccd}: the reference covers {100 * overlap:.1f} % of the image "
            f"({100 * min_overlap:.0f} % required); choose a reference of this field"
        )


def _check_scales(where: str, wcs: Wcs, reference: Reference) -> None:
    scales = []
    for name, text in (("image", wcs.header), ("reference", reference.wcs.header)):
        parsed = wcs_from_text(text) if text.strip() else None
        if parsed is None or not parsed.has_celestial:
            raise ReferenceUnusable(f"{where}: the {name} has no celestial WCS; solve its astrometry first")
        scales.append(float(np.sqrt(abs(np.linalg.det(parsed.pixel_scale_matrix))) * 3600))
    ratio = max(scales) / min(scales)
    if not ratio <= MAX_SCALE_RATIO:
        raise ReferenceUnusable(
            f'{where}: pixel scales {scales[0]:.3f}" and {scales[1]:.3f}" differ by a factor {ratio:.1f} '
            f"(at most {MAX_SCALE_RATIO:.0f}); use a reference of a similar camera"
        )
