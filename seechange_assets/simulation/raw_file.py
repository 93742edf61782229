"""The file in which a simulated exposure comes."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seechange_assets.instruments.headers import MJD_ZERO
from seechange_assets.simulation.plan import Exposure, Simulator

if TYPE_CHECKING:
    from astropy.io.fits import Header

FIELD = "sim01"


def write_raw(path: Path, simulator: Simulator, exposure: Exposure, frames: dict[str, NDArray[np.uint16]]) -> None:
    """The file an LS4 exposure would come in."""
    from astropy.io import fits

    hdus = fits.HDUList([fits.PrimaryHDU(header=_primary_header(simulator, exposure, tuple(frames)))])
    for ccd, frame in frames.items():
        hdus.append(fits.ImageHDU(frame, header=_ccd_header(simulator, exposure, ccd)))
    hdus.writeto(path, overwrite=True, output_verify="exception")


def _primary_header(simulator: Simulator, exposure: Exposure, ccds: tuple[str, ...]) -> "Header":
    from astropy.io.fits import Header

    conditions, camera = exposure.conditions, simulator.instrument
    start = MJD_ZERO + timedelta(days=conditions.mjd)
    header = Header()
    header["INSTRUME"], header["TELESCOP"] = camera.name, camera.telescope
    header["IMAGETYP"] = "object" if exposure.kind == "science" else exposure.kind
    header["DATE-OBS"] = (f"{start.replace(tzinfo=None):%Y-%m-%dT%H:%M:%S.%f}"[:-3], "start of the exposure, UTC")
    header["MJD-OBS"], header["EXPTIME"] = conditions.mjd, conditions.exptime_s
    header["PROJECT"], header["OBJECT"] = exposure.project, FIELD if exposure.kind == "science" else exposure.kind
    header["NCCD"], header["CCDLIST"] = len(ccds), ",".join(ccds)
    if exposure.kind == "science":
        header["FIELD"] = FIELD
        header["RA"], header["DEC"] = exposure.pointing_deg
        header["AIRMASS"] = exposure.airmass
    return header


def _ccd_header(simulator: Simulator, exposure: Exposure, ccd: str) -> "Header":
    from astropy.io.fits import Header

    camera = simulator.instrument
    header = camera.wcs_guess(*exposure.pointing_deg, ccd) if exposure.kind == "science" else Header()
    header["EXTNAME"], header["FILTER"] = f"CCD{ccd}", camera.default_filter(ccd)
    for amp in camera.amplifiers():
        header[f"GAIN{amp.name}"], header[f"RDNOISE{amp.name}"] = amp.gain, amp.read_noise
        header[f"SATURAT{amp.name}"], header[f"NONLIN{amp.name}"] = amp.saturation, amp.nonlinearity
        header[f"DATASEC{amp.name}"], header[f"BIASSEC{amp.name}"] = _section(amp.raw_data), _section(amp.raw_overscan)
    return header


def _section(slices: tuple[slice, slice]) -> str:
    rows, columns = slices
    return f"[{columns.start + 1}:{columns.stop},{rows.start + 1}:{rows.stop}]"
