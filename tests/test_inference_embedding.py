"""Embedding of a scan: the pooled feature map of the lowest resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from bundles import write_plain_bundle, write_threshold_bundle
from torch import nn

from napari_seg.bundles.read import read_bundle
from napari_seg.geometry import Grid
from napari_seg.inference import embedding
from napari_seg.inference.embedding import deepest_features, describe_intensities, embedding_of
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.scan import located
from napari_seg.progress import ignore_progress
from napari_seg.volume import Volume


class Down(nn.Module):
    """Halve twice, with a global pooling beside, and come back."""

    def __init__(self, times: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.AvgPool3d(2) for _ in range(times)])
        self.gate = nn.AdaptiveAvgPool3d(1)
        self.twice = nn.Identity()
        self.up = nn.Upsample(scale_factor=2**times)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for one in self.down:
            image = one(image)
        self.gate(image)
        return self.up(self.twice(image * 2))


def test_the_last_map_of_the_lowest_resolution_is_pooled() -> None:
    window = torch.arange(8.0**3).reshape(1, 1, 8, 8, 8)
    found = deepest_features(Down(), window)
    pooled = 2 * nn.functional.avg_pool3d(window, 4)
    assert found is not None
    np.testing.assert_allclose(found, [pooled.mean(), pooled.max()])


def test_a_network_of_one_resolution_has_none() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.AdaptiveAvgPool3d(1))
    assert deepest_features(network, torch.zeros(1, 1, 8, 8, 8)) is None
    assert not any(module._forward_hooks for module in network.modules())


def scan_of(seed: int, size: int = 20) -> Volume:
    array = np.random.default_rng(seed).normal(size=(1, size, size, size)).astype(np.float32)
    return Volume(array, Grid((size, size, size), np.eye(4)), "scan", "")


def embed(scan: Volume, root: Path) -> np.ndarray | None:
    bundle = read_bundle(root, trust=True)
    options = SegmentOptions(device="cpu", tta="none")
    settings, regions, _, _ = located(scan, bundle, options, ignore_progress)
    return embedding_of(scan, regions, settings)


def test_equal_scans_have_equal_embeddings(tmp_path: Path) -> None:
    root = write_plain_bundle(tmp_path / "plain")
    one, same, other = (embed(scan_of(seed), root) for seed in (0, 0, 1))
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.shape == (24,)  # mean and maximum of 4 + 8 channels, which the network joins
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)


def test_a_few_windows_of_a_large_scan_are_looked_at(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    seen = []
    monkeypatch.setattr(embedding, "deepest_features", lambda network, window: seen.append(window) or np.ones(3))
    found = embed(scan_of(0, 60), write_plain_bundle(tmp_path / "plain"))
    assert len(seen) == embedding.MAX_WINDOWS
    assert found is not None
    assert found.tolist() == [1, 1, 1]


def test_a_network_without_feature_maps_gives_none(tmp_path: Path) -> None:
    assert embed(scan_of(0), write_threshold_bundle(tmp_path / "threshold")) is None


def test_intensities_do_not_depend_on_their_scale() -> None:
    scan = scan_of(3)
    brighter = Volume(scan.array * 1000 + 5, scan.grid, "scan", "")
    found = describe_intensities(scan)
    np.testing.assert_allclose(found, describe_intensities(brighter), rtol=1e-3, atol=1e-4)
    assert found.shape == (13,)
    assert np.isfinite(describe_intensities(Volume(np.zeros_like(scan.array), scan.grid, "scan", ""))).all()
