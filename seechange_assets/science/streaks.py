"""Streaks in a score image: long connected islands, and rows of peaks where a trail is broken."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# A broken streak: at least this many peaks of one sign in line, no larger gap, and at least this long (in FWHM).
LINE_MIN_PEAKS, LINE_MAX_GAP_FWHM, LINE_MIN_LENGTH_FWHM = 6, 4.0, 12.0
LINE_ANGLES = 180
# Two point sources whose islands touch are at most some 2.5 times longer than wide.
MIN_ELONGATION = 3.0


def elongated_islands(
    x: NDArray[Any], y: NDArray[Any], island: NDArray[Any], min_length_px: float
) -> NDArray[np.bool_]:
    """Islands longer than `min_length_px` and much longer than wide, from their second moments.

    A uniform line of length L has a variance of L^2 / 12 along itself.
    """
    n = np.maximum(np.bincount(island, minlength=1), 1)
    mean_x, mean_y = np.bincount(island, x, 1) / n, np.bincount(island, y, 1) / n
    dx, dy = x - mean_x[island], y - mean_y[island]
    xx, yy = np.bincount(island, dx * dx, 1) / n, np.bincount(island, dy * dy, 1) / n
    xy = np.bincount(island, dx * dy, 1) / n
    mean, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    major, minor = mean + spread, np.maximum(mean - spread, 1 / 12)
    return (np.sqrt(12 * major) > min_length_px) & (major > MIN_ELONGATION**2 * minor)


def peaks_in_line(position: NDArray[Any], positive: NDArray[Any], fwhm: float) -> NDArray[np.int64]:
    """Label of the straight row of peaks of one sign each one belongs to, -1 for none (Hough transform).

    Chance rows are rare: with 1000 detections on 2048x4096 pixels of FWHM 5 px, the next peak of
    a row lies within the allowed gap with a probability below 2 percent, to the power of four.
    """
    label = np.full(len(position), -1, np.int64)
    if len(position) < LINE_MIN_PEAKS:
        return label
    angle = np.pi * np.arange(LINE_ANGLES) / LINE_ANGLES
    direction = np.column_stack([np.cos(angle), np.sin(angle)])
    across = position @ np.column_stack([-direction[:, 1], direction[:, 0]]).T
    for a, members in _rich_cells(across, positive, fwhm):
        for row in _runs(members[label[members] < 0], position, direction[a], fwhm):
            label[_extended(row, position, (label < 0) & (positive == positive[row[0]]), fwhm)] = label.max() + 1
    return label


def _rich_cells(across: NDArray[Any], positive: NDArray[Any], fwhm: float) -> list[tuple[int, NDArray[Any]]]:
    """Cells (angle, peaks) of the Hough plane that hold enough peaks, fullest first."""
    found = []
    for half in (0.0, 0.5):  # two bin phases, so that no row is cut by a bin edge
        cell = 2 * np.floor(across / (2 * fwhm) + half).astype(np.int64) + positive[:, None]
        for a in range(LINE_ANGLES):
            values, counts = np.unique(cell[:, a], return_counts=True)
            found += [(a, np.flatnonzero(cell[:, a] == v)) for v in values[counts >= LINE_MIN_PEAKS]]
    return sorted(found, key=lambda item: -item[1].size)


def _extended(row: NDArray[Any], position: NDArray[Any], free: NDArray[Any], fwhm: float) -> NDArray[Any]:
    """Refit the line through a row and take in what continues it, until nothing is added."""
    for _ in range(10):
        center = position[row].mean(axis=0)
        along = np.linalg.svd(position[row] - center, full_matrices=False)[2][0]
        across = (position - center) @ np.array([-along[1], along[0]])
        runs = _runs(np.flatnonzero(free & (np.abs(across) < fwhm)), position, along, fwhm)
        longer = max(runs, key=len, default=row)
        if longer.size <= row.size:
            break
        row = longer
    return row


def _runs(members: NDArray[Any], position: NDArray[Any], direction: NDArray[Any], fwhm: float) -> list[NDArray[Any]]:
    """Parts of a row without large gaps that are long and rich enough."""
    along = position[members] @ direction
    order = np.argsort(along, kind="stable")
    cuts = np.flatnonzero(np.diff(along[order]) > LINE_MAX_GAP_FWHM * fwhm) + 1
    return [
        members[part]
        for part in np.split(order, cuts)
        if part.size >= LINE_MIN_PEAKS and np.ptp(along[part]) > LINE_MIN_LENGTH_FWHM * fwhm
    ]
