"""Charts as inline SVG, coloured by the page's style sheet, without a plotting library or scripts."""

import math
from collections.abc import Sequence

from markupsafe import Markup

Point = tuple[float, float]

_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 26
_MOST_POINTS = 400
_LOG_SPAN = 30.0  # a curve that falls by more than this factor gets a logarithmic axis


def line_chart(points: Sequence[Point], *, label: str, x_label: str = "step") -> Markup:
    """Draw one curve. Non-finite values are left out. Positive values over a large range get a logarithmic axis.

    Args: points: (x, y), x ascending. label: name of y, for screen readers.
    Returns: an ``svg`` element, or a sentence if there are no finite values.
    """
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return Markup('<p class="none">no finite values</p>')
    shown = _thinned(finite)
    values = [y for _, y in shown]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > _LOG_SPAN
    ticks = _log_ticks(low, high) if logarithmic else _ticks(min(low, 0.0), high)
    bottom, top = (math.log10(ticks[0]), math.log10(ticks[-1])) if logarithmic else (ticks[0], ticks[-1])
    first, last = shown[0][0], shown[-1][0]

    def across(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * ((x - first) / (last - first) if last > first else 0.5)

    def down(y: float) -> float:
        share = ((math.log10(y) if logarithmic else y) - bottom) / (top - bottom)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    grid = Markup("").join(
        Markup(
            '<line class="rule" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        ).format(_LEFT, _WIDTH - _RIGHT, down(tick), down(tick), _LEFT - 6, down(tick) + 4, short_number(tick))
        for tick in ticks
    )
    ends = Markup("").join(
        Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(across(x), _HEIGHT - 8, anchor, text)
        for x, anchor, text in _ends(first, last, x_label)
    )
    if len(shown) == 1:
        curve = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(across(first), down(values[0]))
    else:
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in shown)
        curve = Markup('<polyline class="curve" points="{}"/>').format(path)
    described = (
        f"{label}: {short_number(finite[0][1])} at {x_label} {short_number(finite[0][0])}, "
        f"{short_number(finite[-1][1])} at {x_label} {short_number(finite[-1][0])}"
        f"{', logarithmic axis' if logarithmic else ''}"
    )
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}</svg>').format(
        _WIDTH, _HEIGHT, described, grid, ends, curve
    )


def short_number(value: float) -> str:
    """Format a number with at most four significant digits, no trailing zeros: ``0.0125``, ``700``, ``2e-05``."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def _ends(first: float, last: float, x_label: str) -> list[tuple[float, str, str]]:
    if last == first:
        return [(first, "middle", f"{x_label} {short_number(first)}")]
    return [(first, "start", f"{x_label} {short_number(first)}"), (last, "end", short_number(last))]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most `_MOST_POINTS` evenly spaced points, and always the last point."""
    step = -(-len(points) // _MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def _ticks(low: float, high: float) -> list[float]:
    """Return round ticks that cover ``low`` to ``high``, spaced by 1, 2 or 5 times a power of ten."""
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 2))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= 4:
            step *= factor
            break
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return at most seven powers of ten that cover the values, including both ends."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = -(-(last - first) // 5)
    exponents = [*range(first, last, step), last]
    return [10.0**exponent for exponent in exponents]
