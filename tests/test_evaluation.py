"""Dice by hand, pairing by name, and references on another grid."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from napari_seg.cli import main
from napari_seg.errors import InputError
from napari_seg.evaluation.metrics import dice, dice_per_label
from napari_seg.evaluation.pairs import find_pairs, mean_dice, read_label_map
from napari_seg.formats.nifti import write_nifti
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Segment, Segmentation

GRID = Grid((6, 5, 4), np.diag([1.0, 2.0, 3.0, 1.0]))


def label_map(fill: dict[int, slice], grid: Grid = GRID) -> Segmentation:
    array = np.zeros(GRID.shape, np.uint8)
    for label, rows in fill.items():
        array[rows] = label
    return Segmentation(resample(array, GRID, grid, order=0), grid, (Segment(1, "one", (1, 1, 1)),))


def test_dice_by_hand_and_of_nothing() -> None:
    a, b = np.zeros((3, 4), bool), np.zeros((3, 4), bool)
    assert math.isnan(dice(a, b))
    a[0, :3] = True
    assert dice(a, b) == 0
    b[0, 1:] = True
    assert dice(a, b) == pytest.approx(2 * 2 / 6)


def test_a_reference_in_another_storage_order_is_turned() -> None:
    prediction = label_map({1: slice(0, 2), 2: slice(4, 5)})
    reference = label_map({1: slice(0, 3)}, GRID.reoriented("SPL"))
    scores = dice_per_label(prediction, reference)
    assert scores == {1: pytest.approx(2 * 2 / 5), 2: 0.0}


def test_a_reference_on_another_grid_is_refused() -> None:
    moved = Segmentation(np.zeros(GRID.shape, np.uint8), GRID.box((1, 0, 0), (7, 5, 4)), ())
    with pytest.raises(InputError, match=r"geometry\.mismatch"):
        dice_per_label(label_map({1: slice(0, 2)}), moved)


def write(segmentation: Segmentation, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(segmentation, path)
    return path


def test_folders_are_paired_by_name_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found, expected = tmp_path / "found", tmp_path / "expected"
    write(label_map({1: slice(0, 2)}), found / "a_seg.nii.gz")
    write(label_map({1: slice(0, 2)}), expected / "a.nii.gz")
    write(label_map({1: slice(0, 4)}), found / "b.nii.gz")
    write(label_map({1: slice(0, 2)}), expected / "b.nii.gz")
    write(label_map({}), found / "lonely.nii.gz")
    write(label_map({}), expected / "missed.nii.gz")
    pairs, lonely = find_pairs(found, expected)
    assert [name for name, _, _ in pairs] == ["a", "b"]
    assert [(result.name, result.code) for result in lonely] == [
        ("lonely", "input.unpaired"),
        ("missed", "input.unpaired"),
    ]
    assert main(["evaluate", str(found), str(expected)]) == 3
    (found / "lonely.nii.gz").rename(tmp_path / "lonely.nii.gz")
    (expected / "missed.nii.gz").unlink()
    assert main(["evaluate", str(found), str(expected)]) == 0
    assert "0.8333" in capsys.readouterr().out  # mean of 1 and 2 * 2 / 6
    (expected / "b.nii.gz").write_text("no longer an image")
    assert main(["evaluate", str(found), str(expected)]) == 3
    output = capsys.readouterr().out
    assert "file.not_nifti" in output
    assert "1.0000" in output
    assert main(["evaluate", str(tmp_path / "lonely.nii.gz"), str(expected)]) == 2
    assert main(["evaluate", str(tmp_path / "nowhere"), str(expected)]) == 2


def test_mean_leaves_out_what_nobody_holds() -> None:
    from napari_seg.evaluation.pairs import PairResult

    results = [PairResult("a", {"x": 0.5, "y": math.nan}), PairResult("b", {"x": 1.0, "y": 0.2})]
    assert mean_dice(results) == {"x": 0.75, "y": 0.2, "mean": pytest.approx(0.475)}


def test_an_image_is_no_label_map(tmp_path: Path) -> None:
    import nibabel

    array = np.linspace(0, 1, 60).reshape(5, 4, 3).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "image.nii.gz")
    with pytest.raises(InputError, match=r"labels\.type"):
        read_label_map(tmp_path / "image.nii.gz")
