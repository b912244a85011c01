"""Test that the cases and transforms of a step depend on the seed and the step alone."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import Compose, EnsureTyped, Lambdad, OneOf, RandGaussianNoised, RandShiftIntensityd
from tiny_run import random_transforms, run, volumes, without_times

from segnets.data import EpochSampler, TrainingSet, epochs  # isort: skip - within reach by tiny_run


def test_each_passage_shows_every_case_once_and_batches_cross_its_end() -> None:
    sampler = EpochSampler(num_cases=5, batch_size=2, seed=4)
    assert len(sampler) == 3  # 2.5, rounded up
    batches = list(islice(sampler, 10))
    assert {len(batch) for batch in batches} == {2}
    indices = [index for batch in batches for index in batch]
    # an index is passage * 5 + case: four passages of five cases, each complete before the next
    assert [sorted(indices[5 * p : 5 * p + 5]) for p in range(4)] == [list(range(5 * p, 5 * p + 5)) for p in range(4)]
    assert [i % 5 for i in indices[:5]] != [i % 5 for i in indices[5:10]]
    assert list(islice(EpochSampler(5, 2, seed=4), 10)) == batches
    assert list(islice(EpochSampler(5, 2, seed=5), 10)) != batches
    assert len(EpochSampler(5, 2, repeats=4)) == 10
    sampler.set_position(7)
    assert list(islice(sampler, 3)) == batches[7:]


def test_two_processes_see_the_cases_of_one_with_twice_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = EpochSampler(7, 4, seed=1)
    steps, expected = len(alone), list(islice(alone, 6))
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(epochs, "_processes", lambda rank=rank: (rank, 2))
        sampler = EpochSampler(7, 2, seed=1)
        assert len(sampler) == steps
        parts.append(list(islice(sampler, 6)))
    assert [a + b for a, b in zip(*parts, strict=True)] == expected


def test_every_random_transform_of_the_config_is_a_function_of_the_index() -> None:
    data = volumes(2)

    def item(transform: Any, index: int, before: int | None = None) -> torch.Tensor:
        dataset = TrainingSet(data, [EnsureTyped(["image", "label"])], [transform], seed=3)
        if before is not None:
            _ = dataset[before]
        return dataset[index]["image"]

    transforms = random_transforms()
    assert len(transforms) >= 8
    noise, shift = RandGaussianNoised("image", prob=1.0), RandShiftIntensityd("image", 5.0, prob=1.0)
    transforms += [OneOf([noise, shift]), Compose([shift, Compose([noise])])]
    transforms.append(Lambdad("image", lambda x: x + torch.rand(1)))  # as torchvision's, from torch's generator
    for transform in transforms:
        name = type(transform).__name__
        first = item(transform, 3)
        assert torch.equal(first, item(transform, 3, before=0)), f"{name} remembers what it did before"
        # index 2n + 1 is case 1 in passage n
        assert any(not torch.equal(first, item(transform, 2 * n + 1)) for n in range(2, 6)), f"{name} is not random"


def test_two_sets_may_share_a_random_transform() -> None:
    noise, data = RandGaussianNoised(keys="x", prob=1.0), [{"x": torch.zeros(1, 4)}]
    alone = TrainingSet(data, [], [RandGaussianNoised(keys="x", prob=1.0)])[3]["x"]
    one, other = TrainingSet(data, [], [noise]), TrainingSet(data, [], [noise], seed=7)
    assert torch.equal(one[3]["x"], alone)
    other[0]
    assert torch.equal(one[3]["x"], alone)


def test_the_number_of_workers_does_not_matter(tmp_path: Path) -> None:
    for workers in (0, 2):
        run(tmp_path / str(workers), num_workers=workers, max_epochs=2)
    assert without_times(tmp_path / "0") == without_times(tmp_path / "2")
