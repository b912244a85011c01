"""Costs of networks on disk: found again, counted again if the file is damaged, and never mixed up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from napari_seg.inference.backends import cache_folder, cost_cache

WINDOW = torch.zeros(1, 1, 8, 8, 8)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Return the list of networks whose costs were counted."""
    networks: list[nn.Module] = []
    real = cost_cache.network_cost
    monkeypatch.setenv(cache_folder.CACHE_VARIABLE, os.fspath(tmp_path / "cache"))
    monkeypatch.setattr(
        cost_cache, "network_cost", lambda network, window: networks.append(network) or real(network, window)
    )
    return networks


def test_a_cost_is_counted_once_for_a_network_and_a_size(counted: list[nn.Module]) -> None:
    first = cost_cache.cached_cost(nn.Conv3d(1, 2, 3, padding=1), WINDOW)
    assert cost_cache.cached_cost(nn.Conv3d(1, 2, 3, padding=1), WINDOW) == first  # other weights
    assert len(counted) == 1
    cost_cache.cached_cost(nn.Conv3d(1, 3, 3, padding=1), WINDOW)
    larger = cost_cache.cached_cost(nn.Conv3d(1, 2, 3, padding=1), torch.zeros(1, 1, 16, 8, 8))
    assert len(counted) == 3
    assert larger.flop > first.flop


def test_a_damaged_file_is_counted_again(counted: list[nn.Module], tmp_path: Path) -> None:
    first = cost_cache.cached_cost(nn.Conv3d(1, 2, 3, padding=1), WINDOW)
    (file,) = (tmp_path / "cache").iterdir()
    good = json.loads(file.read_text())
    damaged = [good | {"flop": -1}, good | {"classes": 0}, good | {"peak_bytes": 0.5}, good | {"values": "many"}]
    damaged += [good | {"flop": 10**400}, good | {"operations": 5}]
    for content in ("", "[1]", "{}", '{"classes": 2}', "[" * 100_000, *map(json.dumps, damaged)):
        file.write_text(content)
        assert cost_cache.cached_cost(nn.Conv3d(1, 2, 3, padding=1), WINDOW) == first
    assert len(counted) == 12


def test_a_network_of_unknown_code_is_counted_each_time(counted: list[nn.Module], tmp_path: Path) -> None:
    class Own(nn.Conv3d):
        pass

    for _ in range(2):
        cost_cache.cached_cost(Own(1, 2, 3, padding=1), WINDOW)
    assert len(counted) == 2
    assert not (tmp_path / "cache").exists()
