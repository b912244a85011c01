"""Test that preprocessed cases on disk equal computed ones, and are computed again after any change."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import monai
import numpy as np
import pytest
import torch
from datasets import write_decathlon
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from monai.transforms import EnsureTyped, Lambdad, LoadImaged
from tiny_run import children, random_transforms, spoil_the_middle, volumes

from segnets.data import CachedCases  # isort: skip - within reach by tiny_run
from segnets.data.cache import fingerprint  # isort: skip


def test_a_second_start_computes_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_decathlon(tmp_path / "scans", cases=3)
    cases = [
        {"name": p.name[:7], "image": str(p), "label": str(root / "labelsTr" / p.name)}
        for p in sorted((root / "imagesTr").iterdir())
    ]
    loads: list[str] = []
    load = LoadImaged.__call__
    monkeypatch.setattr(LoadImaged, "__call__", lambda self, case: (loads.append(case["name"]), load(self, case))[1])

    def names_loaded(dtype: Any = np.float32) -> list[str]:
        loads.clear()
        loader = LoadImaged(["image", "label"], image_only=True, ensure_channel_first=True, dtype=dtype)
        dataset = CachedCases(cases, [loader], tmp_path / "cache")
        items = [dataset[n] for n in range(3)]
        assert all(isinstance(item["image"], MetaTensor) and item["image"].affine.shape == (4, 4) for item in items)
        fresh = load(loader, dict(cases[1]))
        assert torch.equal(items[1]["image"], fresh["image"])
        assert items[1]["name"] == "case_01"
        return list(loads)

    assert names_loaded() == ["case_00", "case_01", "case_02"]
    assert names_loaded() == []
    os.utime(cases[1]["label"], ns=(1, 1))
    assert names_loaded() == ["case_01"]
    assert names_loaded(np.float64) == ["case_00", "case_01", "case_02"]  # another transform
    for path in (tmp_path / "cache").iterdir():
        os.truncate(path, path.stat().st_size // 2)
    assert names_loaded() == ["case_00", "case_01", "case_02"]
    assert names_loaded() == []
    for path in (tmp_path / "cache").iterdir():
        spoil_the_middle(path)
    assert names_loaded() == ["case_00", "case_01", "case_02"]
    monkeypatch.setattr(monai, "__version__", "0")
    assert names_loaded() == ["case_00", "case_01", "case_02"]
    assert not list(tmp_path.rglob("*.part"))


def test_the_cache_may_be_deleted_while_it_is_used(tmp_path: Path) -> None:
    dataset = CachedCases(volumes(2), [EnsureTyped("image")], tmp_path / "cache")
    _ = dataset[0]
    shutil.rmtree(tmp_path / "cache")
    _ = dataset[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1


# --- fingerprints ---


class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.itself = self.apply  # a circle

    def apply(self, x: float) -> float:
        return x * self.factor


def functions(a: int) -> list[Any]:
    """Return functions that differ for different `a`."""
    in_tuple = eval(f"lambda x: x in ({a}, 5)")
    nested = eval(f"lambda x: [(lambda y: y + {a})(i) for i in x]")
    return [in_tuple, nested, lambda x: x * a, Scale(a).apply, Scale(a), Lambdad("image", lambda x: x + a), {(a, 1): a}]


def test_a_fingerprint_distinguishes_functions_and_is_equal_in_all_processes() -> None:
    prints = [[fingerprint(f) for f in functions(a)] for a in (1, 2)]
    assert not set(prints[0]) & set(prints[1])
    loss = fingerprint(DiceCELoss(softmax=True, weight=torch.ones(3)))
    assert loss != fingerprint(DiceCELoss(softmax=True, weight=torch.zeros(3)))
    with children().Pool(1) as pool:
        assert pool.apply(fingerprints_here) == [*prints[0], loss, *map(fingerprint, random_transforms())]


def fingerprints_here() -> list[str]:
    values = [*functions(1), DiceCELoss(softmax=True, weight=torch.ones(3)), *random_transforms()]
    return [fingerprint(value) for value in values]


def test_a_module_counts_by_its_name() -> None:
    def averaging(module: ModuleType) -> Any:
        return lambda x: module.mean(x)

    start = time.monotonic()
    assert fingerprint(averaging(np)) == fingerprint(averaging(np)) != fingerprint(averaging(torch))
    assert time.monotonic() - start < 5  # all that numpy holds would take minutes


def test_a_class_counts_by_its_name() -> None:
    prints = [fingerprint({"kinds": [kind, int]}) for kind in (FunctionType, type(np.mean), Scale)]
    assert prints[0] != prints[1] != prints[2] != prints[0]
    assert fingerprint({"kinds": [FunctionType, int]}) == prints[0]


def test_a_closure_may_have_a_name_without_a_value() -> None:
    def enclosing(has_value: bool) -> Any:
        if has_value:
            scale = 2.0
        return lambda x: x * scale

    assert fingerprint(enclosing(False)) == fingerprint(enclosing(False)) != fingerprint(enclosing(True))
