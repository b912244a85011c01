"""Proposals of other configurations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_seg.training.advice import advise, lower_resolution
from napari_seg.training.fingerprint import Fingerprint
from napari_seg.training.plan import make_plan

CROPS = Fingerprint(
    cases=100,
    measured=10,
    is_2d=False,
    channels=("T1",),
    modality="MR",
    values=(1, 2),
    shapes=np.array([[35.0, 50, 36]] * 10),
    spacings_mm=np.ones((10, 3)),
    foreground={"low": 0.0, "high": 1.0, "mean": 0.5, "std": 0.2},
)


def proposals(dims: int | None = None, **changes: object) -> list[str]:
    found = replace(CROPS, **changes)
    return advise(make_plan(found, dims=dims), found)


def test_whole_crops_need_no_advice() -> None:
    assert proposals() == []
    assert proposals(is_2d=True, shapes=np.array([[900.0, 700]]), spacings_mm=np.ones((1, 2))) == []


def test_slices() -> None:
    thick = np.array([[0.8, 0.8, 5.0]] * 10)
    (thicker,) = proposals(spacings_mm=thick, shapes=np.array([[60.0, 60, 20]] * 10))
    assert "slices are much thicker than their pixels (5 mm against 0.8 mm): compare with --dims 2" in thicker
    (few,) = proposals(spacings_mm=thick, shapes=np.array([[60.0, 60, 6]] * 10))
    assert "only about 6 slices: compare with --dims 2" in few
    (cubes,) = proposals(dims=2)
    assert "--network MultiView" in cubes
    assert proposals(dims=2, spacings_mm=thick) == []


def test_large_bodies() -> None:
    (large,) = proposals(shapes=np.array([[256.0, 256, 256]] * 10))
    assert "a patch shows 2% of a typical image" in large
    # 1.56 % must become 25 %: 16 times fewer voxels, each edge 2.5 times as long
    spacing = [float(edge) for edge in large.partition("spacing_mm=[")[2].partition("]")[0].split(",")]
    assert spacing == pytest.approx([2.52] * 3, rel=0.02)


def test_fine_axes_become_coarser_first() -> None:
    coarser = lower_resolution(np.array([1.0, 1, 5]), 4)
    assert coarser[2] == 5
    assert coarser[:2] == pytest.approx([2, 2], rel=0.02)
