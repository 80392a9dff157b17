"""Plots as SVG text: lines, bars and points on two axes, with a legend; no library, no script."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Distinct for colour-blind eyes too (Okabe and Ito), then again with dashes.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_DASHES = ("", "6 3", "2 2")
_WIDTH, _HEIGHT = 520, 330
_LEFT, _TOP, _BOTTOM = 58, 34, 46
_LINE = 17  # of the legend


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points (x, y) of one name, joined."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def lines(title: str, x_label: str, y_label: str, drawn: Sequence[Line], *, zero: bool = False) -> str:
    """Return a plot of lines; zero: the y axis starts at 0. Points that are not finite are left out."""
    drawn = [line for line in map(_finite, drawn) if len(line.x)]
    points = [(x, y) for line in drawn for x, y in zip(line.x, line.y, strict=True)]
    frame = _Frame(title, x_label, y_label, [line.name for line in drawn])
    frame.x_axis([x for x, _ in points])
    frame.y_axis([y for _, y in points] + ([0.0] if zero else []))
    for number, line in enumerate(drawn):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(line.x, line.y, strict=True))
        frame.add(f'<polyline points="{path}" fill="none" stroke-width="2" {_stroke(number)}/>')
        for x, y in zip(line.x, line.y, strict=True) if len(line.x) <= 12 else ():
            frame.add(f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5" fill="{_colour(number)}"/>')
    return frame.text()


def points(title: str, x_label: str, y_label: str, drawn: Sequence[Line]) -> str:
    """Return a plot of points, a colour for each name. Points that are not finite are left out."""
    drawn = [_finite(line) for line in drawn]
    frame = _Frame(title, x_label, y_label, [line.name for line in drawn])
    frame.x_axis([x for line in drawn for x in line.x])
    frame.y_axis([y for line in drawn for y in line.y])
    for number, line in enumerate(drawn):
        for x, y in zip(line.x, line.y, strict=True):
            where = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}"'
            frame.add(f'<circle {where} r="5" fill="{_colour(number)}" fill-opacity=".8"/>')
    return frame.text()


def bars(
    title: str,
    y_label: str,
    groups: Sequence[str],
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    spreads: Sequence[Sequence[float]] | None = None,
    *,
    zero: bool = True,
) -> str:
    """Return grouped bars.

    Args:
        title, y_label: of the plot.
        groups: under the x axis.
        names: of the bars of a group, in the legend.
        values, spreads: of every name, one a group; spreads are drawn as lines up and down. What is not finite is 0.
        zero: whether bars start at 0 rather than a little below the lowest.
    """
    frame = _Frame(title, "", y_label, names)
    values = _finite_rows(values)
    spread = _finite_rows(spreads or [[0.0] * len(groups) for _ in names])
    ends = [v + s for row, by in zip(values, spread, strict=True) for v, s in zip(row, by, strict=True)]
    low = [v - s for row, by in zip(values, spread, strict=True) for v, s in zip(row, by, strict=True)]
    frame.y_axis([*ends, *low, *([0.0] if zero else [])], room=not zero)
    slot = frame.width / max(1, len(groups))
    size = 0.8 * slot / max(1, len(names))
    for place, group in enumerate(groups):
        frame.add(_text(_LEFT + (place + 0.5) * slot, _TOP + frame.height + 16, group))
        for number in range(len(names)):
            value, by = values[number][place], spread[number][place]
            left = _LEFT + place * slot + 0.1 * slot + number * size
            frame.bar(left, size, frame.low, value, number)
            if by:
                x = left + size / 2
                ends_at = f'y1="{frame.y(value - by):.1f}" y2="{frame.y(value + by):.1f}"'
                frame.add(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends_at} stroke="#222"/>')
    return frame.text()


def stacks(
    title: str, y_label: str, groups: Sequence[str], names: Sequence[str], values: Sequence[Sequence[float]]
) -> str:
    """Return bars made of parts: a bar for each group, a part for each name; values of every name, one a group.

    What is not finite is 0.
    """
    values = _finite_rows(values)
    frame = _Frame(title, "", y_label, names, slanted=True)
    frame.y_axis([0.0, *(sum(parts) for parts in zip(*values, strict=True))])
    slot = frame.width / max(1, len(groups))
    for place, group in enumerate(groups):
        x, y = _LEFT + (place + 0.5) * slot, _TOP + frame.height + 14
        frame.add(_text(x + 4, y, group, "end", f' transform="rotate(-25 {x + 4:.1f} {y:.1f})"'))
        bottom = 0.0
        for number, row in enumerate(values):
            frame.bar(_LEFT + (place + 0.2) * slot, 0.6 * slot, bottom, bottom + row[place], number)
            bottom += row[place]
    return frame.text()


def _finite(line: Line) -> Line:
    pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Line(name=line.name, x=[x for x, _ in pairs], y=[y for _, y in pairs])


def _finite_rows(values: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[value if math.isfinite(value) else 0.0 for value in row] for row in values]


class _Frame:
    """Axes, title and legend; what is added lies between them."""

    def __init__(self, title: str, x_label: str, y_label: str, names: Sequence[str], *, slanted: bool = False) -> None:
        self._parts: list[str] = []
        self._legend = 36 + 7.4 * max(map(len, names), default=0)
        self.width, below = _WIDTH - _LEFT - 12, _BOTTOM + (44 if slanted else 0)
        self.height = max(_HEIGHT, _TOP + below + _LINE * len(names)) - _TOP - below
        self._total = _TOP + self.height + below
        self.low, self._high, self._first, self._last = 0.0, 1.0, 0.0, 1.0
        self.add(_text(_LEFT, 20, title, "start", ' font-weight="600" font-size="14"'))
        self.add(_text(_LEFT + self.width / 2, self._total - 8, x_label))
        middle = _TOP + self.height / 2
        self.add(_text(14, middle, y_label, "middle", f' transform="rotate(-90 14 {middle:.1f})"'))
        for number, name in enumerate(names):
            y, x = _TOP + 8 + _LINE * number, _WIDTH + 6
            self.add(f'<line x1="{x}" x2="{x + 18}" y1="{y}" y2="{y}" stroke-width="4" {_stroke(number)}/>')
            self.add(_text(x + 24, y + 4, name, "start"))

    def x_axis(self, values: Sequence[float]) -> None:
        """Scale and numbers of the x axis."""
        ticks = _ticks(values)
        self._first, self._last = ticks[0], ticks[-1]
        for tick in ticks:
            x = self.x(tick)
            self.add(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP + self.height}" y2="{_TOP + self.height + 4}" {_GREY}/>'
            )
            self.add(_text(x, _TOP + self.height + 16, _number(tick)))

    def y_axis(self, values: Sequence[float], *, room: bool = False) -> None:
        """Scale, numbers and lines of the y axis; room: leave some below the lowest value."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        ticks = _ticks([max(0.0, low - (high - low) / 4) if room and low > 0 else low, high])
        self.low, self._high = ticks[0], ticks[-1]
        for tick in ticks:
            y = self.y(tick)
            self.add(f'<line x1="{_LEFT}" x2="{_LEFT + self.width}" y1="{y:.1f}" y2="{y:.1f}" {_GREY}/>')
            self.add(_text(_LEFT - 6, y + 4, _number(tick), "end"))

    def x(self, value: float) -> float:
        return _LEFT + self.width * (value - self._first) / (self._last - self._first)

    def y(self, value: float) -> float:
        return _TOP + self.height * (1 - (value - self.low) / (self._high - self.low))

    def bar(self, left: float, size: float, bottom: float, top: float, number: int) -> None:
        """A bar between two values."""
        height = max(0.0, self.y(bottom) - self.y(top))
        where = f'x="{left:.1f}" y="{self.y(top):.1f}" width="{size:.1f}" height="{height:.1f}"'
        self.add(f'<rect {where} fill="{_colour(number)}" stroke="#fff" stroke-width=".5"/>')

    def add(self, element: str) -> None:
        self._parts.append(element)

    def text(self) -> str:
        """The whole picture."""
        width = math.ceil(_WIDTH + self._legend)
        box = f'viewBox="0 0 {width} {self._total:.0f}" width="{width}" height="{self._total:.0f}"'
        style = 'font-family="system-ui, sans-serif" font-size="12" fill="#222"'
        inside = "\n".join([f'<rect width="{width}" height="{self._total:.0f}" fill="#fff"/>', *self._parts])
        return f'<svg xmlns="http://www.w3.org/2000/svg" {box} {style}>\n{inside}\n</svg>\n'


_GREY = 'stroke="#ccc"'


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{html.escape(text)}</text>'


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _stroke(number: int) -> str:
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return f'stroke="{_colour(number)}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, about five, from below the lowest value to above the highest."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-9 * max(1e-12, abs(high)):
        low, high = (low - 0.5, high + 0.5) if not low else (low - abs(low) / 2, high + abs(high) / 2)
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
