"""bfloat16 is chosen where a part of the scan's first window has the same labels as in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bundles import write_plain_bundle, write_threshold_bundle
from torch import nn

from napari_seg.bundles.load import load_model
from napari_seg.bundles.model import Model
from napari_seg.bundles.output import Output, independent_channels
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.windows import WindowSettings
from napari_seg.cohort.cohort import Cohort
from napari_seg.errors import EnvironmentFault
from napari_seg.inference import region
from napari_seg.inference.backends import choose
from napari_seg.inference.backends.precision import MAX_CHECKED_VOXELS, Agreement, agreement, checked_part
from napari_seg.inference.segment import segment
from napari_seg.inference.windows.layout import Windows
from napari_seg.volume import Volume

WINDOW = torch.linspace(-1, 1, 8**3).reshape(1, 1, 8, 8, 8)


class Scaled(nn.Module):
    """Class 1 where a product, rounded as autocast does, is above a cut."""

    def __init__(self, factor: float, cut: float, first: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, factor)
        self.cut, self.first = cut, first

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        product = self.conv(image).float() - self.cut
        return torch.cat([torch.full_like(product, self.first), product], dim=1)


def test_labels_are_compared_in_all_voxels_and_in_structures() -> None:
    assert agreement(Scaled(1.0, 0.0), WINDOW, Output()) == Agreement(1.0, 1.0)
    # the last voxel but one is 0.996086, in bfloat16 0.99609375
    found = agreement(Scaled(1.0, 0.99609), WINDOW, Output())
    assert found == Agreement(1 - 1 / 512, 0.5)
    assert not found.holds
    assert str(found) == "99.80% of the first window's labels equal (50.00% in structures)"


def test_a_lost_structure_is_not_outweighed_by_air() -> None:
    assert Agreement(0.9995, 0.995).holds
    assert not Agreement(0.9995, 0.9).holds
    assert not Agreement(0.998, 1.0).holds


def test_logits_that_are_not_finite_do_not_agree() -> None:
    assert not agreement(Scaled(float("inf"), 0.0), WINDOW, Output()).holds


def test_independent_channels_are_compared_by_their_thresholds() -> None:
    channels = independent_channels([0.5, 0.5], "sigmoid")
    output = Output("sigmoid", "thresholds", channels=channels)
    # channel 0 is 1 everywhere, so that by the greatest value the second class would hardly ever win
    assert agreement(Scaled(1.0, 0.0, first=1.0), WINDOW, output) == Agreement(1.0, 1.0)
    assert agreement(Scaled(1.0, 0.99609, first=1.0), WINDOW, output).equal == 1 - 1 / 512


def test_the_middle_of_the_window_with_content_nearest_to_the_middle_is_checked() -> None:
    image = torch.arange(40 * 32 * 32, dtype=torch.float32).reshape(1, 40, 32, 32)
    windows = Windows.over((40, 32, 32), WindowSettings(roi_size=(32, 32, 32), overlap=(0.5, 0.5, 0.5)))
    assert windows.starts[0] == (0, 8)
    torch.testing.assert_close(checked_part(windows, image)[0], image[:, 0:32])  # no shorter window has 32 as a divisor
    without_first = windows.without_empty(lambda start, size: start[0] > 0)
    torch.testing.assert_close(checked_part(without_first, image)[0], image[:, 8:40])


def test_the_checked_part_is_small() -> None:
    settings = WindowSettings(roi_size=(192, 128, 160), overlap=(0.25, 0.25, 0.25))
    windows = Windows.over((192, 128, 160), settings)
    image = torch.zeros(2, 192, 128, 160)
    image[:, 64:128, 32:96, 48:112] = 1
    part = checked_part(windows, image)
    assert part.shape == (1, 2, 64, 64, 64)
    assert part.numel() == 2 * MAX_CHECKED_VOXELS
    assert bool((part == 1).all())


@pytest.fixture
def always_checked(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Check every scan, as on a processor with bfloat16; the list has the windows that were checked."""
    checked = []

    def noting(network: nn.Module, window: torch.Tensor, output: Output) -> Agreement:
        checked.append(window)
        return agreement(network, window, output)

    monkeypatch.setattr(region, "MIN_CHECKED_FLOP", 0)
    monkeypatch.setattr(region, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(region, "agreement", noting)
    return checked


@pytest.fixture
def robust(tmp_path: Path) -> Bundle:
    return read_bundle(write_threshold_bundle(tmp_path / "robust"), trust=True)


@pytest.fixture
def fragile(tmp_path: Path) -> Bundle:
    return read_bundle(write_plain_bundle(tmp_path / "fragile"))


def test_a_robust_network_runs_in_bfloat16(head: Volume, robust: Bundle, always_checked: list) -> None:
    results = [segment(head, robust, device="cpu") for _ in range(2)]
    for result in results:
        assert result.run == {"match": "fast", "precision": "bfloat16", "equal_labels": 1.0, "backend": "torch"}
    assert len(always_checked) == 2
    exact = segment(head, robust, device="cpu", precision="float32")
    assert exact.run == {"match": "fast", "precision": "float32", "backend": "torch"}
    assert (results[0].array == exact.array).all()
    assert len(always_checked) == 2


def test_a_fragile_network_runs_in_float32(head: Volume, fragile: Bundle, always_checked: list) -> None:
    first = segment(head, fragile, device="cpu")
    assert first.run["precision"] == "float32"
    assert first.run["equal_labels"] < 0.999
    assert (first.array == segment(head, fragile, device="cpu", precision="float32").array).all()


def test_the_number_format_of_a_scan_does_not_depend_on_earlier_scans(
    head: Volume, robust: Bundle, always_checked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(region, "agreement", lambda *_: Agreement(0.9, 0.9))
        assert segment(head, robust, device="cpu").run["precision"] == "float32"
    assert segment(head, robust, device="cpu").run["precision"] == "bfloat16"


def test_exact_labels_are_computed_in_float32(head: Volume, robust: Bundle, always_checked: list) -> None:
    assert segment(head, robust, device="cpu", match="exact").run["precision"] == "float32"
    assert always_checked == []


def test_small_scans_are_not_checked(head: Volume, robust: Bundle) -> None:
    assert segment(head, robust, device="cpu").run == {"match": "fast", "precision": "float32", "backend": "torch"}


def test_a_network_that_takes_no_shorter_window_runs_in_float32(
    head: Volume, robust: Bundle, always_checked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise RuntimeError("size")

    monkeypatch.setattr(region, "agreement", refusing)
    assert segment(head, robust, device="cpu").run == {"match": "fast", "precision": "float32", "backend": "torch"}


def test_a_backend_that_refuses_bfloat16_gets_float32(
    head: Volume, robust: Bundle, always_checked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_backend, tried = choose.make_backend, []

    def refusing(requested: str, model: object, *rest: object) -> object:
        tried.append(model.dtype)
        if model.dtype == torch.bfloat16:
            raise EnvironmentFault("environment.precision", "too low")
        return make_backend(requested, model, *rest)

    monkeypatch.setattr(choose, "make_backend", refusing)
    first, second = (segment(head, robust, device="cpu").run for _ in range(2))
    assert first == second == {"match": "fast", "precision": "float32", "equal_labels": 1.0, "backend": "torch"}
    assert tried == [torch.bfloat16, torch.float32] * 2


def test_a_network_that_is_too_inexact_is_compiled_once(robust: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    tried = []

    def refusing(model: Model, shape: tuple[int, ...]) -> None:
        tried.append(shape)
        raise EnvironmentFault("environment.precision", "too low")

    monkeypatch.setattr(choose, "cached_compile", refusing)
    model = load_model(robust, "cpu").computing_in(torch.bfloat16)
    for shape in ((1, 1, 8, 8, 8), (1, 1, 8, 8, 8), (1, 1, 8, 8, 16)):
        with pytest.raises(EnvironmentFault, match="too low"):
            choose.make_backend("openvino", model, shape, 1.0, 0)
    assert tried == [(1, 1, 8, 8, 8), (1, 1, 8, 8, 16)]


def test_the_same_model_is_shared_by_number_formats(robust: Bundle) -> None:
    model = load_model(robust, "cpu")
    half = model.computing_in(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.network is model.network
    assert half.statistics.window_costs is model.statistics.window_costs
    assert model.computing_in(torch.bfloat16) is half
    assert half.computing_in(torch.float32) is model.computing_in(torch.float32) is model


@pytest.mark.usefixtures("inline_cohorts")
def test_the_record_names_the_precision(study: Path, robust: Bundle, tmp_path: Path, always_checked: list) -> None:
    list(Cohort(study / "copy.nii.gz", tmp_path / "out", robust))
    record = json.loads((tmp_path / "out" / "copy_seg.json").read_text())
    assert record["run"] == {"match": "fast", "precision": "bfloat16", "equal_labels": 1.0, "backend": "torch"}
    assert record["options"]["precision"] == "auto"
