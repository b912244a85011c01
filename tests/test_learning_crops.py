"""Crops of accepted cases are what a network in boxes sees, mirrored ones too, and their labels go back exactly."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle
from phantoms import rotation

from napari_seg.bundles.load import load_model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import InputError, LocaliseError
from napari_seg.formats.nifti import write_volume
from napari_seg.formats.read import read
from napari_seg.geometry import Grid, resample
from napari_seg.inference.decide.region_labels import RegionLabels
from napari_seg.inference.prepare import prepare
from napari_seg.inference.segment import segment
from napari_seg.learning.accept import accept
from napari_seg.learning.crops import write_crops
from napari_seg.learning.training_set import Provenance, read_training_set
from napari_seg.localise import localise
from napari_seg.training.gather.referenced import VARIABLE
from napari_seg.volume import Segment, Segmentation, Volume

NAMES = {1: "left bright", 2: "left upper", 3: "right bright", 4: "right upper"}
SEGMENTS = tuple(Segment(label, name, (label, 0, 0)) for label, name in NAMES.items())
GRID = Grid.around((3.0, -4.0, 6.0), (126, 128, 130), (3.5, 4.0, 5.0), rotation(5, -4, 7) @ np.diag([-1, -1, 1]))
"""An oblique, anisotropic head, in the order L, P, S."""


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A model of the left side, run in boxes of 30 x 40 x 28 mm on both; its template lies as every scan does."""
    regions: list[dict[str, Any]] = [
        {"name": f"{side} part", "center_mm": [x, -5, 4], "size_mm": [30, 40, 28], "mirror": x > 0, "labels": labels}
        for side, x, labels in (("left", -25, {"1": 1, "2": 2}), ("right", 25, {"1": 3, "2": 4}))
    ]
    localiser = {
        "template": "head.nii.gz",
        "crop_below_mm": 100,
        "min_similarity": 0.3,
        "usual_similarity": 0.4,
        "spacing_mm": [1.0, 1.0, 1.0],
        "regions": regions,
    }
    own = {
        "network_segments": [{"label": n, "name": SEGMENTS[n - 1].name[5:], "color": [n, 0, 0]} for n in (1, 2)],
        "segments": [{"label": one.label, "name": one.name, "color": list(one.color)} for one in SEGMENTS],
        "localiser": localiser,
    }
    root = write_threshold_bundle(tmp_path / "model", halves=True, spacing=(1.0, 1.0, 1.0), own=own)
    write_volume(head(), root / "head.nii.gz")
    world = np.eye(4)
    world[:3, :3] = rotation(6, -3, 4)
    monkeypatch.setattr("napari_seg.localise.register", lambda *_: (world, 1.0))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    return read_bundle(root, trust=True)


def head(grid: Grid = GRID, seed: int = 0) -> Volume:
    return Volume(np.random.default_rng(seed).normal(50, 9, (1, *grid.shape)).astype(np.float32), grid)


def labels_in_boxes(bundle: Bundle, scan: Volume) -> np.ndarray:
    """Labels of noise: all four inside the boxes, as a result of the bundle has them."""
    labels = np.zeros(scan.grid.shape, np.uint8)
    centres = scan.grid.to_world(np.stack(np.indices(scan.grid.shape), axis=-1))
    rng = np.random.default_rng(1)
    for region in localise(scan, bundle)[0]:
        assert region.grid is not None
        inside = region.grid.contains(centres)
        labels[inside] = rng.choice([0, *region.labels.values()], inside.sum())
    return labels


def accepted(
    folder: Path, scan: Volume, labels: np.ndarray, annotated: Collection[str] | None = None, names: Any = SEGMENTS
) -> str:
    return accept(Segmentation(labels, scan.grid, names), scan, folder, Provenance(), annotated=annotated).name


def test_labels_go_back_exactly_and_the_image_is_the_network_s(bundle: Bundle, tmp_path: Path) -> None:
    scan = head()
    labels = labels_in_boxes(bundle, scan)
    accepted(tmp_path / "set", scan, labels)
    crops = write_crops(tmp_path / "set", read_training_set(tmp_path / "set"), bundle, tmp_path / "boxes")
    assert [entry["name"] for entry in crops.entries] == ["case0001_box1", "case0001_box2"]
    assert not crops.left_out
    assert not any("labelled" in entry for entry in crops.entries)
    model = load_model(bundle, "cpu")
    back = np.zeros(scan.grid.shape, np.uint8)
    for region, entry in zip(localise(scan, bundle)[0], crops.entries, strict=True):
        assert region.grid is not None
        image, label = read(tmp_path / entry["image"]), read(tmp_path / entry["label"])
        assert image.grid.orientation == label.grid.orientation == "RAS"
        seen, inverse = prepare(scan, region.grid, bundle, model)
        np.testing.assert_allclose(prepare(image, None, bundle, model)[0], seen, rtol=1e-5)
        # a network that finds the labels of the crop gives the labels of the scan
        taker = RegionLabels(model.output, inverse, inverse.grid, (0, 0, 0), scan.grid, back, region.labels)
        taker.add((0, 0, 0), torch.from_numpy(np.eye(3, dtype=np.float32)[label.array[0]]).movedim(-1, 0).contiguous())
        taker.finish()
        nearest = resample(label.array[0], region.grid, scan.grid, order=0, outside=0)
        table = np.array([0, *region.labels.values()])
        inside = region.grid.contains(scan.grid.to_world(np.stack(np.indices(scan.grid.shape), axis=-1)))
        assert (table[nearest][inside] == labels[inside]).all()
    assert (back == labels).mean() > 0.999
    assert (back[labels > 0] == labels[labels > 0]).mean() > 0.95


def test_the_right_side_is_the_left_one_of_the_mirrored_head(bundle: Bundle, tmp_path: Path) -> None:
    grid = Grid.around((0, 0, 0), (120, 128, 110), (2.0, 2.0, 2.0))
    scan, labels = head(grid), np.zeros(grid.shape, np.uint8)
    labels[grid.shape[0] // 2 + 9 : grid.shape[0] // 2 + 13, 28:33, 26:30] = 4  # on the right only, off the middle
    mirror, other_voxels = Grid(grid.shape, np.diag([-1.0, 1, 1, 1]) @ grid.affine), scan.array.copy()
    other_voxels[:, 0, 0, 0] += 1  # far from the boxes: a set takes no scan in two orientations
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_seg.localise.register", lambda *_: (np.eye(4), 1.0))
        accepted(tmp_path / "set", scan, labels, NAMES.values())
        accepted(
            tmp_path / "set", Volume(other_voxels, mirror), np.where(labels, 2, 0).astype(np.uint8), NAMES.values()
        )
        crops = write_crops(tmp_path / "set", read_training_set(tmp_path / "set"), bundle, tmp_path / "boxes")
    assert [entry["name"][:8] for entry in crops.entries] == ["case0001"] * 2 + ["case0002"] * 2
    assert [entry["split"] for entry in crops.entries] == ["training"] * 2 + ["validation"] * 2
    assert [entry["patient"] for entry in crops.entries] == ["patient 1"] * 2 + ["patient 2"] * 2
    images = [read(tmp_path / entry["image"]).array for entry in crops.entries]
    found = [read(tmp_path / entry["label"]).array[0] for entry in crops.entries]
    assert [np.unique(one).tolist() for one in found] == [[0], [0, 2], [0, 2], [0]]
    for one, other in ((0, 3), (1, 2)):
        np.testing.assert_allclose(images[one], images[other], rtol=1e-5)
        assert np.array_equal(found[one], found[other])
    assert not np.array_equal(found[1], found[1][::-1])


def test_what_was_not_annotated_is_stated(bundle: Bundle, tmp_path: Path) -> None:
    scan = head()
    labels = labels_in_boxes(bundle, scan)
    accepted(tmp_path / "set", scan, labels, ["left upper"])
    accepted(tmp_path / "set", head(seed=2), np.where(labels > 2, labels, 0), [NAMES[3], NAMES[4]], SEGMENTS[2:])
    crops = write_crops(tmp_path / "set", read_training_set(tmp_path / "set"), bundle, tmp_path / "boxes")
    assert [(entry["name"], entry.get("labelled")) for entry in crops.entries] == [
        ("case0001_box1", ["upper"]),
        ("case0002_box2", None),
    ]
    assert np.unique(read(tmp_path / crops.entries[0]["label"]).array).tolist() == [0, 2]


def test_cases_without_regions_are_left_out(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = [head(seed=n) for n in range(4)]
    labels = labels_in_boxes(bundle, scans[0])
    accepted(tmp_path / "set", scans[0], labels)
    accepted(tmp_path / "set", scans[1], labels)
    elsewhere = np.zeros_like(labels)
    elsewhere[:3, :3, :3] = 1
    accepted(tmp_path / "set", scans[2], elsewhere, ["left bright"])
    accepted(tmp_path / "set", scans[3], elsewhere, None, (Segment(1, "tumour", (1, 0, 0)),))
    calls = []

    def some(volume: Volume, *rest: Any) -> Any:
        calls.append(volume)
        if np.array_equal(volume.array, scans[1].array):
            raise LocaliseError("localise.low_similarity", "no head")
        return localise(volume, *rest)

    monkeypatch.setattr("napari_seg.learning.placed_regions.localise", some)
    for _ in range(2):  # what was placed, or not found, is known the second time
        crops = write_crops(tmp_path / "set", read_training_set(tmp_path / "set"), bundle, tmp_path / "boxes")
        assert {entry["name"][:8] for entry in crops.entries} == {"case0001"}
        assert {name: error.code for name, error in crops.left_out.items()} == {
            "case0002": "localise.low_similarity",
            "case0003": "improve.no_structure",
            "case0004": "improve.no_structure",
        }
        assert len(calls) == 3


@pytest.mark.parametrize(
    ("names", "is_mirrored"),
    [({5: "Bright"}, False), ({5: "left bright"}, False), ({5: "right bright"}, True)],
)
def test_a_scan_that_is_a_crop_is_taken_as_it_is(
    names: dict[int, str], is_mirrored: bool, bundle: Bundle, tmp_path: Path
) -> None:
    grid = Grid((12, 14, 10), np.diag([-2.0, 1.0, 1.5, 1.0]))
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:5, 2:6, 2:5] = 5
    scan = head(grid)
    accepted(tmp_path / "set", scan, labels, None, tuple(Segment(n, name, (1, 0, 0)) for n, name in names.items()))
    crops = write_crops(tmp_path / "set", read_training_set(tmp_path / "set"), bundle, tmp_path / "boxes")
    (entry,) = crops.entries
    assert entry["labelled"] == ["bright"]
    image, label = read(tmp_path / entry["image"]), read(tmp_path / entry["label"])
    in_ras = image.grid.reoriented("RAS")
    shown = resample(image.array[0], image.grid, in_ras), resample(label.array[0], label.grid, in_ras)
    flip = 1 if is_mirrored else -1  # of the scan's first axis, which runs to the left
    assert np.array_equal(shown[0], scan.array[0][::flip])
    assert np.array_equal(shown[1], (labels > 0)[::flip])


def test_a_small_scan_of_two_sides_is_left_out(bundle: Bundle, tmp_path: Path) -> None:
    scan = head(Grid((12, 14, 10), np.eye(4)))
    labels = np.zeros(scan.grid.shape, np.uint8)
    labels[2:4, 5:8, 5], labels[8:10, 5:8, 5] = 1, 3
    accepted(tmp_path / "set", scan, labels)
    crops = write_crops(tmp_path / "set", read_training_set(tmp_path / "set"), bundle, tmp_path / "boxes")
    assert [type(error) for error in crops.left_out.values()] == [InputError]


def test_a_result_of_the_model_makes_crops_on_which_it_is_right(bundle: Bundle, tmp_path: Path) -> None:
    scan = head()
    centres = scan.grid.to_world(np.stack(np.indices(scan.grid.shape), axis=-1))
    for region in localise(scan, bundle)[0]:
        assert region.grid is not None
        scan.array[0][np.linalg.norm(centres - region.grid.center_mm, axis=-1) < 13] = 400
    found = segment(scan, bundle, keep_islands=True)
    assert min(found.voxel_counts().values()) > 50
    accepted(tmp_path / "set", scan, found.array)
    crops = write_crops(tmp_path / "set", read_training_set(tmp_path / "set"), bundle, tmp_path / "boxes")
    for entry in crops.entries:
        result = segment(read(tmp_path / entry["image"]), bundle, keep_islands=True)
        label = read(tmp_path / entry["label"]).array[0]
        assert (result.array == label).mean() > 0.85  # labels of 3.5 to 5 mm
        assert (result.array[:15] != 2).all()
        assert (label[:11] != 2).all()
        assert (label[-11:] != 1).all()
