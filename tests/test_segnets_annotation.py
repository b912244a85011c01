"""Test the numbers in prepared label maps, and the label maps that metrics get from them, by hand."""

from __future__ import annotations

import sys

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ClassesToIndicesd

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.annotation import AsLabelsd, ClassIndicesd, ShiftLabelsd, absent_classes, decide, region_masks
from segnets.metrics import Dice

NESTED = [[1], [1, 2]]


def logits_of(classes: list[int], count: int = 3) -> MetaTensor:
    """Return logits (K, 1, W) with which each class wins."""
    one_hot = torch.nn.functional.one_hot(torch.tensor([classes]), count).movedim(-1, 0)
    return MetaTensor(one_hot * 4.0 - 2, affine=torch.diag(torch.tensor([2.0, 3, 1, 1])))


def label_of(*numbers: int) -> MetaTensor:
    return MetaTensor(torch.tensor([[numbers]]).float(), affine=torch.diag(torch.tensor([2.0, 3, 1, 1])))


def dice(data: dict, classes: int = 2) -> list[float]:
    return Dice(classes)(data["pred"][None], data["label"][None])[0].tolist()


def test_label_maps_have_the_smallest_type_and_their_grid() -> None:
    data = {"pred": logits_of([0, 1, 2, 2]), "label": label_of(0, 1, 1, 2), "name": "x"}
    found = AsLabelsd()(data)
    assert found["pred"].tolist() == [[[0, 1, 2, 2]]]
    assert found["label"].tolist() == [[[0, 1, 1, 2]]]
    assert found["pred"].dtype == found["label"].dtype == torch.uint8
    assert found["label"].pixdim.tolist() == [2, 3]
    assert found["name"] == "x"
    assert decide(torch.zeros(257, 1, 1)).dtype == torch.int16


def test_ignored_voxels_do_not_count() -> None:
    """The errors are in ignored voxels; they would make the Dice 2/3 and 0."""
    data = {"pred": logits_of([1, 1, 0, 2]), "label": label_of(1, -1, 0, -1)}
    found = AsLabelsd()(data)
    assert found["pred"].tolist() == found["label"].tolist() == [[[1, 0, 0, 0]]]
    assert dice(found) == pytest.approx([1, torch.nan], nan_ok=True)


def test_the_largest_component_is_that_of_the_whole_result() -> None:
    """The middle voxel is ignored; without it the larger component would be two pieces, as large as the other one."""
    data = {"pred": logits_of([1, 1, 1, 0, 1, 2, 0, 2, 2]), "label": label_of(1, -1, 1, 0, 0, 0, 0, 2, 2)}
    found = AsLabelsd(compare=True)(data)
    assert found["pred"].tolist() == [[[1, 0, 1, 0, 1, 2, 0, 2, 2]]]
    assert found["pred_largest"].tolist() == [[[1, 0, 1, 0, 0, 0, 0, 2, 2]]]
    kept = AsLabelsd(largest=[2])(data)
    assert kept["pred"].tolist() == [[[1, 0, 1, 0, 1, 0, 0, 2, 2]]]
    assert "pred_largest" not in kept
    regions = {"pred": logits_of([0, 1, 0, 1, 1], count=2), "label": label_of(1, 2, 0, 1, -1)}
    assert AsLabelsd(NESTED, compare=True)(regions)["pred_largest"][1].tolist() == [[0, 0, 0, 1, 0]]


def test_a_class_that_a_case_lacks_does_not_count() -> None:
    data = {"pred": logits_of([1, 2, 0]), "label": label_of(1, -2, -2)}
    found = AsLabelsd(absent=[[2]])(data)
    assert found["pred"].tolist() == found["label"].tolist() == [[[1, 0, 0]]]
    assert dice(found) == pytest.approx([1, torch.nan], nan_ok=True)
    assert absent_classes(label_of(1, -3), [[2], [1, 2]]) == [1, 2]
    assert absent_classes(label_of(1, -1), [[2], [1, 2]]) == []


def test_regions_overlap() -> None:
    logits = MetaTensor(torch.tensor([[[1.0, 2, -1, -1]], [[-1.0, 3, 4, -5]]]))
    found = AsLabelsd(NESTED)({"pred": logits, "label": label_of(1, 2, 0, -1)})
    assert found["label"].tolist() == [[[1, 1, 0, 0]], [[0, 1, 0, 0]]]
    assert found["pred"].tolist() == [[[1, 1, 0, 0]], [[0, 1, 1, 0]]]
    assert found["label"].pixdim.tolist() == [2, 3]
    assert dice(found) == pytest.approx([1, 2 / 3])
    found = AsLabelsd(NESTED, absent=[[2]])({"pred": logits, "label": label_of(1, 2, -2, -1)})
    assert dice(found) == pytest.approx([1, torch.nan], nan_ok=True)


def test_a_region_that_a_case_lacks_does_not_count_where_there_is_no_background() -> None:
    """3 and 4 are the parts 1 and 2 in a case without all of the first set of regions, 5 and 6 of the second."""
    absent = [[2], [1, 2]]
    assert absent_classes(label_of(3, 4), absent, NESTED) == absent_classes(label_of(-2, -1), absent, NESTED) == [2]
    assert absent_classes(label_of(6, -1), absent, NESTED) == [1, 2]
    assert absent_classes(label_of(1, 2, 0), absent, NESTED) == []
    logits = MetaTensor(torch.tensor([[[1.0, 2, -1]], [[1.0, 3, 4]]]))
    found = AsLabelsd(NESTED, absent)({"pred": logits, "label": label_of(3, 3, 4)})
    assert found["label"].tolist() == [[[1, 1, 1]], [[0, 0, 0]]]
    assert found["pred"].tolist() == [[[1, 1, 0]], [[0, 0, 0]]]
    found = ClassIndicesd("label", num_classes=3)({"label": label_of(3, 6, 3, -1)})
    assert [part.tolist() for part in found["label_cls_indices"]] == [[], [0, 2], [1]]


def test_masks_of_regions_are_looked_up() -> None:
    label = torch.tensor([[[0.0, 1, 2, -1, -2]]])
    assert region_masks(label, NESTED).tolist() == [[[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]]]
    assert region_masks(label.byte() * 0, NESTED).sum() == 0


def test_patches_lie_around_annotated_voxels() -> None:
    find = ClassIndicesd("label", num_classes=3)
    assert [part.tolist() for part in find({"label": label_of(0, -1, 2, 2)})["label_cls_indices"]] == [[0], [], [2, 3]]
    found = find({"label": label_of(-2, -1, 1, -1)})
    assert [part.tolist() for part in found["label_cls_indices"]] == [[0], [2], []]
    assert found["label"].tolist() == [[[-2, -1, 1, -1]]]
    assert [part.tolist() for part in find({"label": label_of(-1, -1)})["label_cls_indices"]] == [[0, 1], [], []]
    label = label_of(0, 1, 1, 2)
    expected = ClassesToIndicesd("label", num_classes=3)({"label": label})["label_cls_indices"]
    for ours, theirs in zip(find({"label": label})["label_cls_indices"], expected, strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_shifted_labels_are_filled_with_ignored_voxels() -> None:
    """What lies outside of an image is filled with 0, which is -1 after the way back."""
    data = {"label": label_of(0, 2, -1)}
    shifted = ShiftLabelsd("label", 1)(data)["label"]
    padded = torch.nn.functional.pad(shifted, (1, 0))
    assert ShiftLabelsd("label", -1)({"label": padded})["label"].tolist() == [[[-1, 0, 2, -1]]]
    assert data["label"].tolist() == [[[0, 2, -1]]]
    assert ShiftLabelsd("label", 0)(data)["label"] is data["label"]


FRACTIONS = MetaTensor(torch.tensor([[[0.0, 0.4, 0.9, 1]], [[0.0, 0.3, 0.1, 0]]]), affine=torch.diag(torch.ones(4)))


def test_fractions_are_scored_as_masks_and_as_they_are() -> None:
    logits = MetaTensor(torch.tensor([[[-9.0, 0.1, -0.1, 9]], [[-9.0, -9, -9, 0]]]))
    for pred in (logits, decide(logits, True, True)):
        found = AsLabelsd([[1], [2]], soft=True)({"pred": pred, "label": FRACTIONS})
        assert found["label"].tolist() == [[[0, 0, 1, 1]], [[0, 0, 0, 0]]]
        assert found["pred"].tolist() == [[[0, 1, 0, 1]], [[0, 0, 0, 1]]]
        assert found["pred"].dtype == torch.bool
        assert found["pred_fractions"].tolist() == [[[0, 134, 121, 255]], [[0, 0, 0, 128]]]
        assert torch.equal(found["label_fractions"], FRACTIONS)
    masks = AsLabelsd([[1], [2]], soft=True)({"pred": logits > 0, "label": FRACTIONS})
    assert "pred_fractions" not in masks


def test_patches_lie_around_the_largest_fractions() -> None:
    """The second region is nowhere above one half."""
    found = ClassIndicesd("label", soft=True, num_classes=3)({"label": FRACTIONS})
    assert [part.tolist() for part in found["label_cls_indices"]] == [[0], [2, 3], [1]]
    assert found["label"] is FRACTIONS
    one = ClassIndicesd("label", soft=True, num_classes=2)({"label": FRACTIONS[:1]})
    assert [part.tolist() for part in one["label_cls_indices"]] == [[0, 1], [2, 3]]
