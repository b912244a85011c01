"""Test the numbers in prepared label maps, and the masks that metrics get from them, by hand."""

from __future__ import annotations

import sys

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, ClassesToIndicesd

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.annotation import AsMasksd, ClassIndicesd, ShiftLabelsd, absent_classes, region_masks
from segnets.metrics import Dice

NESTED = [[1], [1, 2]]


def logits_of(classes: list[int], count: int = 3) -> MetaTensor:
    """Return logits (K, 1, W) with which each class wins."""
    one_hot = torch.nn.functional.one_hot(torch.tensor([classes]), count).movedim(-1, 0)
    return MetaTensor(one_hot * 4.0 - 2, affine=torch.diag(torch.tensor([2.0, 3, 1, 1])))


def label_of(*numbers: int) -> MetaTensor:
    return MetaTensor(torch.tensor([[numbers]]).float(), affine=torch.diag(torch.tensor([2.0, 3, 1, 1])))


def dice(data: dict) -> list[float]:
    return Dice()(data["pred"][None], data["label"][None])[0].tolist()


def test_without_ignored_voxels_masks_are_those_of_monai() -> None:
    data = {"pred": logits_of([0, 1, 2, 2]), "label": label_of(0, 1, 1, 2), "name": "x"}
    masks = AsMasksd(3)(data)
    expected = AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3)(data)
    for key in ("pred", "label"):
        assert torch.equal(masks[key], expected[key])
        assert masks[key].dtype == expected[key].dtype
        assert masks[key].pixdim.tolist() == [2, 3]
    assert masks["name"] == "x"


def test_ignored_voxels_do_not_count() -> None:
    """The errors are in ignored voxels; they would make the Dice 2/3 and 0."""
    data = {"pred": logits_of([1, 1, 0, 2]), "label": label_of(1, -1, 0, -1)}
    masks = AsMasksd(3)(data)
    assert masks["pred"].tolist() == masks["label"].tolist() == [[[0, 1, 1, 1]], [[1, 0, 0, 0]], [[0, 0, 0, 0]]]
    assert dice(masks) == pytest.approx([1, torch.nan], nan_ok=True)


def test_the_largest_component_is_that_of_the_whole_result() -> None:
    """The middle voxel is ignored; without it the larger component would be two pieces, as large as the other one."""
    data = {"pred": logits_of([1, 1, 1, 0, 1, 2, 0, 2, 2]), "label": label_of(1, -1, 1, 0, 0, 0, 0, 2, 2)}
    masks = AsMasksd(3, compare=True)(data)
    assert masks["pred"][1].tolist() == [[1, 0, 1, 0, 1, 0, 0, 0, 0]]
    assert masks["pred_largest"].tolist() == [
        [[0, 1, 0, 1, 1, 1, 1, 0, 0]],
        [[1, 0, 1, 0, 0, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 0, 0, 0, 1, 1]],
    ]
    kept = AsMasksd(3, largest=[2])(data)
    assert kept["pred"][1:].tolist() == [masks["pred"][1].tolist(), masks["pred_largest"][2].tolist()]
    assert "pred_largest" not in kept
    regions = {"pred": logits_of([0, 1, 0, 1, 1], count=2), "label": label_of(1, 2, 0, 1, -1)}
    found = AsMasksd(2, NESTED, compare=True)(regions)["pred_largest"]
    assert found[2].tolist() == [[0, 0, 0, 1, 0]]  # the last voxel is ignored


def test_a_class_that_a_case_lacks_does_not_count() -> None:
    data = {"pred": logits_of([1, 2, 0]), "label": label_of(1, -2, -2)}
    masks = AsMasksd(3, absent=[[2]])(data)
    assert masks["pred"].tolist() == [[[0, 1, 1]], [[1, 0, 0]], [[0, 0, 0]]]
    assert dice(masks) == pytest.approx([1, torch.nan], nan_ok=True)
    assert absent_classes(label_of(1, -3), [[2], [1, 2]]) == [1, 2]
    assert absent_classes(label_of(1, -1), [[2], [1, 2]]) == []


def test_regions_overlap() -> None:
    found = MetaTensor(torch.tensor([[[1.0, 2, -1, -1]], [[-1.0, 3, 4, -5]]]))
    masks = AsMasksd(2, NESTED)({"pred": found, "label": label_of(1, 2, 0, -1)})
    assert masks["label"].tolist() == [[[0, 0, 1, 1]], [[1, 1, 0, 0]], [[0, 1, 0, 0]]]
    assert masks["pred"].tolist() == [[[0, 0, 0, 1]], [[1, 1, 0, 0]], [[0, 1, 1, 0]]]
    assert masks["label"].pixdim.tolist() == [2, 3]
    assert dice(masks) == pytest.approx([1, 2 / 3])
    masks = AsMasksd(2, NESTED, absent=[[2]])({"pred": found, "label": label_of(1, 2, -2, -1)})
    assert dice(masks) == pytest.approx([1, torch.nan], nan_ok=True)


def test_a_region_that_a_case_lacks_does_not_count_where_there_is_no_background() -> None:
    """3 and 4 are the parts 1 and 2 in a case without all of the first set of regions, 5 and 6 of the second."""
    absent = [[2], [1, 2]]
    assert absent_classes(label_of(3, 4), absent, NESTED) == absent_classes(label_of(-2, -1), absent, NESTED) == [2]
    assert absent_classes(label_of(6, -1), absent, NESTED) == [1, 2]
    assert absent_classes(label_of(1, 2, 0), absent, NESTED) == []
    found = MetaTensor(torch.tensor([[[1.0, 2, -1]], [[1.0, 3, 4]]]))
    masks = AsMasksd(2, NESTED, absent)({"pred": found, "label": label_of(3, 3, 4)})
    assert masks["label"].tolist() == [[[0, 0, 0]], [[1, 1, 1]], [[0, 0, 0]]]
    assert masks["pred"].tolist() == [[[0, 0, 1]], [[1, 1, 0]], [[0, 0, 0]]]
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
