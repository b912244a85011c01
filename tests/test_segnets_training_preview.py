"""Test the choice and the planes of the worst and best cases."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.training.preview import Plane, WorstBest, case_dice, draw_cases, planes


def label_map(labels: torch.Tensor) -> torch.Tensor:
    return labels[None].byte()


def test_worst_and_best_cases_are_kept_and_nothing_else(tmp_path: Path) -> None:
    """Miss in seven cases n of 16 voxels of class 1: Dice 2 (16 - n) / (32 - n), and 1 for class 2."""
    handler = WorstBest(tmp_path / "run" / "worst_best.png", count=2)
    evaluator = Engine(lambda e, b: None)
    evaluator.state.epoch = 1
    evaluator.state.best_metric_epoch = 1
    for n in (3, 0, 6, 2, 5, 1, 4):
        reference = torch.zeros(6, 8, 10)
        reference[1:3, 2:4, 3:7], reference[4:6, 5, 5] = 1, 2
        prediction = reference.clone()
        missed = (reference == 1).nonzero()[:n]
        prediction[tuple(missed.T)] = 0
        output = {"image": reference[None], "label": label_map(reference), "pred": label_map(prediction)}
        expected = (2 * (16 - n) / (32 - n) + 1) / 2
        assert case_dice(output["pred"], output["label"]) == pytest.approx(expected)
        evaluator.state.batch, evaluator.state.output = [{"name": f"missed_{n}"}], [output]
        handler._batch_completed(evaluator)
    assert [name for _, name, _ in handler._cases] == ["missed_6", "missed_5", "missed_1", "missed_0"]
    handler._completed(evaluator)
    with Image.open(tmp_path / "run" / "worst_best.png") as drawn:
        assert drawn.size == (900, 1280)
    (tmp_path / "run" / "worst_best.png").unlink()
    evaluator.state.epoch = 2  # no better than before: the file stays with the saved weights
    handler._completed(evaluator)
    assert not (tmp_path / "run" / "worst_best.png").exists()


@pytest.mark.parametrize("name", ["a$b{c$", "\\frac$x$", "caf\udce9"])
def test_any_name_of_a_file_can_be_drawn(name: str, tmp_path: Path) -> None:
    blank = Plane(np.zeros((8, 8)), np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8), 1.0)
    draw_cases([(0.5, name, [blank])], tmp_path / "cases.png")
    assert (tmp_path / "cases.png").is_file()


def test_dice_of_a_case_without_reference() -> None:
    empty, something = label_map(torch.zeros(4, 4)), label_map(torch.eye(4))
    assert case_dice(empty, empty) == 1
    assert case_dice(something, empty) == 0
    assert case_dice(empty, something) == 0


def test_of_overlapping_regions_the_last_is_drawn() -> None:
    label = torch.zeros(2, 5, 7, dtype=torch.bool)
    label[0, 1:4, 2:5], label[1, 2, 3:6] = True, True
    (plane,) = planes(torch.rand(1, 5, 7), label, label)
    assert plane.reference[2].tolist() == [0, 0, 1, 2, 2, 2, 0]
    assert case_dice(label, label) == 1


def test_planes_lie_at_the_largest_difference_and_have_its_spacing() -> None:
    """Index axes towards P, L, S with 2, 1 and 3 mm; the prediction misses what lies at (5, 3, 8)."""
    affine = torch.tensor([[0.0, -1, 0, 0], [-2, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    reference = torch.zeros(12, 9, 14)
    reference[4:7, 2:5, 4:9] = 1
    prediction = reference.clone()
    prediction[5, 3, 8] = 0
    image = torch.arange(reference.numel()).reshape(1, *reference.shape).float()
    sagittal, coronal, axial = planes(
        MetaTensor(image, affine=affine), MetaTensor(label_map(reference), affine=affine), label_map(prediction)
    )
    for plane in (sagittal, coronal, axial):
        assert (plane.reference != plane.prediction).sum() == 1
    # RAS: x is the second index axis turned round, y the first
    assert (sagittal.aspect, coronal.aspect, axial.aspect) == (1.5, 3, 2)
    assert (plane.reference > 0).sum() == 9
    low, high = np.percentile(image, [0.5, 99.5])
    differing = sagittal.image[sagittal.reference != sagittal.prediction]
    assert differing == pytest.approx([(float(image[0, 5, 3, 8]) - low) / (high - low)], abs=1e-4)


def test_an_image_on_another_grid_is_resampled() -> None:
    reference = torch.zeros(8, 8, 8)
    reference[2:6, 2:6, 2:6] = 1
    label = MetaTensor(label_map(reference), affine=torch.eye(4))
    coarse = MetaTensor(reference[::2, ::2, ::2][None].clone(), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    for plane in planes(coarse, label, label_map(reference)):
        assert plane.image.shape == plane.reference.shape
        assert plane.image[3, 3] == 1
        assert plane.image[0, 0] == 0


def test_a_colour_2d_image_has_one_plane() -> None:
    label = torch.zeros(5, 7)
    label[1:3, 2:6] = 2
    (plane,) = planes(torch.rand(3, 5, 7), label_map(label), label_map(label))
    assert plane.image.shape == (5, 7, 3)
    assert plane.aspect == 1
    assert (plane.reference == label.numpy()).all()
