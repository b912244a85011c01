"""Engine: streamed labels equal those of MONAI's sliding windows, resampled to the scan as a whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from phantoms import ORIENTATIONS
from torch import nn

from napari_seg.bundles.windows import WindowSettings
from napari_seg.geometry import Grid, resample
from napari_seg.inference import StreamingInferer
from napari_seg.inference.decide import cells as cells_module
from napari_seg.inference.decide import decider as decide_module
from napari_seg.inference.decide.decider import Decider
from napari_seg.inference.inferer import window_settings
from napari_seg.inference.windows.blend import Block, accumulator_bytes, blend, with_least_memory
from napari_seg.inference.windows.layout import Windows
from napari_seg.volume import ConfidenceMaps


def network(classes: int, seed: int = 0) -> nn.Module:
    """Answers that depend on where in a window a voxel lies, because convolutions see the zeros around it."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, 4, 5, padding=2), nn.Tanh(), nn.Conv3d(4, classes, 3, padding=1)).eval()


def stream(image: torch.Tensor, windows: Windows, net: nn.Module, strips: int = 1, **kwargs) -> list[Block]:
    """All blocks, of one strip after the other."""
    length = windows.padded_shape[windows.axes[1]]
    cuts = np.linspace(0, length, strips + 1).astype(int).tolist()
    padded = windows.pad(image)
    blocks = []
    for strip in pairwise(cuts):

        def answers(strip: tuple[int, int] = strip):
            for start in windows.starts_of(windows.groups(strip)):
                yield net(windows.cut(padded, start)[None])[0]

        blocks += [Block(block.start, block.logits.clone()) for block in blend(windows, strip, answers(), **kwargs)]
    return blocks


def joined(blocks: list[Block], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The blocks side by side, and how often each voxel was given."""
    whole = torch.zeros(len(blocks[0].logits), *shape)
    given = torch.zeros(shape, dtype=torch.int)
    for block in blocks:
        where = tuple(slice(n, n + m) for n, m in zip(block.start, block.logits.shape[1:], strict=True))
        whole[(slice(None), *where)] = block.logits
        given[where] += 1
    return whole, given


CASES = [
    pytest.param((30, 20, 12), (12, 8, 6), 0.5, "gaussian", id="plain"),
    pytest.param((12, 33, 21), (8, 8, 8), 0.25, "constant", id="another axis is longest"),
    pytest.param((13, 17, 29), (8, 10, 9), 0.7, "gaussian", id="three windows over one voxel"),
    pytest.param((5, 40, 7), (8, 16, 8), 0.5, "gaussian", id="smaller than a window"),
    pytest.param((6, 6, 6), (8, 8, 8), 0.25, "gaussian", id="one window, padded"),
    pytest.param((16, 16, 16), (8, 8, 8), 0.0, "constant", id="no overlap"),
    pytest.param((20, 1, 9), (8, 1, 4), 0.5, "gaussian", id="one voxel thick"),
    pytest.param((19, 14, 11), (8, None, -1), (0.6, 0.1, 0.3), "gaussian", id="whole axes, an overlap each"),
]


@pytest.mark.parametrize(("shape", "roi", "overlap", "mode"), CASES)
@pytest.mark.parametrize("strips", [1, 3])
@torch.inference_mode()
def test_blended_windows_are_those_of_monai(shape, roi, overlap, mode, strips) -> None:
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32))
    net = network(3)
    inferer = SlidingWindowInferer(roi, sw_batch_size=2, overlap=overlap, mode=mode)
    settings = window_settings(inferer)
    assert settings is not None
    windows = Windows.over(shape, settings)
    length = windows.padded_shape[windows.axes[1]]
    blocks = stream(image, windows, net, strips=min(strips, length))
    whole, given = joined(blocks, windows.padded_shape)
    assert (given == 1).all()
    inner = tuple(slice(b, b + n) for b, n in zip(windows.before, shape, strict=True))
    torch.testing.assert_close(whole[(slice(None), *inner)], inferer(image[None], net)[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_half_precision_sums_move_logits_by_little() -> None:
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 30, 20, 12)).astype(np.float32))
    windows = Windows.over((30, 20, 12), WindowSettings((12, 8, 6), (0.5, 0.5, 0.5), mode="gaussian"))
    exact, _ = joined(stream(image, windows, network(3)), (30, 20, 12))
    half, _ = joined(stream(image, windows, network(3), dtype=torch.float16), (30, 20, 12))
    torch.testing.assert_close(half, exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("length", [312, 320, 640, 3001])  # whose last window repeats 24 to 88 voxels
def test_what_is_kept_does_not_grow_with_the_longest_axis(length: int) -> None:
    settings = WindowSettings((96, 96, 96), (0.25, 0.25, 0.25))
    windows = Windows.over((273, 273, length), settings)

    def kept(strip: tuple[int, int], itemsize: int = 4) -> int:
        return accumulator_bytes(with_least_memory(windows, strip, itemsize), strip, classes=105, itemsize=itemsize)

    # beside a plane as deep as a window, in float32: what a ring of whole slabs would hold
    assert kept((0, 273)) < 0.77 * 105 * 4 * 273 * 273 * 96
    assert kept((0, 273), itemsize=2) < 0.55 * 105 * 4 * 273 * 273 * 96
    assert max(kept((0, 137)), kept((136, 273))) < 0.85 * kept((0, 273))


@pytest.mark.parametrize("joined_axes", [(), (0,), (0, 1), (0, 1, 2)])
@torch.inference_mode()
def test_windows_that_share_a_place_change_nothing(joined_axes: tuple[int, ...]) -> None:
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 27, 19, 13)).astype(np.float32))
    windows = Windows.over((27, 19, 13), WindowSettings((12, 8, 6), (0.5, 0.25, 0.5), mode="gaussian"))
    together = replace(windows, joined=joined_axes)
    assert len(together.starts_of(together.groups((0, 19)))) == windows.count
    whole, _ = joined(stream(image, windows, network(3)), (27, 19, 13))
    again, given = joined(stream(image, together, network(3), strips=2), (27, 19, 13))
    assert (given == 1).all()
    torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(12))
@torch.inference_mode()
def test_labels_are_those_of_the_whole_logits_resampled(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random shapes, spacings, orientations, tilts, classes, windows; regions within, around and beyond the scan."""
    monkeypatch.setattr(cells_module, "MAX_LOGITS", 1000)
    monkeypatch.setattr(decide_module, "MAX_LOGITS", 1000)
    monkeypatch.setattr(decide_module, "MAX_VOXELS", 1000)
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1 if seed % 4 == 3 else 6, 22, 3))
    directions = np.eye(3) if seed % 2 else np.linalg.qr(rng.normal(size=(3, 3)))[0]
    spacing = rng.uniform(0.7, 2.5, 3)
    region = Grid.around(rng.normal(size=3), np.array(shape) * spacing, spacing, directions)
    size = rng.uniform(0.5, 1.5) * np.array(region.size_mm)
    scan = Grid.around(region.center_mm + rng.normal(size=3), size, rng.uniform(0.6, 3, 3))
    scan = scan.reoriented(ORIENTATIONS[int(rng.integers(len(ORIENTATIONS)))])
    classes = int(rng.integers(2, 7))
    net = network(classes, seed)
    image = torch.from_numpy(rng.normal(size=(1, *region.shape)).astype(np.float32))
    roi = tuple(int(n) for n in rng.integers(4, 10, 3))
    inferer = SlidingWindowInferer(roi, overlap=float(rng.uniform(0, 0.7)), mode="gaussian")
    settings = window_settings(inferer)
    assert settings is not None
    windows = Windows.over(region.shape, settings)

    labels = {c: 10 + c for c in range(1, classes)}
    label_map = np.zeros(scan.shape, np.uint8)
    maps = ConfidenceMaps(np.zeros(scan.shape, np.uint8), np.zeros(scan.shape, np.uint8))
    decider = Decider(region, scan, label_map, labels, windows.axes, maps if seed % 3 else None)
    for block in stream(image, windows, net):
        inner = windows.without_padding(block.start, block.logits.shape[1:])
        if inner is not None:
            decider.add(inner[0], block.logits[(slice(None), *inner[1])])

    logits = inferer(image[None], net)[0]
    on_scan = resample(logits.numpy(), region, scan)
    points = scan.to_world(np.moveaxis(np.indices(scan.shape), 0, -1))
    inside = region.contains(points)
    expected = np.where(on_scan.argmax(axis=0) > 0, on_scan.argmax(axis=0) + 10, 0)
    first, second = np.sort(on_scan, axis=0)[::-1][:2]
    clear = inside & (first - second > 1e-4)
    np.testing.assert_array_equal(label_map[clear], expected[clear])
    distances = np.abs(region.to_index(points) - (np.array(region.shape) - 1) / 2) - np.array(region.shape) / 2
    assert not label_map[(distances > 0.01).any(axis=-1)].any()

    if seed % 3:
        shares = torch.from_numpy(on_scan).softmax(dim=0).numpy()
        entropy = -(shares * np.log(shares)).sum(axis=0) / np.log(classes)
        lower = np.clip(np.floor(region.to_index(points)).astype(int), 0, np.maximum(np.array(region.shape) - 2, 0))
        corners = [np.minimum(lower + corner, np.array(region.shape) - 1) for corner in product((0, 1), repeat=3)]
        winners = np.stack([logits.argmax(dim=0).numpy()[tuple(np.moveaxis(c, -1, 0))] for c in corners])
        meet = clear & (winners.min(axis=0) != winners.max(axis=0))  # elsewhere it is interpolated, not computed
        assert meet.any()
        np.testing.assert_allclose(maps.confidence[meet] / 255, shares.max(axis=0)[meet], atol=0.005)
        np.testing.assert_allclose(maps.entropy[meet] / 255, entropy[meet], atol=0.005)
        np.testing.assert_allclose(maps.confidence[inside] / 255, shares.max(axis=0)[inside], atol=0.1)
        assert not maps.confidence[(distances > 0.01).any(axis=-1)].any()

    winner = logits.argmax(dim=0)
    probability = logits.softmax(dim=0).amax(dim=0)
    found = decider.confidence()
    assert set(found) == set(winner.unique().tolist()) - {0}
    for c, mean in found.items():
        assert mean == pytest.approx(probability[winner == c].double().mean().item(), rel=1e-4)


@pytest.mark.parametrize("orientation", ["RAS", "PLS", "IRA"])
@torch.inference_mode()
def test_voxels_that_both_grids_have_are_decided_without_their_neighbours(orientation: str) -> None:
    rng = np.random.default_rng(3)
    whole = Grid.around((0, 0, 0), (14, 11, 9), (2, 1, 3))
    region, scan = whole.box((2, 0, 1), (13, 10, 9)), whole.reoriented(orientation)
    net, image = network(4), torch.from_numpy(rng.normal(size=(1, *region.shape)).astype(np.float32))
    settings = window_settings(SlidingWindowInferer((6, 5, 4), overlap=0.5, mode="gaussian"))
    assert settings is not None
    windows = Windows.over(region.shape, settings)
    label_map = np.zeros(scan.shape, np.uint8)
    maps = ConfidenceMaps(np.zeros(scan.shape, np.uint8), np.zeros(scan.shape, np.uint8))
    decider = Decider(region, scan, label_map, {1: 1, 2: 2, 3: 3}, windows.axes, maps)
    for block in stream(image, windows, net):
        decider.add(block.start, block.logits)
    assert not decider._faces  # nothing is copied and kept
    logits, _ = joined(stream(image, windows, net), region.shape)
    expected = resample(logits.argmax(dim=0).numpy().astype(np.uint8), region, scan, order=0, outside=0)
    np.testing.assert_array_equal(label_map, expected)
    most = (255 * logits.softmax(dim=0).amax(dim=0)).round().numpy().astype(np.uint8)
    np.testing.assert_array_equal(maps.confidence, resample(most, region, scan, order=0, outside=0))


@torch.inference_mode()
def test_strips_and_blocks_change_no_label() -> None:
    rng = np.random.default_rng(3)
    region = Grid.around((1, 2, 3), (12, 10, 9), (1.1, 0.9, 1.3))
    logits = torch.from_numpy(rng.normal(size=(3, *region.shape)).astype(np.float32))
    scan = Grid.around((0, 0, 0), (30, 30, 30), (1, 1, 1)).reoriented("PIR")
    whole = np.zeros(scan.shape, np.uint8)
    Decider(region, scan, whole, {1: 1, 2: 2}).add((0, 0, 0), logits)
    assert set(np.unique(whole)) == {0, 1, 2}
    parts = np.zeros(scan.shape, np.uint8)
    decider = Decider(region, scan, parts, {1: 1, 2: 2}, axes=(2, 1, 0))
    cuts = [[0, 1, 5, region.shape[0]], [0, 4, region.shape[1]], [0, 3, 4, region.shape[2]]]
    for strip in ((0, 4), (3, region.shape[1])):
        for k, i in product(range(3), range(3)):
            start, stop = (cuts[0][i], strip[0], cuts[2][k]), (cuts[0][i + 1], strip[1], cuts[2][k + 1])
            block = logits[(slice(None), *map(slice, start, stop))]
            decider.add(start, block, strip_start=strip[0])
    np.testing.assert_array_equal(parts, whole)


def test_an_earlier_region_keeps_its_voxels() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0] = 9
    Decider(grid, grid, labels, {1: 5}).add((0, 0, 0), torch.stack([torch.zeros(4, 4, 4), torch.ones(4, 4, 4)]))
    assert (labels[0] == 9).all()
    assert (labels[1:] == 5).all()


def test_a_class_without_a_label_is_background_and_still_wins() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    logits = torch.zeros(3, 4, 4, 4)
    logits[1], logits[2, 0] = 1, 2
    labels = np.zeros((4, 4, 4), np.uint8)
    Decider(grid, grid, labels, {1: 5}).add((0, 0, 0), logits)
    assert not labels[0].any()
    assert (labels[1:] == 5).all()


def test_a_class_that_is_ruled_out_never_wins() -> None:
    region = Grid((4, 4, 4), np.eye(4))
    logits = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    logits[1] = -torch.inf
    scan = Grid.around(region.center_mm, region.size_mm, (0.7, 0.7, 0.7))
    labels = np.zeros(scan.shape, np.uint8)
    Decider(region, scan, labels, {1: 1, 2: 2}).add((0, 0, 0), logits)
    assert set(np.unique(labels)) == {0, 2}


@torch.inference_mode()
def test_large_logits_fit_half_precision() -> None:
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 30, 20, 12)).astype(np.float32))
    windows = Windows.over((30, 20, 12), WindowSettings((12, 8, 6), (0.5, 0.5, 0.5), mode="gaussian"))
    net = nn.Sequential(network(3), nn.Conv3d(3, 3, 1))
    net[1].weight.copy_(1e6 * torch.eye(3)[..., None, None, None])
    half, _ = joined(stream(image, windows, net, dtype=torch.float16), (30, 20, 12))
    assert half.isfinite().all()


def test_confidence_is_the_winners_mean_probability() -> None:
    logits = torch.zeros(2, 1, 1, 3)
    logits[1, 0, 0] = torch.tensor([np.log(3), np.log(9), -1])  # probabilities of class 1: 3/4 and 9/10
    grid = Grid((1, 1, 3), np.eye(4))
    decider = Decider(grid, grid, np.zeros((1, 1, 3), np.uint8), {1: 1})
    decider.add((0, 0, 0), logits)
    assert decider.confidence() == {1: pytest.approx((0.75 + 0.9) / 2)}


def test_inferers_that_do_more_than_windows_are_left_alone() -> None:
    class Own(SlidingWindowInferer):
        pass

    assert window_settings(Own((8, 8, 8))) is None
    assert window_settings(SlidingWindowInferer((8, 8))) is None
    assert window_settings(SlidingWindowInferer(8)) == WindowSettings((8, 8, 8))


@pytest.mark.parametrize(("shape", "roi", "overlap", "mode"), CASES)
def test_the_inferer_gives_what_monais_gives(shape, roi, overlap, mode) -> None:
    roi = tuple(-1 if n is None else n for n in roi)
    images = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 1, *shape)).astype(np.float32))
    net = network(3)
    expected = SlidingWindowInferer(roi, sw_batch_size=2, overlap=overlap, mode=mode)(images, net)
    logits = StreamingInferer(roi, sw_batch_size=2, overlap=overlap, mode=mode)(images, net)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    labels = StreamingInferer(roi, overlap=overlap, mode=mode, labels=True)(MetaTensor(images), net)
    assert isinstance(labels, MetaTensor)
    assert labels.dtype == torch.uint8
    torch.testing.assert_close(labels.as_tensor(), logits.argmax(dim=1, keepdim=True).to(torch.uint8))


def test_mirror_images_are_averaged_window_by_window() -> None:
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 1, 15, 9, 8)).astype(np.float32))
    net = network(3)

    def averaged(windows: torch.Tensor) -> torch.Tensor:
        return (
            net(windows)
            + net(windows.flip(2)).flip(2)
            + net(windows.flip(4)).flip(4)
            + net(windows.flip(2, 4)).flip(2, 4)
        ) / 4

    expected = SlidingWindowInferer((8, 8, 8), overlap=0.5, mode="gaussian")(image, averaged)
    found = StreamingInferer((8, 8, 8), overlap=0.5, mirror_axes=(0, 2))(image, net)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_bundle_may_name_the_inferer() -> None:
    from monai.bundle import ConfigParser

    config = {"inferer": {"_target_": "napari_seg.inference.StreamingInferer", "roi_size": [8, 9, 10], "overlap": 0.5}}
    inferer = ConfigParser(config).get_parsed_content("inferer")
    assert window_settings(inferer) == WindowSettings((8, 9, 10), (0.5, 0.5, 0.5), mode="gaussian")
    for wrong in ({"roi_size": (8, 8)}, {"roi_size": 8, "overlap": 1.0}, {"roi_size": 8, "mirror_axes": (3,)}):
        with pytest.raises(ValueError, match="expected"):
            StreamingInferer(**wrong)
    with pytest.raises(ValueError, match="its output has shape"):
        StreamingInferer(8, 2)(torch.zeros(1, 1, 20, 8, 8), lambda windows: windows[:1])


def test_where_no_classes_meet_nothing_is_interpolated() -> None:
    region = Grid((4, 4, 4), np.eye(4))
    for scan in (region.box((-1, -1, -1), (5, 5, 5)), Grid.around(region.center_mm, region.size_mm, (0.7, 0.7, 0.7))):
        labels = np.zeros(scan.shape, np.uint8)
        logits = torch.stack([torch.zeros(4, 4, 4), torch.ones(4, 4, 4)])
        Decider(region, scan, labels, {1: 3}).add((0, 0, 0), logits)
        np.testing.assert_array_equal(
            labels, 3 * region.contains(scan.to_world(np.moveaxis(np.indices(scan.shape), 0, -1)))
        )
