"""SExtractor and PSFEx on the same pixels, for comparison; tests skip where they are not installed."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

COLUMNS = [
    "X_IMAGE", "Y_IMAGE", "XWIN_IMAGE", "YWIN_IMAGE", "FLUX_AUTO", "FLUX_RADIUS", "ELONGATION", "FLAGS", "SNR_WIN",
    "FLUX_MAX",
]  # fmt: skip


def tool(*names: str) -> str:
    """Path of the first of these programs that is installed, or skip."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"{names[0]} is not installed (Debian package {names[0]})")


def source_extractor(data, folder: Path, *, gain, apertures_px=(10.0,), columns=(), **options):
    """Run SExtractor on pixels; returns its catalogue and leaves it as ``cat.ldac`` in the folder."""
    from astropy.io import fits

    program = tool("source-extractor", "sex")
    fits.writeto(folder / "image.fits", np.asarray(data, np.float32), overwrite=True)
    n = len(apertures_px)
    names = [*COLUMNS, f"FLUX_APER({n})", f"FLUXERR_APER({n})", *columns]
    (folder / "columns.param").write_text("\n".join(names) + "\n")
    (folder / "filter.conv").write_text("CONV NORM\n1 2 1\n2 4 2\n1 2 1\n")
    settings = {
        "PARAMETERS_NAME": folder / "columns.param", "FILTER_NAME": folder / "filter.conv",
        "CATALOG_NAME": folder / "cat.ldac", "CATALOG_TYPE": "FITS_LDAC", "DETECT_THRESH": 1.5, "ANALYSIS_THRESH": 1.5,
        "DETECT_MINAREA": 5, "BACK_SIZE": 256, "BACK_FILTERSIZE": 3, "GAIN": gain, "GAIN_KEY": "NONE",
        "SATUR_LEVEL": 55000, "SATUR_KEY": "NONE", "PHOT_APERTURES": ",".join(f"{2 * r:.4f}" for r in apertures_px),
        "VERBOSE_TYPE": "QUIET", "NTHREADS": 1,
    } | options  # fmt: skip
    (folder / "empty.sex").write_text("")
    _run([program, folder / "image.fits", "-c", folder / "empty.sex"], settings)
    return fits.getdata(folder / "cat.ldac", 2)


def psfex(folder: Path, *, fwhm_px, degree, without) -> "PsfexModel":
    """Fit PSFEx to ``cat.ldac`` of the folder, the stars at the positions `without` (x, y) left out."""
    from astropy.io import fits
    from scipy.spatial import cKDTree

    program = tool("psfex")
    with fits.open(folder / "cat.ldac") as hdus:
        table = hdus[2].data
        apart = cKDTree(np.stack(without, 1)).query(np.stack([table["X_IMAGE"], table["Y_IMAGE"]], 1) - 1)[0]
        hdus[2].data = table[apart > 2.0]
        hdus.writeto(folder / "train.ldac", overwrite=True)
    size = 2 * int(np.ceil(4 * fwhm_px)) + 1
    settings = {
        "PSFVAR_DEGREES": degree, "SAMPLE_MINSN": 20, "SAMPLE_FWHMRANGE": "1.0,15.0", "SAMPLE_VARIABILITY": 0.4,
        "CHECKIMAGE_TYPE": "NONE", "CHECKPLOT_TYPE": "NONE", "WRITE_XML": "N", "VERBOSE_TYPE": "QUIET", "NTHREADS": 1,
        "PSF_SIZE": f"{size},{size}", "PSF_DIR": folder,
    }  # fmt: skip
    _run([program, folder / "train.ldac", "-c", folder / "empty.sex"], settings)
    with fits.open(folder / "train.psf") as hdus:
        return PsfexModel(np.array(hdus[1].data["PSF_MASK"][0], float), dict(hdus[1].header))


class PsfexModel:
    """A PSFEx model: renders stamps at sub-pixel positions with a Lanczos-4 kernel."""

    def __init__(self, masks, header):
        self.masks, self.header = masks, header

    def render(self, x, y, size):
        """As `seechange_assets.science.psf.render`."""
        h, half = self.header, size // 2
        u, v = (np.asarray(x) + 1 - h["POLZERO1"]) / h["POLSCAL1"], (np.asarray(y) + 1 - h["POLZERO2"]) / h["POLSCAL2"]
        degree = h["POLDEG1"]
        terms = np.stack([u**i * v**j for j in range(degree + 1) for i in range(degree + 1 - j)], axis=1)
        axis, stamps = np.arange(-half, half + 1), []
        for px, py, table in zip(x, y, np.tensordot(terms, self.masks, 1), strict=True):
            rows = self._taps(axis - (py - np.floor(py + 0.5)), table.shape[0])
            columns = self._taps(axis - (px - np.floor(px + 0.5)), table.shape[1])
            stamp = rows @ table @ columns.T
            stamps.append(stamp / stamp.sum())
        return np.array(stamps)

    def _taps(self, offset, n):
        distance = offset[:, None] / self.header["PSF_SAMP"] + (n - 1) / 2 - np.arange(n)
        return np.where(np.abs(distance) < 4, np.sinc(distance) * np.sinc(distance / 4), 0.0)


def _run(command, settings):
    for name, value in settings.items():
        command += [f"-{name}", str(value)]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=120)
