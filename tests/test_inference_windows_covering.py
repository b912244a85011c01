"""Fewer windows: they cover all there is, overlap as they must, and leave out nothing but air."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import ceil, prod
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.windows import WindowSettings
from napari_seg.errors import BundleError
from napari_seg.geometry import Grid
from napari_seg.inference.body import Body, around, find_body
from napari_seg.inference.segment import segment
from napari_seg.inference.windows.covering import LENGTHS, MAX_VOLUME, coverings, layouts
from napari_seg.inference.windows.layout import Windows
from napari_seg.volume import Volume


@pytest.mark.parametrize("seed", range(20))
def test_every_covering_has_the_required_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (int(n) for n in rng.integers(1, 400, 3))
    i, j, k = (int(n) for n in rng.choice([32, 40, 48, 64, 96, 128], 3))
    overlap = tuple(float(x) for x in rng.choice([0.0, 0.25, 0.5, 0.625], 3))
    settings = WindowSettings((i, j, k), (overlap[0], overlap[1], overlap[2]))
    usual = Windows.over((a, b, c), settings)
    ways = coverings((a, b, c), settings)
    works = [way.count * prod(way.size) for way in ways]
    assert works == sorted(works)
    assert ways[-1].size == usual.size
    assert all(way.count <= usual.count for way in ways)
    assert works[-1] <= usual.count * prod(usual.size)
    for way in ways:
        assert prod(way.size) <= MAX_VOLUME * prod(usual.size)
        for axis, roi in enumerate((i, j, k)):
            size, starts, length = way.size[axis], way.starts[axis], way.padded_shape[axis]
            assert starts[0] == 0
            assert starts[-1] + size == length
            assert roi <= size <= max(LENGTHS) * roi
            assert length - size < 1 or way.before[axis] == 0
            repeated = roi - max(1, int(roi * (1 - overlap[axis])))
            assert all(0 < later - earlier <= size - repeated for earlier, later in pairwise(starts))


@pytest.mark.parametrize("seed", range(20))
def test_even_windows_lie_where_nnunet_lays_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = shape = tuple(int(n) for n in rng.integers(1, 400, 3))
    i, j, k = roi = tuple(int(n) for n in rng.choice([32, 48, 64, 96, 128], 3))
    (even,) = layouts("even", (a, b, c), WindowSettings((i, j, k), (0.5, 0.5, 0.5)))
    assert even.size == roi
    for starts, length, window in zip(even.starts, shape, roi, strict=True):
        last = max(length - window, 0)  # nnU-Net pads too
        count = ceil(last / (window / 2)) + 1
        step = last / max(count - 1, 1)
        assert starts == tuple(int(np.round(step * n)) for n in range(count))


def test_a_head_takes_fewer_windows() -> None:
    settings = WindowSettings((128, 128, 128))
    best = coverings((192, 224, 256), settings)[0]
    assert Windows.over((192, 224, 256), settings).count == 12
    assert (best.size, best.count) == ((192, 128, 160), 4)


def body_in_air(modality: str = "MR") -> Volume:
    """A lopsided body of about 60 x 70 x 50 mm away from the middle of a field of 180 x 160 x 150 mm, in noise."""
    spacing = np.array([1.5, 2.0, 2.5])
    rng = np.random.default_rng(0)
    i, j, k = np.indices((120, 80, 60)) * spacing[:, None, None, None]
    inside = ((i - 60) / 30) ** 2 + ((j - 90) / 35) ** 2 + ((k - 50) / 25) ** 2 < 1
    inside |= (abs(i - 60) < 30) & (abs(j - 90) < 8) & (abs(k - 50) < 8)
    air, tissue, noise = (20.0, 300.0, 8.0) if modality == "MR" else (-1000.0, 30.0, 40.0)
    array = np.where(inside, tissue, air) + rng.normal(0, noise, inside.shape)
    array[55:60, 40:45, 18:22] += 200  # an organ
    return Volume(array[None].astype(np.float32), Grid(inside.shape, np.diag([*spacing, 1.0])), modality=modality)


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_the_body_is_found_whole_and_little_else(modality: str) -> None:
    scan = body_in_air(modality)
    grid = Grid.around(scan.grid.center_mm, scan.grid.size_mm, (1.0, 1.0, 1.0))
    body = find_body(scan, grid, modality)
    assert body is not None
    box = body.box((1, 1, 1), (1, 1, 1))
    for part, (low, high) in zip(box, [(30, 90), (55, 125), (25, 75)], strict=True):
        assert low - 12 < part.start <= low
        assert high <= part.stop < high + 12


def test_what_is_dark_inside_the_body_belongs_to_it() -> None:
    scan = body_in_air()
    i, j, k = np.indices(scan.grid.shape) * np.array(scan.grid.spacing_mm)[:, None, None, None]
    scan.array[0][((i - 60) / 22) ** 2 + ((j - 90) / 27) ** 2 + ((k - 50) / 17) ** 2 < 1] = 25  # hardly above air
    body = find_body(scan, scan.grid, "MR")
    assert body is not None
    for start in ((38, 43, 18), (34, 45, 20), (42, 43, 20)):
        assert body.reaches(start, (3, 3, 3))


def test_what_shows_no_air_is_kept_whole(head: Volume) -> None:
    scan = body_in_air()
    assert find_body(scan, scan.grid, "PT") is None
    assert find_body(scan, scan.grid, "") is None
    flat = replace(scan, array=np.full_like(scan.array, 7.0))
    found = find_body(flat, scan.grid, "MR")
    assert found is None or found.box((1, 1, 1), (1, 1, 1)) == tuple(slice(0, n) for n in scan.grid.shape)
    damaged = scan.array.copy()
    damaged[0, 3, 3, 3] = np.nan
    assert find_body(replace(scan, array=damaged), scan.grid, "MR") is None


def test_a_box_has_the_required_length_within_the_image() -> None:
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[0:2, 4:7, 9] = True
    body = Body(mask, (3, 3, 3), (29, 30, 28))
    assert body.box((1, 1, 1), (1, 1, 1)) == (slice(0, 6), slice(12, 21), slice(27, 28))
    assert body.box((8, 8, 8), (8, 8, 8)) == (slice(0, 8), slice(9, 25), slice(20, 28))
    assert body.box((64, 64, 64), (32, 32, 32)) == (slice(0, 29), slice(0, 30), slice(0, 28))


def test_a_body_is_reached_where_it_is() -> None:
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[5, 5, 5] = True  # voxels 15 to 17
    body = Body(mask, (3, 3, 3), (30, 30, 30))
    assert body.reaches((10, 10, 10), (6, 6, 6))
    assert body.reaches((17, 17, 17), (20, 20, 20))
    assert not body.reaches((9, 10, 10), (6, 6, 6))
    assert not body.reaches((18, 15, 15), (5, 5, 5))
    assert not body.reaches((-8, 15, 15), (5, 5, 5))


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_leaving_out_air_changes_no_label_and_asks_less(modality: str, tmp_path: Path) -> None:
    scan = body_in_air(modality)
    root = write_threshold_bundle(tmp_path / "threshold", roi=(16, 16, 16), spacing=(2.0, 2.0, 2.0))
    bundle = replace(read_bundle(root, trust=True), modality=modality)
    asked: dict[bool, int] = {}

    def labels(crop: bool) -> np.ndarray:
        def told(stage: str, done: int, total: int) -> None:
            if stage == "segmenting":
                asked[crop] = total

        return segment(scan, bundle, crop=crop, windows="bundle", progress=told).array

    whole = labels(crop=False)
    np.testing.assert_array_equal(labels(crop=True), whole)
    assert whole.any()
    assert asked[True] < 0.3 * asked[False]


def test_what_lies_around_a_label_is_looked_at() -> None:
    labels = np.zeros((40, 50, 60), np.uint8)
    labels[20, 10, 30] = 2
    scan = Grid(labels.shape, np.diag([-1.0, 1.0, 1.0, 1.0]))
    grid = Grid.around(scan.center_mm, scan.size_mm, (1.0, 1.0, 1.0))
    body = around(labels, scan, grid, 9.0)
    assert body is not None
    for part, middle in zip(body.box((1, 1, 1), (1, 1, 1)), grid.to_index(scan.to_world((20, 10, 30))), strict=True):
        assert middle - 16 < part.start <= middle - 9
        assert middle + 9 <= part.stop < middle + 16
    assert around(np.zeros_like(labels), scan, grid, 9.0) is None


@pytest.mark.parametrize("finds", [True, False])
def test_the_network_runs_around_the_coarse_result(finds: bool, tmp_path: Path) -> None:
    scan = body_in_air()
    scan.array[0] = np.where(scan.array[0] > 400, scan.array[0], 0.2 * scan.array[0])  # only the organ is above 100
    own = {"coarse": {"bundle": "coarse", "margin_mm": 10}}
    root = write_threshold_bundle(tmp_path / "fine", roi=(16, 16, 16), spacing=(1.0, 1.0, 1.0), own=own)
    write_threshold_bundle(root / "coarse", spacing=(3.0, 3.0, 3.0))
    if not finds:
        module = root / "coarse" / "scripts" / "nets.py"
        module.write_text(module.read_text().replace("- 100.0", "- 1e6"))
    bundle = read_bundle(root, trust=True)
    assert bundle.coarse is not None
    asked: dict[bool, int] = {}

    def labels(crop: bool) -> np.ndarray:
        def told(stage: str, done: int, total: int) -> None:
            if stage == "segmenting":
                asked[crop] = total

        return segment(scan, bundle, crop=crop, progress=told).array

    whole = labels(crop=False)
    np.testing.assert_array_equal(labels(crop=True), whole)
    assert whole.any()
    assert asked[True] < (0.1 if finds else 0.5) * asked[False]


def test_a_coarse_bundle_lies_in_the_other(tmp_path: Path) -> None:
    own = {"coarse": {"bundle": "../elsewhere", "margin_mm": 10}}
    root = write_threshold_bundle(tmp_path / "fine", own=own)
    write_threshold_bundle(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"bundle\.metadata: .* expected a folder in it"):
        segment(body_in_air(), read_bundle(root, trust=True))


@torch.inference_mode()
def test_the_network_does_not_run_on_empty_windows() -> None:
    settings = WindowSettings((8, 8, 8), (0.0, 0.0, 0.0), batch=3)
    windows = Windows.over((16, 16, 16), settings).without_empty(lambda start, size: start[2] == 8)
    image = torch.ones(1, 16, 16, 16)
    batches: list[int] = []

    def run(batch: torch.Tensor) -> torch.Tensor:
        batches.append(len(batch))
        return batch.repeat(1, 2, 1, 1, 1)

    nothing = torch.zeros(2, 8, 8, 8)
    starts = windows.starts_of(windows.groups((0, 16)))
    logits = list(windows.logits(image, starts, run, nothing))
    assert batches == [3, 1]  # full ones, however many empty windows lie between
    assert [float(block.mean()) for block in logits] == [float(start[2] == 8) for start in starts]


@pytest.mark.parametrize("answers", [False, True])
def test_a_network_of_one_size_is_given_that_size(answers: bool, tmp_path: Path) -> None:
    scan = body_in_air()
    root = write_threshold_bundle(tmp_path / "strict", roi=(32, 32, 32), spacing=(2.0, 2.0, 2.0))
    module = root / "scripts" / "nets.py"
    source = module.read_text()
    assert "def forward(self, image):" in source
    check = "        if tuple(image.shape[2:]) != (32, 32, 32):\n            raise ValueError(image.shape)\n"
    if answers:  # whatever it is given
        source = source.replace("        return torch.cat(", "        whole = torch.cat(")
        module.write_text(source + "        return torch.nn.functional.interpolate(whole, size=(32, 32, 32))\n")
    else:
        module.write_text(source.replace("def forward(self, image):\n", f"def forward(self, image):\n{check}"))
    bundle = read_bundle(root, trust=True)
    strict = segment(scan, bundle).array
    np.testing.assert_array_equal(strict, segment(scan, bundle, windows="bundle", crop=False).array)
