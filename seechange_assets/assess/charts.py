"""Small charts as SVG text: no library, no script, a few kilobytes each, sharp at any size."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 34
_CELL = (58, 44)
_BLUE, _RED, _GREY = "#2b6cb0", "#c53030", "#718096"
#: Colours of a map, low to high (Crameri's batlow, five anchors).
_ANCHORS = ((1, 25, 89), (35, 103, 97), (130, 130, 49), (242, 157, 107), (250, 204, 250))


@dataclass(frozen=True, slots=True)
class Band:
    """The values of one exposure: median, and the range of the middle 68 %."""

    x: float
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, x: float, values: Sequence[float]) -> "Band":
        """Of all values of an exposure."""
        low, median, high = np.percentile(values, [16, 50, 84])
        return cls(x, float(median), float(low), float(high))


def over_time(bands: Sequence[Band], *, x_label: str, y_label: str) -> str:
    """Median and spread of every exposure against time."""
    if not bands:
        return _nothing(y_label)
    x = _Axis.covering([b.x for b in bands], _LEFT, WIDTH - _RIGHT)
    y = _Axis.covering([v for b in bands for v in (b.low, b.high)], HEIGHT - _BOTTOM, _TOP)
    parts = _frame(x, y, x_label, y_label)
    for band in bands:
        at = f"{x.at(band.x):.1f}"
        parts.append(f'<path d="M{at} {y.at(band.low):.1f}V{y.at(band.high):.1f}" stroke="{_GREY}" opacity=".6"/>')
        parts.append(f'<circle cx="{at}" cy="{y.at(band.median):.1f}" r="2.5" fill="{_BLUE}"/>')
    return _svg(WIDTH, HEIGHT, parts, y_label)


def focal_plane(values: Mapping[str, float], layout: Mapping[str, tuple[int, int]], *, label: str) -> str:
    """A value of each CCD where the CCD is, north up and east left; one without a value is grey."""
    n_rows = 1 + max((row for row, _ in layout.values()), default=0)
    n_columns = 1 + max((column for _, column in layout.values()), default=0)
    known = [value for value in values.values() if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    parts = []
    for ccd, (row, column) in layout.items():
        value = values.get(ccd, math.nan)
        x, y = column * _CELL[0], row * _CELL[1]
        share = (value - low) / (high - low) if high > low else 0.5
        colour, ink = ("#e2e8f0", "#4a5568") if math.isnan(value) else _colour(share)
        text = "" if math.isnan(value) else _number(value)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_CELL[0] - 2}" height="{_CELL[1] - 2}" fill="{colour}"/>'
            f'<text x="{x + 4}" y="{y + 12}" font-size="9" fill="{ink}">{html.escape(ccd)}</text>'
            f'<text x="{x + 27}" y="{y + 30}" font-size="12" text-anchor="middle" fill="{ink}">{text}</text>'
        )
    return _svg(n_columns * _CELL[0], n_rows * _CELL[1], parts, label)


def bars(rows: Sequence[tuple[str, int, int]], *, label: str) -> str:
    """A horizontal bar for each (name, good, bad): what was made and, in red, what was not."""
    if not rows:
        return _nothing(label)
    height, most = 18 * len(rows) + 4, max(good + bad for _, good, bad in rows) or 1
    parts = []
    for number, (name, good, bad) in enumerate(rows):
        y, wide = 18 * number + 3, (WIDTH - 230) / most
        parts.append(
            f'<text x="124" y="{y + 11}" font-size="11" text-anchor="end" fill="currentColor">'
            f"{html.escape(name)}</text>"
            f'<rect x="130" y="{y}" width="{good * wide:.1f}" height="13" fill="{_BLUE}"/>'
            f'<rect x="{130 + good * wide:.1f}" y="{y}" width="{bad * wide:.1f}" height="13" fill="{_RED}"/>'
            f'<text x="{136 + (good + bad) * wide:.1f}" y="{y + 11}" font-size="11" fill="currentColor">'
            f"{good}{f' and {bad} not' if bad else ''}</text>"
        )
    return _svg(WIDTH, height, parts, label)


@dataclass(frozen=True, slots=True)
class _Axis:
    """A linear scale from values to pixels, with round ticks."""

    low: float
    high: float
    start_px: float
    end_px: float

    @classmethod
    def covering(cls, values: Sequence[float], start_px: float, end_px: float) -> "_Axis":
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or 0.5 * abs(high) * 0.1 or 0.5
        return cls(low - margin, high + margin, start_px, end_px)

    def at(self, value: float) -> float:
        return self.start_px + (value - self.low) / (self.high - self.low) * (self.end_px - self.start_px)

    def ticks(self) -> list[float]:
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first = math.ceil(self.low / step)
        return [step * (first + i) for i in range(int((self.high - first * step) / step) + 1)]


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str) -> list[str]:
    """Grid, numbers and names of the axes."""
    bottom = HEIGHT - _BOTTOM
    style = 'font-size="10" fill="currentColor"'
    parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{WIDTH - _RIGHT}" fill="none" stroke="{_GREY}"/>']
    for tick in y.ticks():
        at = f"{y.at(tick):.1f}"
        parts.append(f'<path d="M{_LEFT} {at}H{WIDTH - _RIGHT}" stroke="{_GREY}" opacity=".2"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{at}" dy="3" text-anchor="end" {style}>{_number(tick)}</text>')
    parts += [
        f'<text x="{x.at(tick):.1f}" y="{bottom + 13}" text-anchor="middle" {style}>{_number(tick)}</text>'
        for tick in x.ticks()
    ]
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="{(_LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle" {style}>{html.escape(x_label)}</text>'
        f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle" {style}>'
        f"{html.escape(y_label)}</text>"
    )
    return parts


def _number(value: float) -> str:
    return f"{value + 0.0:.3g}" if abs(value) < 100 else f"{value:.0f}"  # no minus before a zero


def _colour(share: float) -> tuple[str, str]:
    """(fill, readable ink) at a share of the range."""
    place = min(max(share, 0.0), 1.0) * (len(_ANCHORS) - 1)
    index = min(int(place), len(_ANCHORS) - 2)
    one, other = _ANCHORS[index], _ANCHORS[index + 1]
    red, green, blue = (round(a + (b - a) * (place - index)) for a, b in zip(one, other, strict=True))
    is_dark = 0.3 * red + 0.59 * green + 0.11 * blue < 128
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if is_dark else "#1a202c"


def _nothing(label: str) -> str:
    text = f'<text x="10" y="22" font-size="12" fill="{_GREY}">no data: {html.escape(label)}</text>'
    return _svg(WIDTH, 36, [text], label)


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{html.escape(label, quote=True)}">{"".join(parts)}</svg>'
    )
