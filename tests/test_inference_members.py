"""Members of a model: the networks of an ensemble, or views of one network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import write_plain_bundle
from nnunet_models import configuration, write_model
from torch import nn

from napari_seg.bundles.nnunet.load import FoldAverage, SliceNetwork
from napari_seg.bundles.read import read_bundle
from napari_seg.geometry import Grid
from napari_seg.inference.backends.averaging import averaged, displaced
from napari_seg.inference.members import SHIFTS, label_maps, members_of
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.scan import located
from napari_seg.inference.segment import segment
from napari_seg.progress import ignore_progress
from napari_seg.volume import Volume


@pytest.fixture
def scan() -> Volume:
    array = np.random.default_rng(0).normal(size=(1, 30, 26, 22)).astype(np.float32)
    return Volume(array, Grid((30, 26, 22), np.diag([1.0, 1.0, 1.0, 1.0])), "scan", "")


def settings_of(scan: Volume, root: Path | str, **options: Any) -> tuple:
    chosen = SegmentOptions(device="cpu", backend="torch", tta="none", **options)
    settings, regions, _, _ = located(scan, read_bundle(root), chosen, ignore_progress)
    return settings, regions


@torch.inference_mode()
def test_a_displaced_network_sees_the_window_moved() -> None:
    windows = torch.randn(2, 1, 40, 36, 8)
    seen = []

    def run(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.clone())
        return batch * 2

    found = displaced(run, 2, (1,))(windows)
    torch.testing.assert_close(seen[0].flip(3)[:, :, 2:, 2:], windows[:, :, :-2, :-2])
    torch.testing.assert_close(found[:, :, :-2, :-2], windows[:, :, :-2, :-2] * 2)
    torch.testing.assert_close(found[:, :, -1], found[:, :, -3])  # the last logits before are repeated
    assert displaced(run, 0, ()) is run


@torch.inference_mode()
def test_the_mean_of_the_views_is_the_average_at_test_time() -> None:
    network, windows = nn.Conv3d(1, 2, 3, stride=1, padding=1), torch.randn(1, 1, 40, 36, 34)
    views = [displaced(network, shift, ())(windows) for shift in range(2)]
    inner = (slice(None), slice(None), *[slice(0, -1)] * 3)
    torch.testing.assert_close(averaged(network, (), 2)(windows)[inner], (sum(views) / 2)[inner])


def test_one_network_sees_shifted_windows(scan: Volume, tmp_path: Path) -> None:
    settings, regions = settings_of(scan, write_plain_bundle(tmp_path / "plain"))
    members = members_of(settings)
    assert members is not None
    assert [one.windows.shift for one in members.settings if one.windows] == list(SHIFTS)
    maps = list(label_maps(scan, regions, members, ignore_progress))
    usual = segment(scan, tmp_path / "plain", device="cpu", backend="torch").array
    assert np.array_equal(maps[0], usual)
    assert any(not np.array_equal(usual, one) for one in maps[1:])


def test_a_network_trained_with_mirror_images_sees_them(scan: Volume, tmp_path: Path) -> None:
    root = write_model(tmp_path, entry=configuration((16, 16, 16)), mirror_axes=[0, 2])
    settings, _ = settings_of(scan, root)
    members = members_of(settings)
    assert members is not None
    assert [one.windows.reversed_axes for one in members.settings if one.windows] == [(), (0,), (2,)]
    assert members.description == "the windows and 2 mirror images"


def test_the_folds_of_a_model_are_its_members(scan: Volume, tmp_path: Path) -> None:
    root = write_model(tmp_path, entry=configuration((16, 16, 16)), folds=(0, 1, 2))
    settings, regions = settings_of(scan, root)
    members = members_of(settings)
    assert members is not None
    assert members.description == "3 networks"
    maps = list(label_maps(scan, regions, members, ignore_progress))
    for number, found in enumerate(maps):
        one = replace(read_bundle(root), folds=(f"fold_{number}",))  # type: ignore[call-arg]
        assert np.array_equal(found, segment(scan, one, device="cpu", backend="torch", tta="none").array)


def test_networks_of_slices_and_of_trained_bundles_have_members(scan: Volume, tmp_path: Path) -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList([nn.Conv3d(1, 2, 1), nn.Conv3d(1, 2, 1)])

    settings, _ = settings_of(scan, write_plain_bundle(tmp_path / "plain"))
    slices = SliceNetwork(FoldAverage([nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)]))
    for network in (Ensemble(), slices):
        members = members_of(replace(settings, model=replace(settings.model, network=network)))
        assert members is not None
        assert members.description == "2 networks"
    assert members_of(replace(settings, windows=None)) is None
