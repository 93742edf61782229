"""What is true of the transients in a simulated exposure."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seechange_assets.simulation.detector import Detector
from seechange_assets.simulation.plan import Exposure, Simulator
from seechange_assets.simulation.render import MoffatField
from seechange_assets.simulation.scene import Scene, expected_snr
from seechange_assets.simulation.sky import Sky

if TYPE_CHECKING:
    from astropy.table import Table


def truth_table(rows: list[dict[str, Any]]) -> "Table":
    """The truth as a table; its columns are described in the metadata."""
    from astropy.table import Table

    columns = {
        "exposure": "U80", "ccd": "U8", "id": "U32", "kind": "U10", "ra": "f8", "dec": "f8", "x": "f8", "y": "f8",
        "mag": "f8", "flux": "f8", "snr": "f8", "clean": "?",
    }  # fmt: skip
    table = Table({name: np.array([row[name] for row in rows], dtype=kind) for name, kind in columns.items()})
    table.meta["description"] = (
        "flux [ADU] that the new image has and the references lack (negative: a variable below its mean); mag of its"
        " absolute value [AB]; snr of an optimal PSF fit on the difference; clean: no bad"
        " column, saturated star, edge or other transient near"
    )
    return table


def note_truth(
    simulator: Simulator,
    exposure: Exposure,
    key: str,
    ccd: str,
    sky: Sky,
    scene: Scene,
    psf: MoffatField,
    detector: Detector,
) -> None:
    """One row per transient on the CCD."""
    camera, transients = simulator.instrument, sky.transients
    gain = float(np.mean(camera.gains))
    zero_point = exposure.conditions.zero_point_e(camera.default_filter(ccd))
    snr = expected_snr(
        scene,
        psf,
        detector.flat,
        read_noise_e=float(np.mean(camera.read_noises)),
        n_reference=simulator.reference_epochs,
    )
    ra, dec = transients.ra.copy(), transients.dec.copy()
    stars = transients.star >= 0
    moved_ra, moved_dec = sky.stars.position(exposure.conditions.epoch_yr)
    ra[stars], dec[stars] = moved_ra[transients.star[stars]], moved_dec[transients.star[stars]]
    clean = _is_clean(scene.x, scene.y, detector, scene.electrons) & _is_alone(scene.x, scene.y)
    for i in np.flatnonzero(snr > 0):
        simulator.rows.append(
            {
                "exposure": key, "ccd": ccd, "id": transients.name[i], "kind": transients.kind[i], "ra": ra[i],
                "dec": dec[i], "x": scene.x[i], "y": scene.y[i],
                "mag": zero_point - 2.5 * np.log10(abs(scene.flux_e[i])),
                "flux": scene.flux_e[i] / gain, "snr": snr[i], "clean": clean[i],
            }
        )  # fmt: skip


def _is_clean(x: NDArray, y: NDArray, detector: Detector, electrons: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether nothing spoils a 13 pixel box: no bad column, no saturated pixel, no edge."""
    r, (ny, nx) = 6, electrons.shape
    limit = 0.9 * detector.amplifiers[0].saturation * min(amp.gain for amp in detector.amplifiers)
    clean = np.zeros(len(x), bool)
    for i, (ix, iy) in enumerate(zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True)):
        if r <= ix < nx - r and r <= iy < ny - r:
            box = slice(iy - r, iy + r + 1), slice(ix - r, ix + r + 1)
            # Charge bleeds along columns, so a saturated star far up or down the column counts too.
            column = electrons[max(0, iy - 60) : iy + 61, ix - 2 : ix + 3]
            clean[i] = not detector.bad[box].any() and electrons[box].max() < limit and column.max() < limit
    return clean


def _is_alone(x: NDArray, y: NDArray, distance_px: float = 10.0) -> NDArray[np.bool_]:
    """Whether no other transient is near."""
    separation = np.hypot(x[:, None] - x[None, :], y[:, None] - y[None, :])
    np.fill_diagonal(separation, np.inf)
    return separation.min(axis=1, initial=np.inf) > distance_px
