"""Before a run a scan is held against the bundle: refused where the result would be meaningless, doubted otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import phantoms
import pytest
from bundles import write_threshold_bundle
from monai.transforms import Compose, Orientationd, Spacingd
from nnunet_models import configuration, write_model

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.windows import WindowSettings
from napari_seg.errors import BundleError
from napari_seg.geometry import Grid
from napari_seg.inference.estimate import estimate
from napari_seg.inference.fitness import check_fit, doubts
from napari_seg.inference.segment import segment
from napari_seg.volume import Source, Volume


def volume_of(array: np.ndarray, spacing_mm: tuple = (1, 1, 1), orientation: str = "RAS", modality: str = "") -> Volume:
    """A volume whose voxel size is given by patient axis: right, front, top."""
    grid = Grid(array.shape, np.diag([*spacing_mm, 1.0])).reoriented(orientation)
    return Volume(np.resize(array, (1, *grid.shape)), grid, modality=modality)


def model_of(pixdim: Any = None, axcodes: str = "RAS") -> Any:
    transforms = [] if pixdim is None else [Orientationd("image", axcodes), Spacingd("image", pixdim)]
    return SimpleNamespace(preprocessing=Compose(transforms))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_threshold_bundle(tmp_path / "b", roi=(16, 16, 16)), trust=True)


def codes(volume: Volume, bundle: Bundle, model: Any = None, windows: WindowSettings | None = None) -> list[str]:
    return [notice.code for notice in doubts(volume, bundle, model or model_of(), windows)]


def test_other_channels_and_modalities_are_refused(bundle: Bundle) -> None:
    scan = volume_of(np.zeros((8, 8, 8), np.int16))
    check_fit(scan, bundle)
    check_fit(replace(scan, modality="MR"), bundle)
    with pytest.raises(BundleError) as caught:
        check_fit(replace(scan, modality="CT"), bundle)
    assert caught.value.code == "bundle.modality"
    with pytest.raises(BundleError, match=r"1 channel\(s\); bundle 'threshold' expects 2 \(T1, T2\)") as caught:
        check_fit(scan, replace(bundle, in_channels=2, channel_names=("T1", "T2")))
    assert caught.value.code == "bundle.channels"


def test_one_slice_is_for_models_of_2d_images(bundle: Bundle) -> None:
    scan = volume_of(np.zeros((8, 8, 1), np.int16))
    check_fit(scan, replace(bundle, spatial_dims=2))
    slices = replace(bundle, takes_one_slice=True)
    for volume, other, segmented in (
        (scan, bundle, "volumes"),
        (replace(scan, source=Source("image2d")), bundle, "volumes"),
        (scan, slices, "volumes slice by slice"),
    ):
        with pytest.raises(BundleError, match=f"the scan has one slice; .* segments {segmented};") as caught:
            check_fit(volume, other)
        assert caught.value.code == "bundle.dimensions"
    for known in (True, None):
        check_fit(replace(scan, source=Source("image2d")), replace(bundle, takes_one_slice=known))
    with pytest.raises(BundleError, match="segments volumes; choose"):
        check_fit(scan, replace(bundle, takes_one_slice=None))


def test_a_model_of_slices_takes_one_slice_of_any_format_if_it_lies_as_in_training(tmp_path: Path) -> None:
    model = read_bundle(write_model(tmp_path, "2d", configuration((16, 16), (1.0, 1.0)), seed=1))
    array = np.random.default_rng(0).normal(size=(40, 32, 1)).astype(np.float32)
    found = []
    for format in ("nifti", "itk", "dicom", "image2d"):
        scan = replace(volume_of(array, (0.5, 0.5, 5)), source=Source(format))
        found.append(segment(scan, model, device="cpu").array)
        assert np.array_equal(found[0], found[-1])
    assert len(np.unique(found[0])) > 1
    both = segment(replace(scan, source=Source("nifti")), f"{model.root.parent}:2d+2d", device="cpu")
    assert np.array_equal(both.array, found[0])
    across = replace(model, configuration=replace(model.configuration, transpose=(2, 0, 1)))
    with pytest.raises(BundleError, match="segments volumes slice by slice"):
        check_fit(scan, across)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-1024, 1500, []), (-150, 300, ["fitness.intensities"]), (0, 255, ["fitness.intensities"])],
)
def test_a_ct_has_hounsfield_units(bundle: Bundle, low: int, high: int, expected: list[str]) -> None:
    scan = volume_of(np.linspace(low, high, 1000).reshape(10, 10, 10).astype(np.int16))
    assert codes(scan, replace(bundle, modality="CT")) == expected
    assert not codes(volume_of(np.zeros((9, 9, 9)) + 7), bundle)


def test_air_of_a_ct_is_no_mr(bundle: Bundle) -> None:
    array = np.zeros((10, 10, 10), np.int16)
    array[0, 0, 0] = -2000  # one outlier
    assert not codes(volume_of(array), bundle)
    array[:2] = -1000
    assert codes(volume_of(array), bundle) == ["fitness.modality"]
    assert not codes(volume_of(array, modality="MR"), bundle)


@pytest.mark.parametrize(
    ("spacing_mm", "orientation", "model", "expected"),
    [
        ((1, 1, 5), "RAS", model_of(1.0), True),
        ((1, 1, 3), "RAS", model_of(1.0), False),
        ((0.2, 0.2, 0.2), "RAS", model_of(1.0), False),
        ((1, 1, 5), "SPL", model_of((0.8, 0.8, 3)), False),
        ((5, 1, 1), "SPL", model_of((0.8, 0.8, 3)), True),
        ((5, 1, 1), "ASL", model_of((0.8, 3, 0.8), "IRP"), False),
        ((1, 1, 9), "RAS", model_of((1, 1, -1)), False),
        ((1, 1, 9), "RAS", model_of(), False),
    ],
)
def test_thick_slices_are_doubted_along_the_axes_of_the_patient(
    bundle: Bundle, spacing_mm: tuple, orientation: str, model: Any, expected: bool
) -> None:
    scan = volume_of(np.zeros((9, 10, 11), np.int16), spacing_mm, orientation)
    assert codes(scan, bundle, model) == ["fitness.spacing"] * expected


def test_a_scan_that_fills_little_of_a_window_is_doubted(bundle: Bundle) -> None:
    scan = volume_of(np.zeros((20, 40, 16), np.int16), (2, 1, 1), "LPS")  # 40 x 40 x 16 mm
    assert not codes(scan, bundle, model_of(1.0), WindowSettings((80, 80, 16)))
    assert codes(scan, bundle, model_of(1.0), WindowSettings((80, 82, 16))) == ["fitness.field_of_view"]
    assert not codes(scan, bundle, model_of(1.0, "SPL"), WindowSettings((16, 80, 80)))
    assert not codes(scan, bundle, model_of(), WindowSettings((40, None, 0)))


def test_doubts_come_with_the_result_and_with_the_estimate(bundle: Bundle) -> None:
    head = phantoms.head()
    thick = Volume(head.array[..., ::4], Grid((20, 26, 4), head.grid.affine @ np.diag([1, 1, 4, 1])))
    found = segment(thick, bundle)
    assert [notice.code for notice in found.notices] == ["fitness.spacing"]
    cost = estimate(thick, bundle)
    assert cost is not None
    assert [notice.code for notice in cost.doubts] == ["fitness.spacing"]


def test_an_empty_result_is_flagged(bundle: Bundle) -> None:
    empty = volume_of(np.full((70, 70, 60), 3, np.int16))
    found = segment(empty, bundle)
    assert [notice.code for notice in found.notices] == ["result.empty"]
    assert "found nothing of bright, upper" in found.notices[0].message
