"""Test the channels of a cascade's previous stage, and how they are degraded in training."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandScaleIntensityd

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))
from segnets.cascade import AddPreviousd, AugmentImaged, LabelsToChannelsd, nearest
from segnets.data.cache import fingerprint
from segnets.errors import TrainingError


@pytest.fixture(autouse=True, scope="module")
def segnets() -> Iterator[None]:
    yield
    sys.path.remove(str(shipped_root()))


def image_of(shape: tuple[int, ...] = (4, 6, 2), mm: tuple[float, ...] = (2, 1, 3)) -> MetaTensor:
    affine = np.diag([*mm, 1.0])
    return MetaTensor(torch.rand(1, *shape), affine=affine, meta={"filename_or_obj": "/somewhere/scan.nii.gz"})


def test_labels_are_taken_at_the_nearest_voxel_whatever_the_order_of_their_axes() -> None:
    labels = torch.zeros(1, 6, 8, 2, dtype=torch.uint8)  # axes: -y, x, z; half the image's voxels along x
    labels[0, 1, 4, 1] = 2
    affine = np.array([[0, 1, 0, -0.5], [-1, 0, 0, 5], [0, 0, 3, 0], [0, 0, 0, 1]], float)
    found = nearest(MetaTensor(labels, affine=affine), image_of())
    assert found.shape == (4, 6, 2)
    assert torch.nonzero(found).tolist() == [[2, 4, 1]]  # x = 3.5 mm is nearest to x = 4 mm, y = 4 mm
    turned = affine.copy()
    turned[:2, :2] = [[0.6, 0.8], [-0.8, 0.6]]
    elsewhere = affine + np.array([[0, 0, 0, 40]] + [[0] * 4] * 3)
    for other in (turned, elsewhere):
        with pytest.raises(TrainingError, match=r"dataset\.previous_stage: .* lie elsewhere"):
            nearest(MetaTensor(labels, affine=other), image_of())


def test_each_class_of_the_previous_stage_becomes_a_channel(tmp_path: Path) -> None:
    image = image_of()
    labels = torch.zeros(1, 4, 6, 2, dtype=torch.uint8)
    labels[0, 0], labels[0, 1] = 1, 2
    add = Compose([AddPreviousd("image", tmp_path), LabelsToChannelsd("image", 2)])
    found = add({"image": image, "previous": MetaTensor(labels, affine=image.affine)})
    assert set(found) == {"image"}
    assert isinstance(found["image"], MetaTensor)
    assert torch.equal(found["image"].affine, image.affine)
    assert torch.equal(found["image"][:1].as_tensor(), image.as_tensor())
    assert [torch.nonzero(found["image"][n])[:, 0].unique().tolist() for n in (1, 2)] == [[0], [1]]

    # from files, by the case's name, else by that of the image
    with pytest.raises(TrainingError, match=r"dataset\.previous_stage: found no labels .* 'a' .* a_seg\.nii\.gz"):
        add.transforms[0]({"image": image, "name": "a"})
    before = fingerprint(AddPreviousd("image", tmp_path))
    nibabel.save(nibabel.Nifti1Image(labels[0].numpy(), image.affine.numpy()), tmp_path / "scan_seg.nii.gz")
    assert fingerprint(AddPreviousd("image", tmp_path)) == before  # a run goes on with renewed labels
    assert fingerprint(AddPreviousd("image", tmp_path / "moved")) == before  # and in another folder
    assert fingerprint(AddPreviousd("image", None)) != before
    assert pickle.loads(pickle.dumps(add.transforms[0])).folder == tmp_path  # for the processes of a data loader
    assert torch.equal(add({"image": image, "name": "a"})["image"].as_tensor(), found["image"].as_tensor())
    nibabel.save(nibabel.Nifti1Image(0 * labels[0].numpy(), image.affine.numpy()), tmp_path / "a_seg.nii.gz")
    assert not add({"image": image, "name": "a"})["image"][1:].any()
    assert not AddPreviousd("image", None)({"image": image})["image"][1:].any()


def augmented(seed: int, labels: torch.Tensor, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image's channel and the masks of the labels after the augmentation of an image of ones."""
    augment = AugmentImaged([RandScaleIntensityd("image", factors=(1, 1), prob=1.0)], len(labels), **options)
    compose = Compose([augment])
    augment.set_random_state(seed)  # a new `Compose` seeds its transforms
    image = torch.cat([torch.ones(1, *labels.shape[1:]), 0.6 * labels])
    (case,) = compose([{"image": MetaTensor(image), "name": "a"}])  # as patches of a case
    found = case["image"]
    return found[:1].as_tensor(), found[1:].as_tensor()


def test_the_labels_are_degraded_and_the_image_alone_is_augmented() -> None:
    labels = torch.zeros(2, 20, 20, 20)
    labels[0, 4:10, 4:10, 4:10] = 1
    labels[1, 10:16, 4:10, 4:10] = 1
    labels[1, 19, 19, 19] = 1
    image, plain = augmented(0, labels, prob_shape=0, prob_removed=0)
    assert image.unique().tolist() == [2]  # 1 + factor 1
    assert torch.equal(plain, labels)  # interpolated values above a half are inside
    sizes = set()
    for seed in range(12):
        _, found = augmented(seed, labels, prob_shape=1, prob_removed=0, max_radius=2)
        assert set(found.unique().tolist()) <= {0, 1}
        assert found.sum(0).max() <= 1  # they do not overlap
        sizes.add(int(found[0].sum()))
    assert min(sizes) < 216 < max(sizes)
    assert {2**3, 10**3} & sizes  # eroded or dilated by 2 voxels
    kept = [augmented(seed, labels, prob_shape=0, prob_removed=1)[1].sum((1, 2, 3)).tolist() for seed in range(8)]
    assert {tuple(one) for one in kept} == {(0, 1), (0, 216)}  # one component of each
    _, large = augmented(0, torch.ones(1, 4, 4, 4), prob_shape=0, prob_removed=1)
    assert large.all()  # too large to be removed
