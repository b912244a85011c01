"""Test that labels which are decided while windows are computed are those that MONAI decides on whole logits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from monai.transforms import (
    AsDiscreted,
    Compose,
    Invertd,
    LoadImaged,
    Orientationd,
    ScaleIntensityd,
    Spacingd,
    SpatialPadd,
)

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.annotation import AsLabelsd
from segnets.decide import LabelInferer, logits_in_parts, prepare_batch
from segnets.inferers import TestTimeAveraging

INFERERS = {
    "rows along the first axis": SlidingWindowInferer([8, 6, 16], 3, 0.5, mode="gaussian"),
    "rows along the last axis": SlidingWindowInferer([-1, 11, 4], 1, [0, 0, 0.25], mode="constant"),
    "image smaller than a window": SlidingWindowInferer([32, 16, 24], 1, 0.5, mode="gaussian", padding_mode="reflect"),
    "slices": SliceInferer(spatial_dim=2, roi_size=[8, 6], sw_batch_size=5, overlap=0.5, mode="gaussian"),
    "slices as large as the image": SliceInferer(spatial_dim=0, roi_size=[11, 13], sw_batch_size=4),
    "averaged": TestTimeAveraging(SlidingWindowInferer([8, 6, 16], 2, 0.25), shifts=2),
    "simple": SimpleInferer(),
}
SHAPE = (19, 11, 13)


def network(inferer: Any, classes: int = 4) -> torch.nn.Module:
    torch.manual_seed(2)
    conv = torch.nn.Conv2d if isinstance(inferer, SliceInferer) else torch.nn.Conv3d
    return conv(1, classes, 3, padding=1).eval()


@pytest.mark.parametrize("name", INFERERS)
@torch.no_grad()
def test_parts_are_the_logits_of_monai_bit_by_bit(name: str) -> None:
    inferer, image = INFERERS[name], torch.rand(1, *SHAPE)
    net = network(inferer)
    parts = [(axis, start, part.clone()) for axis, start, part in logits_in_parts(inferer, image, net)]
    (axis,) = {axis for axis, _, _ in parts}
    assert [start for _, start, _ in parts] == np.cumsum([0, *(p.shape[axis + 1] for *_, p in parts[:-1])]).tolist()
    assert torch.equal(torch.cat([part for *_, part in parts], axis + 1), inferer(image[None], net)[0])
    assert len(parts) > 1 or name not in ("rows along the first axis", "rows along the last axis", "slices")


def test_half_precision_and_a_network_of_another_resolution_are_as_in_monai() -> None:
    inferer, image = INFERERS["rows along the first axis"], torch.rand(1, *SHAPE)
    for net in (lambda x: torch.cat([x, 1 - x], 1).half(), lambda x: x[..., ::2]):
        parts = [part.clone() for *_, part in logits_in_parts(inferer, image, net)]
        assert torch.equal(torch.cat(parts, 1), inferer(image[None], net)[0])


AFFINES = {
    "thick slices, axes to the back and the left": [[0, -1.1, 0, 5], [-0.9, 0, 0, -3], [0, 0, 2.5, 7], [0, 0, 0, 1]],
    "oblique": [[0.265968, 1.050870, 0, 5], [0.859803, -0.325072, 0, -3], [0, 0, 1.2, 7], [0, 0, 0, 1]],
    "sheared": [[0.3, 0.88, 0, 5], [0.95, -0.2, 0, -3], [0, 0, 1.2, 7], [0, 0, 0, 1]],
    "the grid of the network": [[1.5, 0, 0, 5], [0, 1.5, 0, -3], [0, 0, 1.5, 7], [0, 0, 0, 1]],
}


def evaluated(folder: Path, affine: list, regions: bool, *more: Any) -> tuple[dict, dict]:
    """Return a case as our evaluation makes it, and as MONAI's steps do: infer, invert, decide."""
    random = np.random.default_rng(5)
    image = random.normal(size=SHAPE).astype(np.float32)
    for name, array in (("image", image), ("label", random.integers(0, 3, SHAPE).astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(array, np.array(affine)), folder / f"{name}.nii")
    load = [LoadImaged(key, image_only=True, ensure_channel_first=True) for key in ("image", "label")]
    steps = [load[0], Orientationd("image", axcodes="RAS", labels=None), Spacingd("image", [1.5] * 3, mode="bilinear")]
    preprocessing = Compose([*steps, ScaleIntensityd("image"), *more])
    case = {"image": str(folder / "image.nii"), "label": str(folder / "label.nii")}
    loader = DataLoader(Dataset([case], Compose([preprocessing, load[1]])), batch_size=1)
    windows = SlidingWindowInferer([6, 8, 8], 2, 0.5, mode="gaussian")
    parts = [[1], [1, 2]] if regions else None
    invert = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)
    found = []
    for inferer, prepare, postprocessing in (
        (LabelInferer(windows, regions), prepare_batch, AsLabelsd(parts, preprocessing=preprocessing)),
        (
            windows,
            None,
            Compose([invert, AsDiscreted("pred", threshold=0.0) if regions else AsDiscreted("pred", argmax=True)]),
        ),
    ):
        options = {"prepare_batch": prepare} if prepare else {}
        evaluator = SupervisedEvaluator(
            torch.device("cpu"),
            loader,
            network(windows, 2 if regions else 3),
            inferer=inferer,
            postprocessing=postprocessing,
            **options,
        )
        evaluator.run()
        found += evaluator.state.output
    return found[0], found[1]


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("affine", AFFINES)
def test_labels_on_the_grid_of_the_file_are_those_of_inverted_logits(
    affine: str, regions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segnets.decide._GROUP_BYTES", 8 * 3 * 19 * 13 * 2)  # a few planes at a time
    if affine != "sheared":
        monkeypatch.setattr(AsLabelsd, "_decide", None)  # not needed
    ours, monai = evaluated(tmp_path, AFFINES[affine], regions)
    assert ours["pred"].dtype == (torch.bool if regions else torch.uint8)
    assert ours["pred"].shape[1:] == SHAPE
    assert torch.equal(ours["pred"].float(), monai["pred"].as_tensor())
    assert 0.1 < ours["pred"].float().mean() < 2


@pytest.mark.parametrize("regions", [False, True])
def test_other_transforms_are_inverted_by_monai(regions: bool, tmp_path: Path) -> None:
    """Padding moves the grid; what was padded is cut off by the inverse."""
    ours, monai = evaluated(tmp_path, AFFINES["oblique"], regions, SpatialPadd("image", [24, 24, 24]))
    assert torch.equal(ours["pred"].float(), monai["pred"].as_tensor())


def test_a_batch_and_images_without_reference_have_their_own_grids() -> None:
    images = torch.rand(2, 1, *SHAPE)
    inferer = INFERERS["rows along the first axis"]
    with torch.no_grad():
        found = LabelInferer(inferer)(images, network(inferer))
        expected = inferer(images, network(inferer)).argmax(1, keepdim=True)
    assert torch.equal(found.long(), expected)
    assert not isinstance(found, MetaTensor)
    assert len(decollate_batch(found)) == 2
    assert (inferer.overlap, LabelInferer(inferer, overlap=0.125).inferer.overlap) == (0.5, 0.125)


def test_memory_is_that_of_a_row_of_windows() -> None:
    """Of 64 planes, 8 are in memory."""
    inferer, image = SlidingWindowInferer([8, 16, 16], 1, 0.25), torch.rand(1, 64, 16, 16)
    parts = logits_in_parts(inferer, image, lambda x: torch.cat([x, 1 - x], 1))
    assert {part.untyped_storage().nbytes() for *_, part in parts} == {2 * 8 * 16 * 16 * 4}
