"""Preparation of the network's image as nnU-Net does it, and segmentation with models of its kind."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_models import bundle_of, model_of, resolved
from scipy.ndimage import binary_fill_holes
from skimage.transform import resize
from torch import nn

from napari_seg.bundles.nnunet.configuration import Normalisation, Resampling
from napari_seg.errors import EnvironmentFault
from napari_seg.geometry import Grid
from napari_seg.inference.nnunet.prepare import box_of_content, content_mask, prepare_as_nnunet
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.segment import segment
from napari_seg.inference.settings import set_up
from napari_seg.memory import resident_bytes
from napari_seg.volume import Segment, Segmentation, Volume


def scan(shape: tuple[int, int, int] = (30, 26, 22), spacing: tuple = (0.8, 0.9, 1.3), border: int = 0) -> Volume:
    """Return a scan of coarse noise, within a border of zeros."""
    noise = np.random.default_rng(0).integers(-90, 90, [n // 4 + 1 for n in shape]) + 10
    array = noise.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(slice(n) for n in shape)].astype(np.int16)
    if border:
        inner = tuple(slice(border, n - border - 1) for n in shape)
        framed = np.zeros_like(array)
        framed[inner] = array[inner]
        array = framed
    return Volume(array[None], Grid(shape, np.diag([*spacing, 1.0])))


def prepared(volume: Volume, previous: Segmentation | None = None, budget: int | None = None, **changes: Any) -> Any:
    found = resolved(**changes)
    return prepare_as_nnunet(volume, bundle_of(found), found, budget, previous)


def test_the_image_is_cropped_normalised_and_resampled() -> None:
    volume = scan(spacing=(0.8, 0.9, 1.25), border=3)
    image, inverse = prepared(volume)
    cropped = volume.array[0, 3:26, 3:22, 3:18].T.astype(np.float32)  # what is not 0, as z, y, x
    values = (cropped.clip(-100, 150) - 10) / 40
    shape = (round(15 * 1.25), round(19 * 0.9), round(23 * 0.8))
    expected = resize(values, shape, 3, mode="edge", anti_aliasing=False)
    assert image.shape == (1, *shape)
    assert np.abs(image[0].numpy() - expected).max() < 1e-5
    # the grid covers the same box: half a voxel before the first one
    assert inverse.grid.shape == shape
    assert inverse.shown.shape == cropped.shape
    assert np.allclose(inverse.grid.to_world((-0.5, -0.5, -0.5)), inverse.shown.to_world((-0.5, -0.5, -0.5)))
    assert np.allclose(inverse.grid.center_mm, inverse.shown.center_mm)
    assert np.allclose(inverse.shown.to_world((0, 0, 0)), volume.grid.to_world((3, 3, 3)))


def test_slices_keep_their_distance() -> None:
    image, inverse = prepared(scan(), patch_size=(8, 8), spacing_mm=(1.8, 1.6))
    assert image.shape == (1, 22, 13, 15)
    assert inverse.nearest_axes == ()
    assert prepared(scan(spacing=(0.8, 0.9, 5)), patch_size=(8, 8), spacing_mm=(1.8, 1.6))[1].nearest_axes == (0,)


def test_each_channel_has_its_normalisation_and_shares_the_box() -> None:
    first, second = scan(border=3).array[0], np.zeros((30, 26, 22), np.int16)
    second[1, 2, 3] = 50
    volume = Volume(np.stack([first, second]), scan().grid)
    how = (Normalisation("z-score", inside_mask=True), Normalisation("rescale"))
    image, inverse = prepared(volume, normalisation=how, resample_image=Resampling("none"))
    assert inverse.shown.shape == (15, 20, 25)
    mask = binary_fill_holes((first != 0) | (second != 0))
    values = first[mask].astype(float)
    expected = np.where(mask, (first - values.mean()) / values.std(), 0)[1:26, 2:22, 3:18]
    assert np.allclose(image[0].numpy(), expected.T, atol=1e-5)
    assert image[1].numpy().sum() == image[1, 0, 0, 0] == 1


def test_holes_are_filled_as_scipy_does() -> None:
    noise = np.random.default_rng(0).random((2, 12, 14, 13)) > 0.8
    noise[0, 3:9, 3:9, 3:9] = True
    noise[:, 4:8, 4:8, 4:8] = False
    assert np.array_equal(content_mask(noise), binary_fill_holes(noise[0] | noise[1]))
    assert content_mask(np.ones((1, 3, 3, 3), bool)).all()


def test_the_box_holds_all_that_is_not_0() -> None:
    channels = np.zeros((2, 9, 8, 7), np.int16)
    assert box_of_content(channels) == ((0, 0, 0), (9, 8, 7))
    channels[0, 2, 3, 4], channels[1, 5, 1, 4] = -1, 1
    assert box_of_content(channels) == ((2, 1, 4), (6, 4, 5))


def test_labels_of_the_previous_stage_become_channels() -> None:
    volume = scan(spacing=(1, 1, 1), border=2)
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[5:15, 5:20, 4:9], labels[10:25, 8:12, 9:15] = 1, 2
    previous = Segmentation(labels, volume.grid, (Segment(1, "a", (0, 0, 0)), Segment(2, "b", (0, 0, 0))))
    image, _ = prepared(volume, previous)
    assert image.shape == (3, 17, 21, 25)
    cropped = labels[2:27, 2:23, 2:19].T
    assert np.array_equal(image[1:].numpy(), np.stack([cropped == 1, cropped == 2]))
    image, _ = prepared(volume, previous, spacing_mm=(0.5, 0.5, 0.5))
    doubled = cropped.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert image.shape[1:] == doubled.shape
    assert (image[1].numpy() != (doubled == 1)).mean() < 0.01
    assert ((image[1:] == 0) | (image[1:] == 1)).all()


def test_what_does_not_fit_is_refused_before_it_is_computed() -> None:
    for size in (1e-3, 1e-9):
        with pytest.raises(EnvironmentFault) as caught:
            prepared(scan(), budget=2**34, spacing_mm=(size, size, size))
        assert caught.value.code == "environment.memory"


def test_an_axis_of_very_many_voxels_counts_with_its_matrix() -> None:
    with pytest.raises(EnvironmentFault, match="memory") as raised:  # the image alone takes 4 MB
        prepared(scan(), spacing_mm=(3e-5, 1e6, 1e6), budget=resident_bytes() + 2**29)
    assert raised.value.code == "environment.memory"


def test_the_scan_is_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_seg.inference.resampling.SLAB_BYTES", 2**22)
    volume = Volume(np.full((1, 256, 256, 128), 7, np.int16), Grid((256, 256, 128), np.eye(4)))
    prepared(volume, spacing_mm=(4.0, 4.0, 4.0))
    tracemalloc.start()
    prepared(volume, spacing_mm=(4.0, 4.0, 4.0), normalisation=(Normalisation("z-score"),))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * volume.array.size


class Brightness(nn.Module):
    """Logits of three classes by the mean of three voxels along each axis, which depends a little on the window."""

    def __init__(self, is_2d: bool = False) -> None:
        super().__init__()
        self.kernel = (1, 3, 3) if is_2d else (3, 3, 3)
        self.middle = nn.Parameter(torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None, None])

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        pads = [n // 2 for n in reversed(self.kernel) for _ in range(2)]
        mean = nn.functional.avg_pool3d(nn.functional.pad(windows, pads, mode="replicate"), self.kernel, 1)
        return -((mean + 0.1 * torch.linspace(-1, 1, windows.shape[-1]) - self.middle) ** 2)


def expected_labels(volume: Volume, found: Any, network: nn.Module) -> np.ndarray:
    """Return the labels (I, J, K) by resampling the logits of the whole network's grid, then argmax."""
    image, inverse = prepare_as_nnunet(volume, bundle_of(found), found)
    windows = model_of(found, network).inferer
    from napari_seg.inference.windows.layout import Windows

    laid = Windows.over(tuple(image.shape[1:]), windows)  # type: ignore[arg-type]
    total, weight = torch.zeros((3, *laid.padded_shape)), torch.zeros(laid.padded_shape)
    for start in np.ndindex(*map(len, laid.starts)):
        box = tuple(slice(s[n], s[n] + size) for s, n, size in zip(laid.starts, start, laid.size, strict=True))
        with torch.no_grad():
            total[(slice(None), *box)] += network(laid.pad(image)[(slice(None), *box)][None])[0] * laid.weights()
        weight[box] += laid.weights()
    inner = tuple(slice(b, b + n) for b, n in zip(laid.before, image.shape[1:], strict=True))
    logits = (total / weight)[(slice(None), *inner)]
    labels = inverse.values(logits, nearest=False).argmax(0).numpy().astype(np.uint8)
    result = np.zeros(volume.grid.shape, np.uint8)
    i, j, k = np.rint(volume.grid.to_index(inverse.shown.to_world((0, 0, 0)))).astype(int)
    turned = labels.transpose(2, 1, 0)
    result[i : i + turned.shape[0], j : j + turned.shape[1], k : k + turned.shape[2]] = turned
    return result


@pytest.mark.parametrize(
    ("volume", "changes"),
    [
        pytest.param(scan(), {}, id="volume"),
        pytest.param(scan(border=4), {}, id="cropped"),
        pytest.param(scan((30, 26, 12), (0.9, 0.9, 4.5)), {"spacing_mm": (2.0, 1.2, 1.2)}, id="thick slices"),
        pytest.param(scan((30, 26, 24), (0.9, 0.9, 3.2)), {"spacing_mm": (6.4, 1.2, 1.2)}, id="halfway"),
        pytest.param(scan((30, 26, 24), (0.9, 0.9, 6.4)), {"spacing_mm": (3.2, 1.2, 1.2)}, id="ties"),
        pytest.param(scan(), {"patch_size": (12, 12), "spacing_mm": (1.1, 1.1)}, id="slices"),
        pytest.param(scan((7, 6, 5)), {}, id="smaller than a window"),
        pytest.param(scan(), {"resample_values": Resampling(order=3)}, id="logits by a spline"),
    ],
)
def test_labels_are_decided_on_the_scans_grid(
    volume: Volume, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolved(**changes)
    network = Brightness(found.is_2d).eval()
    monkeypatch.setattr("napari_seg.bundles.load.load_model", lambda *_: model_of(found, network))
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0/checkpoint_final.pth").touch()  # only its digest is read
    bundle = replace(bundle_of(found), root=tmp_path)
    result = segment(volume, bundle, windows="even", crop=False, backend="torch", tta="none")
    expected = expected_labels(volume, found, network)
    assert (result.array != expected).sum() <= 1e-4 * expected.size
    assert set(np.unique(expected)) == {0, 1, 2}
    assert {n.code for n in result.notices} <= {"fitness.field_of_view", "fitness.spacing"}


def test_the_windows_of_the_model_count(monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolved()
    model = model_of(found, Brightness(), mirror_axes=(0, 2))
    monkeypatch.setattr("napari_seg.bundles.load.load_model", lambda *_: model)
    settings = set_up(scan(), bundle_of(found), SegmentOptions())
    assert settings.windows == model.inferer
    assert settings.windows is not None
    assert settings.windows.passes == 4


def test_monai_is_not_imported() -> None:
    code = "import sys, napari_seg.inference.engine, napari_seg.inference.nnunet.prepare; print('monai' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
