"""Test the learning curves as SVG."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from runs import write_run

from napari_seg.training.curves import PAGE, Palette, draw_curves
from napari_seg.training.history import RunState, Validation, read_state

COLOURS = Palette("#111111", "#222222", "#333333")


def lines_in(svg: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(svg).findall("{*}polyline")


def points_of(line: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]  # type: ignore[misc]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).findall("{*}text")]


def test_one_run_has_its_loss_and_the_dice_of_each_structure(tmp_path: Path) -> None:
    svg = draw_curves([read_state(write_run(tmp_path / "training"))], COLOURS, 400, 300)
    loss, *dice = map(points_of, lines_in(svg))
    assert len(loss) == 10
    assert [len(curve) for curve in dice] == [5, 5, 5]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(loss))  # SVG's y axis points down
    front, back, mean = dice
    assert all(f[1] < m[1] < b[1] for f, m, b in zip(front, mean, back, strict=True))
    assert front[0][0] == loss[1][0]  # epoch 2
    shown = texts(svg)
    assert {"training loss", "validation Dice", "front", "back", "mean", "epoch"} <= set(shown)
    assert any(re.fullmatch(r"best 0\.81[0-9] in epoch 8", text) for text in shown)
    assert all(0 <= x <= 400 for curve in (loss, *dice) for x, _ in curve)
    assert "var(--" not in svg
    assert "var(--text)" in draw_curves([read_state(tmp_path / "training")], PAGE, 400, 300)


def test_several_runs_have_a_curve_each(tmp_path: Path) -> None:
    states = [read_state(write_run(tmp_path / f"fold_{n}")) for n in range(3)]
    svg = draw_curves(states, COLOURS, 400, 300)
    assert len(lines_in(svg)) == 6
    assert {"fold 0", "fold 1", "fold 2"} <= set(texts(svg))


def test_the_first_epoch_is_drawn_from_what_was_read_while_it_runs() -> None:
    state = RunState(Path("training"))
    assert draw_curves([state], COLOURS, 400, 300) == ""
    svg = draw_curves([state], COLOURS, 400, 300, [(0.1, 1.2), (0.4, 0.9)])
    assert len(lines_in(svg)) == 1
    assert "validation Dice" not in texts(svg)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e300, float("inf"), float("nan")])
def test_any_number_can_be_drawn(value: float) -> None:
    state = RunState(
        Path("training"), [(1, value), (2, 0.5)], [Validation(1, 0.0, {"a": value}), Validation(2, 1.0, {})]
    )
    assert ElementTree.fromstring(draw_curves([state], COLOURS, 400, 300)) is not None


def test_names_are_text_and_many_structures_are_not_drawn() -> None:
    dice = {f"<b>{n}&" + "long" * n: 0.5 for n in range(40)}
    svg = draw_curves(
        [RunState(Path("t"), [(1, 1.0)], [Validation(1, 0.5, dice), Validation(2, 0.6, dice)])], COLOURS, 300, 300
    )
    assert "<b>0&" in texts(svg)
    assert len(lines_in(svg)) == 9
