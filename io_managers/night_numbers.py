"""The numbers of a night for its report: products, reports and states of every CCD."""

from collections import defaultdict
from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from io_managers.nights import exposure_states
from io_managers.store import ProductStore
from seechange_assets.errors import ProductNotFound
from seechange_assets.nights import CcdNumbers, ExposureState, NightNumbers
from sql.base import ProductRow
from sql.models import (
    AlertSetRow,
    DetectionsRow,
    ExposureRow,
    ImageRow,
    PsfRow,
    ReportRow,
    WcsRow,
    ZeroPointRow,
)

#: Table -> {column: name in `CcdNumbers`}.
_COLUMNS: dict[type[ProductRow], dict[str, str]] = {
    ImageRow: {"filter": "filter"},
    PsfRow: {"fwhm_px": "fwhm_px"},
    WcsRow: {"residual_ra_mas": "residual_ra_mas", "residual_dec_mas": "residual_dec_mas"},
    ZeroPointRow: {"zp": "zero_point", "scatter": "scatter_mag", "limiting_magnitude": "limiting_magnitude"},
    DetectionsRow: {"n_detections": "n_detections"},
    AlertSetRow: {"n_alerts": "n_alerts"},
}


class NightBook:
    """Looks up the numbers of a night.

    Parameters
    ----------
    store : the survey under its current recipes.
    ccds : the CCDs of the camera.
    grid : rows and columns of CCDs, counted from the north-east corner westwards, then south; about a square if None.
    """

    def __init__(self, store: ProductStore, ccds: Sequence[str], grid: tuple[int, int] | None = None) -> None:
        self._store, self._ccds, self._grid = store, ccds, grid

    def numbers(self, night: str) -> NightNumbers:
        """Everything of one night. Of products made by several recipes the newest count.

        Raises
        ------
        ProductNotFound
            The night has no science exposures.
        """
        store = self._store
        with store.database.session() as session:
            states = exposure_states(session, store.recipes, store.instrument, night=night)
            if not states:
                raise ProductNotFound(f"night {night!r:.40} has no science exposures; see `seechange exposures`")
            chosen = sa.select(ExposureRow.key).where(
                ExposureRow.night == night, ExposureRow.instrument == store.instrument, ExposureRow.kind == "science"
            )
            values = _values(session, chosen)
            steps = _steps(session, chosen, list(store.recipes))
        states.reverse()
        ccds = tuple(numbers for state in states for numbers in _of_exposure(state, values))
        used = sorted({ccd.state.ccd for ccd in ccds} | set(self._ccds))
        return NightNumbers(night, store.instrument, tuple(states), ccds, steps, _layout(used, self._grid))


def _of_exposure(state: ExposureState, values: dict[tuple[str, str], dict[str, Any]]) -> list[CcdNumbers]:
    found = []
    for ccd in state.ccds:
        own = dict(values.get((state.exposure, ccd.ccd), {}))
        axes = [own.pop(name) for name in ("residual_ra_mas", "residual_dec_mas") if name in own]
        residual_mas = max(axes) if axes else None
        found.append(CcdNumbers(state.exposure, state.mjd, ccd, residual_mas=residual_mas, **own))
    return found


def _values(session: Session, chosen: sa.Select[Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(exposure, CCD) -> the columns of its newest products, and the seconds of its steps."""
    values: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for table, names in _COLUMNS.items():
        columns = [getattr(table, column) for column in names]
        query = (
            sa.select(table.partition, table.ccd, *columns)
            .where(table.partition.in_(chosen))
            .order_by(table.materialized_at)  # of several recipes the newest stays
        )
        for partition, ccd, *found in session.execute(query):
            values[partition, ccd].update(zip(names.values(), found, strict=True))
    report = ReportRow
    times = sa.select(report.partition, report.ccd, sa.func.sum(report.seconds)).where(report.partition.in_(chosen))
    for partition, ccd, seconds in session.execute(times.group_by(report.partition, report.ccd)):
        values[partition, ccd]["seconds"] = seconds
    return values


def _steps(session: Session, chosen: sa.Select[Any], order: list[str]) -> tuple[dict[str, Any], ...]:
    """How each step ended and how long it took, in the order of the pipeline."""
    report, count = ReportRow, sa.func.count()
    seconds = report.seconds
    query = sa.select(
        report.step,
        *(count.filter(report.outcome == outcome).label(outcome) for outcome in ("computed", "waiting", "failed")),
        sa.func.percentile_cont(0.5).within_group(seconds).label("median_s"),
        sa.func.max(seconds).label("longest_s"),
    )
    rows = session.execute(query.where(report.partition.in_(chosen)).group_by(report.step)).mappings()
    found = {row["step"]: dict(row) for row in rows}
    return tuple(found[step] for step in [*order, *sorted(found.keys() - set(order))] if step in found)


def _layout(ccds: Sequence[str], grid: tuple[int, int] | None) -> dict[str, tuple[int, int]]:
    is_known = grid is not None and grid[0] * grid[1] >= len(ccds)
    n_columns = grid[1] if grid is not None and is_known else ceil(sqrt(len(ccds)))
    return {ccd: divmod(number, n_columns) for number, ccd in enumerate(ccds)}
