"""A bundle's transforms run within the budget: what their result takes is known before they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_threshold_bundle
from monai.transforms import (
    Affined,
    BorderPadd,
    Compose,
    CropForegroundd,
    DivisiblePadd,
    Lambdad,
    RepeatChanneld,
    Resized,
    ResizeWithPadOrCropd,
    Spacingd,
    SpatialPadd,
    Zoomd,
)
from torch import nn

from napari_seg.bundles.model import Model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import NapariSegError
from napari_seg.geometry import Grid
from napari_seg.inference import transforms as module
from napari_seg.inference.prepare import prepare
from napari_seg.memory import resident_bytes
from napari_seg.volume import Volume

SCAN = Volume(np.ones((1, 8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4)))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_threshold_bundle(tmp_path / "large"))


def prepared(bundle: Bundle, *transforms: Any, budget_bytes: int | None = None) -> tuple[int, ...]:
    model: Any = Model(nn.Identity(), Compose(transforms), None, "cpu")
    return tuple(prepare(SCAN, None, bundle, model, budget_bytes)[0].shape)


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(Spacingd("image", (0.002, 0.002, 0.002)), id="spacing"),
        pytest.param(Spacingd("image", (0.002, 0.002, 0.002), mode="nearest"), id="spacing by MONAI"),
        pytest.param(Resized("image", (1400, 1400, 1400)), id="size"),
        pytest.param(SpatialPadd("image", (2000, 2000, 2000)), id="padding"),
        pytest.param(BorderPadd("image", 1000), id="border"),
        pytest.param(DivisiblePadd("image", 2000), id="divisible"),
        pytest.param(ResizeWithPadOrCropd("image", (2000, 2000, 2000)), id="padding or crop"),
        pytest.param(Zoomd("image", 200.0, keep_size=False), id="zoom"),
        pytest.param(Affined("image", spatial_size=(2000, 2000, 2000)), id="affine"),
        pytest.param(CropForegroundd("image", "image", margin=1000, allow_smaller=False), id="margin"),
        pytest.param(RepeatChanneld("image", 2**24), id="channels"),
        pytest.param(Compose([Resized("image", (1400, 1400, 1400))]), id="inner list"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_made(bundle: Bundle, transform: Any) -> None:
    before = resident_bytes()
    with pytest.raises(NapariSegError, match="'large'") as caught:
        prepared(bundle, transform, budget_bytes=before + 2**30)
    assert caught.value.code == "environment.memory"
    assert resident_bytes() - before < 2**28


def test_what_fits_is_made(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_CHECKED_BYTES", 0)
    transforms = SpatialPadd("image", (12, 12, 12)), Compose([RepeatChanneld("image", 2)]), Resized("image", (9, 9, 9))
    assert prepared(bundle, *transforms, budget_bytes=resident_bytes() + 2**30) == (2, 9, 9, 9)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_transforms_that_run_out_of_memory_are_told_from_those_that_fail(bundle: Bundle, error: Exception) -> None:
    def fail(image: Any) -> Any:
        raise error

    with pytest.raises(NapariSegError) as caught:
        prepared(bundle, Lambdad("image", fail))
    assert caught.value.code == "environment.memory"
