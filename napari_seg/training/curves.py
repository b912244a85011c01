"""Learning curves of runs as SVG, for the report and for the plugin; needs no matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from napari_seg.evaluation.html import ticks
from napari_seg.training.history import RunState

Points = list[tuple[float, float]]

MAX_STRUCTURES = 8
"""Maximum number of structures that are drawn besides their mean."""

_COLOURS = ("#4c8bf5", "#e8833a", "#35a56c", "#b565d8", "#d9485f", "#17a2a2", "#a8892f", "#8d6e63")
_LARGEST = 1e6
_LEFT, _RIGHT, _TOP, _GAP, _BOTTOM, _LEGEND = 44.0, 10.0, 18.0, 30.0, 34.0, 16.0
_LETTER = 6.4
"""Mean width of a letter in pixels, for the rows of the legend."""


@dataclass(frozen=True)
class Palette:
    """Colours of the drawing, as CSS values.

    Attributes:
        text: text and mean curves.
        faint: scales.
        line: grid lines.
    """

    text: str
    faint: str
    line: str


PAGE = Palette("var(--text)", "var(--faint)", "var(--line)")
"""Colours of an HTML page, which has a light and a dark theme."""


@dataclass(frozen=True)
class _Curve:
    name: str
    points: Points
    colour: str
    width: float = 1.4
    has_dots: bool = False


def draw_curves(
    states: Sequence[RunState], palette: Palette, width: float, height: float, live: Sequence[tuple[float, float]] = ()
) -> str:
    """Return the loss and the validation Dice over the epochs as SVG; "" without anything to draw.

    One run is drawn with the Dice of its structures, several runs with their mean Dice only.

    Args:
        states: runs.
        palette: colours.
        width: in pixels.
        height: in pixels, without the legend below the curves.
        live: (epoch, loss) within the current epoch of the last run.
    """
    losses, dice = _loss_curves(states, palette, live), _dice_curves(states, palette)
    points = [point for curve in (*losses, *dice) for point in curve.points]
    if not points:
        return ""
    last = max(1.0, *(x for x, _ in points))
    scale = _Scale(last, width)
    rows = _legend_rows(dice, width)
    upper = (height - _TOP - _GAP - _BOTTOM) * (0.42 if any(curve.points for curve in dice) else 1.0)
    parts = _panel("training loss", losses, scale, palette, _TOP, upper)
    bottom = _TOP + upper
    if any(curve.points for curve in dice):
        lower = height - _TOP - _GAP - _BOTTOM - upper
        parts += _panel("validation Dice", dice, scale, palette, _TOP + upper + _GAP, lower, top_value=1.0)
        parts += _best(states, scale, palette, _TOP + upper + _GAP, lower, dice)
        bottom = _TOP + upper + _GAP + lower
    parts += _epochs(scale, palette, bottom)
    total = bottom + _BOTTOM
    for row in rows:
        parts += _legend(row, palette, total)
        total += _LEGEND
    box = f"0 0 {width:g} {total:g}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" aria-label="learning curves">'
    return f"{head}{''.join(parts)}</svg>"


@dataclass(frozen=True)
class _Scale:
    """Horizontal scale: epochs to pixels."""

    last: float
    width: float

    def x(self, epoch: float) -> float:
        return round(_LEFT + epoch / self.last * (self.width - _LEFT - _RIGHT), 1)


def _loss_curves(states: Sequence[RunState], palette: Palette, live: Sequence[tuple[float, float]]) -> list[_Curve]:
    curves = []
    for n, state in enumerate(states):
        colour = palette.text if len(states) == 1 else _COLOURS[n % len(_COLOURS)]
        curves.append(_Curve(state.folder.name, _finite(state.losses), colour))
    if curves and live:
        before = curves[-1].points[-1:]
        curves.append(_Curve("", _finite([*before, *live]), palette.faint))
    return curves


def _dice_curves(states: Sequence[RunState], palette: Palette) -> list[_Curve]:
    means = [_finite([(one.epoch, one.mean_dice) for one in state.validations]) for state in states]
    if len(states) != 1:
        names = [state.folder.name.replace("_", " ") for state in states]
        named = enumerate(zip(names, means, strict=True))
        return [_Curve(name, points, _COLOURS[n % len(_COLOURS)], 1.4, True) for n, (name, points) in named]
    validations = states[0].validations
    names = list(dict.fromkeys(name for one in validations for name in one.dice))
    curves = []
    if len(names) > 1:
        for n, name in enumerate(names[:MAX_STRUCTURES]):
            points = _finite([(one.epoch, one.dice.get(name, math.nan)) for one in validations])
            curves.append(_Curve(name, points, _COLOURS[n]))
    return [*curves, _Curve("mean" if len(names) != 1 else names[0], means[0], palette.text, 2.0, True)]


def _finite(points: Sequence[tuple[float, float]]) -> Points:
    return [(x, min(max(y, -_LARGEST), _LARGEST)) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _panel(
    title: str,
    curves: Sequence[_Curve],
    scale: _Scale,
    palette: Palette,
    top: float,
    height: float,
    top_value: float | None = None,
) -> list[str]:
    """Return one diagram; `top_value` is the upper end of its scale, which otherwise follows the values."""
    low, high = _range(curves, top_value)

    def y(value: float) -> float:
        return round(top + height * (1 - (value - low) / (high - low)), 1)

    parts = [_text(_LEFT, top - 6, title, palette.text, "start")]
    for mark in ticks(low, high):
        if low <= mark <= high:
            parts.append(
                f'<line x1="{_LEFT}" x2="{scale.width - _RIGHT}" y1="{y(mark)}" y2="{y(mark)}" '
                f'style="stroke:{palette.line};stroke-width:1"/>'
            )
            parts.append(_text(_LEFT - 5, y(mark) + 4, f"{mark:g}", palette.faint, "end"))
    for curve in curves:
        places = [(scale.x(epoch), y(value)) for epoch, value in curve.points]
        if len(places) > 1:
            path = " ".join(f"{a},{b}" for a, b in places)
            style = f"fill:none;stroke:{curve.colour};stroke-width:{curve.width};stroke-linejoin:round"
            parts.append(f'<polyline points="{path}" style="{style}"/>')
        if curve.has_dots or len(places) == 1:
            parts += [f'<circle cx="{a}" cy="{b}" r="2.2" style="fill:{curve.colour};opacity:1"/>' for a, b in places]
    return parts


def _range(curves: Sequence[_Curve], top_value: float | None) -> tuple[float, float]:
    values = [value for curve in curves for _, value in curve.points] or [0.0, 1.0]
    marks = ticks(min(values), max(*values, min(values) + 0.01, top_value or min(values)))
    return marks[0], marks[-1]


def _best(
    states: Sequence[RunState], scale: _Scale, palette: Palette, top: float, height: float, curves: Sequence[_Curve]
) -> list[str]:
    """Return a ring around the best validation of a single run, with its value."""
    best = states[0].best if len(states) == 1 else None
    if best is None:
        return []
    low, high = _range(curves, 1.0)
    x, y = scale.x(best.epoch), round(top + height * (1 - (best.mean_dice - low) / (high - low)), 1)
    text = _text(
        scale.width - _RIGHT, top - 6, f"best {best.mean_dice:.3f} in epoch {best.epoch:g}", palette.text, "end"
    )
    return [
        f'<circle cx="{x}" cy="{y}" r="6" style="fill:none;stroke:{palette.text};stroke-width:1.6;opacity:1"/>',
        text,
    ]


def _epochs(scale: _Scale, palette: Palette, bottom: float) -> list[str]:
    marks = [mark for mark in ticks(0.0, scale.last) if mark <= scale.last and mark == int(mark)]
    labels = [_text(scale.x(mark), bottom + 16, f"{mark:g}", palette.faint, "middle") for mark in marks]
    return [*labels, _text(scale.width - _RIGHT, bottom + 28, "epoch", palette.faint, "end")]


def _legend_rows(curves: Sequence[_Curve], width: float) -> list[list[_Curve]]:
    """Return the curves in rows that fit into the width; nothing for a single curve."""
    rows: list[list[_Curve]] = [[]]
    room = width - _LEFT
    for curve in curves if len(curves) > 1 else ():
        if rows[-1] and sum(map(_entry_width, rows[-1])) + _entry_width(curve) > room:
            rows.append([])
        rows[-1].append(curve)
    return [row for row in rows if row]


def _entry_width(curve: _Curve) -> float:
    return 24 + _LETTER * len(_short(curve.name))


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:14]}…{name[-13:]}"


def _legend(row: Sequence[_Curve], palette: Palette, top: float) -> list[str]:
    parts, x = [], _LEFT
    for curve in row:
        parts.append(
            f'<line x1="{x:g}" x2="{x + 12:g}" y1="{top:g}" y2="{top:g}" '
            f'style="stroke:{curve.colour};stroke-width:2.5"/>'
        )
        parts.append(_text(x + 16, top + 4, _short(curve.name), palette.text, "start"))
        x += _entry_width(curve)
    return parts


def _text(x: float, y: float, text: str, colour: str, anchor: str) -> str:
    style = f"fill:{colour};font-size:11px;font-family:sans-serif"
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" style="{style}">{escape(text)}</text>'
