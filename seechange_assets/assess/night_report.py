"""The report of a night: one HTML page that needs nothing else, with pictures, made of what the tables say."""

import html
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import dagster as dg

from seechange_assets import partitions
from seechange_assets.assess.charts import Band, bars, focal_plane, over_time
from seechange_assets.nights import CcdNumbers, ExposureState, NightNumbers

N_SLOW = 15
#: Missing CCDs that are listed one by one; the rest is counted by reason.
N_MISSING = 2000

_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .5rem;border-bottom:1px solid #8886}
.tiles,.charts{display:flex;flex-wrap:wrap;gap:12px}
.tiles div{border:1px solid #8886;border-radius:6px;padding:6px 14px}
.tiles b{display:block;font-size:1.35rem}figure{margin:0}figcaption{font-size:.85rem;font-weight:600}
table{border-collapse:collapse;font-size:.85rem}th,td{text-align:left;padding:2px 12px 2px 0;vertical-align:top}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}tr.failed td{color:#c53030}
"""


class Nights(Protocol):
    """Knows the numbers of a night."""

    def numbers(self, night: str) -> NightNumbers:
        """Everything of one night; raises ProductNotFound."""


@dg.asset(partitions_def=partitions.night, group_name="assess")
def night_report(
    context: dg.AssetExecutionContext, nights: dg.ResourceParam[Nights], settings: dg.ResourceParam[Any]
) -> dg.MaterializeResult:
    """Report of a night: steps, seeing, depth, scatter, detections, alerts, and why a CCD is missing."""
    numbers = nights.numbers(context.partition_key)
    page = render(numbers)
    reports = Path(settings.home) / "reports"
    path = write(page, reports / numbers.instrument / f"{numbers.night}.html")
    address = f"{settings.reports_url}/{path.relative_to(reports)}" if settings.reports_url else path.as_uri()
    told = {name: value for name, value in headline(numbers).items() if value is not None}
    return dg.MaterializeResult(metadata={"page": dg.MetadataValue.url(address), **told})


def write(page: str, path: Path) -> Path:
    """Write the page whole or not at all; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def headline(numbers: NightNumbers) -> dict[str, float | int | None]:
    """The numbers a person asks for first."""
    states = Counter(ccd.state.state for ccd in numbers.ccds)
    return {
        "exposures": len(numbers.exposures),
        "CCDs": len(numbers.ccds),
        "CCDs done": states["done"],
        "CCDs failed": states["failed"],
        "CCDs waiting": states["waiting"],
        "seeing [px]": _middle(ccd.fwhm_px for ccd in numbers.ccds),
        "limiting magnitude": _middle(ccd.limiting_magnitude for ccd in numbers.ccds),
        "detections": sum(ccd.n_detections or 0 for ccd in numbers.ccds),
        "alerts": sum(ccd.n_alerts or 0 for ccd in numbers.ccds),
    }


def render(numbers: NightNumbers) -> str:
    """The page as one HTML document without any reference to other files."""
    title = html.escape(f"{numbers.instrument}, night of {numbers.night}")
    tiles = "".join(f"<div><b>{_text(value)}</b>{html.escape(name)}</div>" for name, value in headline(numbers).items())
    body = [
        f'<h1>{title}</h1><p></p><div class="tiles">{tiles}</div>',
        _section("Steps", _steps(numbers)),
        _section("Over the night", f'<div class="charts">{_curves(numbers)}</div>'),
        _section("Over the focal plane (north up, east left)", f'<div class="charts">{_maps(numbers)}</div>'),
        _section("Missing CCDs", _missing(numbers.exposures)),
        _section("Slow CCDs", _slow(numbers.ccds)),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


#: Title, axis, value of a CCD.
_CURVES: tuple[tuple[str, str, Callable[[CcdNumbers], float | None]], ...] = (
    ("Seeing", "FWHM [px]", lambda ccd: ccd.fwhm_px),
    ("Depth", "limiting magnitude", lambda ccd: ccd.limiting_magnitude),
    ("Astrometric scatter", "residual [mas]", lambda ccd: ccd.residual_mas),
    ("Scatter about the zero point", "scatter [mag]", lambda ccd: ccd.scatter_mag),
    ("Detections", "detections per CCD", lambda ccd: ccd.n_detections),
    ("Alerts", "alerts per CCD", lambda ccd: ccd.n_alerts),
)


def _steps(numbers: NightNumbers) -> str:
    chart = bars([(s["step"], s["computed"], s["waiting"] + s["failed"]) for s in numbers.steps], label="Steps")
    rows = [
        (s["step"], s["computed"], s["waiting"], s["failed"], _text(s["median_s"]), _text(s["longest_s"]))
        for s in numbers.steps
    ]
    names = ("step", "computed", "waiting", "failed", "median [s]", "longest [s]")
    return f'<div class="charts"><figure>{chart}</figure>{_table(names, rows)}</div>'


def _curves(numbers: NightNumbers) -> str:
    hours = "hours after the first exposure"
    figures = [
        _figure(title, over_time(_bands(numbers, value), x_label=hours, y_label=label))
        for title, label, value in _CURVES
    ]
    offsets = _bands(numbers, _zero_point_offset(numbers.ccds))
    figures.append(_figure("Transparency", over_time(offsets, x_label=hours, y_label="zero point - median [mag]")))
    return "".join(figures)


def _zero_point_offset(ccds: Iterable[CcdNumbers]) -> Callable[[CcdNumbers], float | None]:
    """The zero point about that CCD's median of the night: clouds, whatever filter and gain a CCD has."""
    by_ccd: dict[tuple[str, str | None], list[float]] = defaultdict(list)
    for ccd in ccds:
        if _is_number(ccd.zero_point):
            by_ccd[ccd.state.ccd, ccd.filter].append(float(ccd.zero_point or 0.0))
    middles = {key: median(values) for key, values in by_ccd.items()}

    def offset(ccd: CcdNumbers) -> float | None:
        return None if ccd.zero_point is None else ccd.zero_point - middles.get((ccd.state.ccd, ccd.filter), math.nan)

    return offset


def _bands(numbers: NightNumbers, value: Callable[[CcdNumbers], float | None]) -> list[Band]:
    by_time: dict[float, list[float]] = defaultdict(list)
    for ccd in numbers.ccds:
        if _is_number(found := value(ccd)):
            by_time[ccd.mjd].append(float(found or 0.0))
    first = min((exposure.mjd for exposure in numbers.exposures), default=0.0)
    return [Band.of(24 * (mjd - first), values) for mjd, values in sorted(by_time.items())]


def _maps(numbers: NightNumbers) -> str:
    maps = [*((title, value) for title, _, value in _CURVES), ("Seconds of all steps", lambda ccd: ccd.seconds)]
    figures = []
    for title, value in maps:
        by_ccd: dict[str, list[float]] = defaultdict(list)
        for ccd in numbers.ccds:
            if _is_number(found := value(ccd)):
                by_ccd[ccd.state.ccd].append(float(found or 0.0))
        middles = {ccd: median(values) for ccd, values in by_ccd.items()}
        figures.append(_figure(f"{title}: median", focal_plane(middles, numbers.layout, label=title)))
    return "".join(figures)


def _missing(exposures: Sequence[ExposureState]) -> str:
    missing = [(one, ccd) for one in exposures for ccd in one.ccds if ccd.state != "done"]
    if not missing:
        return "<p>None: every CCD of every exposure has reached its alerts.</p>"
    reasons = Counter((ccd.state, ccd.step, (ccd.reason or "").split(":")[0]) for _, ccd in missing)
    summary = [(count, *(part or "" for part in reason)) for reason, count in reasons.most_common(20)]
    rows = [(one.exposure, ccd.ccd, ccd.state, ccd.step or "", ccd.reason or "") for one, ccd in missing[:N_MISSING]]
    more = f"<p>and {len(missing) - N_MISSING} more</p>" if len(missing) > N_MISSING else ""
    listed = _table(("exposure", "CCD", "state", "step", "reason"), rows, marks=[row[2] for row in rows])
    return f"{_table(('CCDs', 'state', 'step', 'reason'), summary)}<p></p>{listed}{more}"


def _slow(ccds: Sequence[CcdNumbers]) -> str:
    timed = sorted((ccd for ccd in ccds if ccd.seconds is not None), key=lambda ccd: -(ccd.seconds or 0.0))
    if not timed:
        return "<p>No step was timed.</p>"
    typical = median(ccd.seconds or 0.0 for ccd in timed)
    rows = [(ccd.exposure, ccd.state.ccd, f"{ccd.seconds:.1f}") for ccd in timed[:N_SLOW]]
    return f"<p>Median of all CCDs: {typical:.1f} s.</p>{_table(('exposure', 'CCD', 'all steps [s]'), rows)}"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def _figure(title: str, chart: str) -> str:
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{chart}</figure>"


def _table(names: Sequence[str], rows: Sequence[Sequence[object]], marks: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(
            f"<td{' class=number' if isinstance(cell, (int, float)) else ''}>{html.escape(str(cell))}</td>"
            for cell in row
        )
        mark = f' class="{html.escape(marks[number], quote=True)}"' if marks else ""
        lines.append(f"<tr{mark}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return round(median(known), 3) if known else None


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _text(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
