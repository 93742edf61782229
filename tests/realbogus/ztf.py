"""Real alert triplets of ZTF as cutouts and measurements: what the classifier has never been trained on."""

import gzip
import io
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray
from scipy import ndimage

from seechange_assets.products import Cutouts, Detections, Difference, Flag, ImageInfo, Measurements, Wcs
from seechange_assets.science import diagnostics
from seechange_assets.science.cutouts import cut_stamps, stamp_corners
from seechange_assets.science.detections import subpixel_peak
from seechange_assets.science.measurements import DELETION_THRESHOLDS, measure
from seechange_assets.science.psf import moffat_psf, raw_stamps
from tests.science.pairs import rotated_wcs, wcs_text

SIDE = 63  # of the stamps in the packets, 1.01 arcsec per pixel
GAIN = 6.2  # electrons per count of ZTF's CCDs
USUAL_FWHM_PX = 2.0
MOFFAT_BETA = 3.5
STAMP_PX = 41

FloatImage = NDArray[np.float32]


@dataclass(frozen=True)
class Alert:
    """Stamps on one flux scale (new minus reference) and ZTF's own verdicts; `drb` is NaN in old packets."""

    new: FloatImage
    reference: FloatImage
    difference: FloatImage
    rb: float
    drb: float
    candid: int


def read_alerts(folder: Path) -> list[Alert]:
    """All whole triplets under `folder`, each candidate once."""
    alerts: dict[int, Alert] = {}
    for packet in _packets(folder):
        if packet.get("cutoutDifference") and packet["candid"] not in alerts:
            stamps = [_stamp(packet[f"cutout{name}"]["stampData"]) for name in ("Science", "Template", "Difference")]
            if all(stamp.shape == (SIDE, SIDE) for stamp in stamps):
                alerts[packet["candid"]] = _alert(stamps, packet["candidate"], packet["candid"])
    return list(alerts.values())


def _packets(folder: Path) -> Iterator[dict[str, Any]]:
    fastavro, parquet = pytest.importorskip("fastavro"), pytest.importorskip("pyarrow.parquet")
    for path in sorted((folder / "fink_ztf").glob("*.parquet")):
        columns = ["candid", "candidate", "cutoutScience", "cutoutTemplate", "cutoutDifference"]
        yield from parquet.read_table(path, columns=columns).to_pylist()
    for path in sorted((folder / "kowalski" / "ztf_alerts").glob("*.avro")):
        with path.open("rb") as stream:
            yield from fastavro.reader(stream)
    for path in sorted((folder / "ztf_ampel").glob("*.tar.gz")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    yield from fastavro.reader(io.BytesIO(archive.extractfile(member).read()))


def _stamp(data: bytes) -> FloatImage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = np.asarray(fits.getdata(io.BytesIO(gzip.decompress(data))), np.float32)
    return np.where(np.abs(pixels) < 1e6, pixels, np.float32(np.nan))  # huge values stand for missing ones


def _alert(stamps: list[FloatImage], candidate: dict[str, Any], candid: int) -> Alert:
    """Sky levels out, the reference on the flux scale of the new image, the difference new minus reference."""
    new, reference, difference = (stamp - np.nanmedian(stamp) for stamp in stamps)
    if candidate["isdiffpos"] in ("f", "0"):
        difference = -difference  # made as reference minus new
    static = (new - difference).ravel()
    known = np.isfinite(static) & np.isfinite(reference.ravel())
    light = np.clip(reference.ravel()[known], 0, None)
    scale = (light @ static[known]) / max(light @ light, 1e-30)
    drb = candidate.get("drb")
    return Alert(
        new, reference * np.float32(np.clip(scale, 0.05, 20)), difference,
        float(candidate["rb"]), float("nan") if drb is None else float(drb), candid,
    )  # fmt: skip


def measured(alert: Alert) -> tuple[Cutouts, Measurements]:
    """The alert through the project's own code from the difference on: score, stamps, measurements."""
    bad = ~(np.isfinite(alert.new) & np.isfinite(alert.reference) & np.isfinite(alert.difference))
    flags = np.where(bad, np.uint16(Flag.NO_DATA), np.uint16(0))
    difference = _difference(alert, flags)
    center = SIDE // 2
    box = np.abs(np.nan_to_num(difference.score[center - 3 : center + 4, center - 3 : center + 4]))
    dy, dx = np.unravel_index(box.argmax(), box.shape)
    row, column = np.array([center - 3 + dy]), np.array([center - 3 + dx])
    x, y = subpixel_peak(difference.score, column, row)
    found = Table({"x": x, "y": y, "score": difference.score[row, column], "kind": ["point"]})
    corner = stamp_corners(x, y, STAMP_PX)
    new, reference, sub = (
        cut_stamps(image, flags, corner, STAMP_PX) for image in (alert.new, alert.reference, difference.data)
    )
    cutouts = Cutouts(new[0], reference[0], sub[0], new[1], new[1], new[1], corner, STAMP_PX)
    untouched = dict.fromkeys(DELETION_THRESHOLDS)
    return cutouts, measure(Detections(found, 5.0), cutouts, difference, deletion_thresholds=untouched)


def _difference(alert: Alert, flags: NDArray[np.uint16]) -> Difference:
    psf = moffat_psf(_seeing(alert.new), MOFFAT_BETA, (SIDE, SIDE), 21)
    data = np.where(flags == 0, alert.difference, 0).astype(np.float32)
    sky = 1.4826 * np.median(np.abs(data[flags == 0]))
    variance = sky**2 + np.clip(np.nan_to_num(alert.new), 0, None) / GAIN
    kernel = raw_stamps(psf, [31.0], [31.0], 21)[0]
    flux = ndimage.correlate(data, kernel, mode="constant") / (kernel**2).sum()
    error = np.sqrt(ndimage.correlate(variance, kernel**2, mode="nearest")) / (kernel**2).sum()
    # Resampled pixels are correlated: the scatter of the score on the stamp sets its unit.
    error *= max(1.4826 * np.median(np.abs((flux / error)[flags == 0])), 0.5)
    header = wcs_text(rotated_wcs((SIDE, SIDE), scale_arcsec=1.01))
    nan = float("nan")
    return Difference(
        ImageInfo("ztf", "00", "ztf", "", "r", 6e4, 30.0, 1.0, "", "", GAIN, 10.0, 5e4, 1.01),
        data, np.sqrt(variance).astype(np.float32), (flux / error).astype(np.float32), flux.astype(np.float32),
        error.astype(np.float32), flags, psf, Wcs(header, 1, 0, 0, nan, nan, nan, nan, "none", Table()),
        25.0, 0.0, nan, "zogy", 1.0, header,
    )  # fmt: skip


def _seeing(new: FloatImage) -> float:
    """FWHM [pixel] of the brightest star away from the centre and the border; the usual one if there is none."""
    noise = 1.4826 * np.nanmedian(np.abs(new))
    shown = np.nan_to_num(new)
    peaks = (shown == ndimage.maximum_filter(shown, 7)) & (shown > 20 * noise) & (shown < 3e4)
    rows, columns = np.nonzero(peaks)
    outer = (np.abs(rows - 31) < 24) & (np.abs(columns - 31) < 24) & (np.hypot(rows - 31, columns - 31) > 5)
    if not outer.any():
        return USUAL_FWHM_PX
    rows, columns = rows[outer], columns[outer]
    best = shown[rows, columns].argmax()
    cut = shown[rows[best] - 7 : rows[best] + 8, columns[best] - 7 : columns[best] + 8].astype(np.float64)
    shape = diagnostics.moments(cut[None], np.full((1, 15, 15), noise**2), np.zeros(1), np.zeros(1), USUAL_FWHM_PX)
    return float(np.clip(np.nan_to_num(shape.fwhm_px[0], nan=USUAL_FWHM_PX), 1.4, 4.0))
