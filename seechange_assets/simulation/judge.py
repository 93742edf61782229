"""Truth against alerts: what was found, what was missed, what is spurious."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from astropy.table import Table

#: Bounds of the S/N bins of the printed table.
SNR_BINS = (4.0, 5.0, 7.0, 10.0, 20.0, 50.0, np.inf)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts over all images; ``table`` has one row per S/N bin."""

    injected: int
    found: int
    completeness_snr10: float
    spurious_per_ccd: float
    table: list[dict[str, Any]]


def judge(truth: "Table", alerts: Sequence[dict[str, Any]], *, radius_arcsec: float, n_ccd_images: int) -> Verdict:
    """Match alerts to the truth of the same exposure.

    Parameters
    ----------
    truth : Table
        Of `simulate_survey`: ``exposure, ccd, kind, ra, dec, snr``; rows of variable stars
        excuse an alert but are not counted as injected.
    alerts : sequence of dict
        Decoded packets.
    radius_arcsec : float
        Farthest alert that still is the transient.
    n_ccd_images : int
        Number of CCD images the alerts come from.
    """
    is_found = np.zeros(len(truth), bool)
    is_explained = np.zeros(len(alerts), bool)
    exposures = np.array([alert["diaSource"]["visit"] for alert in alerts], dtype=str)
    ra = np.array([alert["diaSource"]["ra"] for alert in alerts], float)
    dec = np.array([alert["diaSource"]["dec"] for alert in alerts], float)
    for row, entry in enumerate(truth):
        same = np.flatnonzero(exposures == entry["exposure"])
        d_ra = (ra[same] - entry["ra"] + 180.0) % 360.0 - 180.0
        separation = np.hypot(d_ra * np.cos(np.deg2rad(entry["dec"])), dec[same] - entry["dec"]) * 3600
        is_found[row] = np.any(separation <= radius_arcsec)
        is_explained[same[separation <= radius_arcsec]] = True
    counted = np.asarray(truth["kind"]) != "variable"
    snr = np.asarray(truth["snr"], float)
    bright = counted & (snr >= 10)
    return Verdict(
        injected=int(counted.sum()),
        found=int((is_found & counted).sum()),
        completeness_snr10=round(float(is_found[bright].mean()), 4) if bright.any() else float("nan"),
        spurious_per_ccd=round(float((~is_explained).sum()) / n_ccd_images, 3),
        table=[_bin(low, high, snr, counted, is_found) for low, high in pairwise(SNR_BINS)],
    )


def _bin(low: float, high: float, snr: Any, counted: Any, is_found: Any) -> dict[str, Any]:
    inside = counted & (snr >= low) & (snr < high)
    injected, found = int(inside.sum()), int((is_found & inside).sum())
    return {
        "S/N": f"{low:g}-{high:g}" if np.isfinite(high) else f">{low:g}",
        "injected": injected,
        "found": found,
        "completeness": found / injected if injected else float("nan"),
    }
