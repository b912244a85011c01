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
from segnets.errors import TrainingError  # isort: skip


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


def test_replayed_cases_are_mixed_in_at_a_share() -> None:
    # 3 new cases and 7 replayed ones, of which each passage shows 3
    sampler = EpochSampler(10, 2, seed=1, replayed=range(3, 10))
    assert (sampler.passage_length, len(sampler)) == (6, 3)
    indices = [index for batch in islice(sampler, 3 * 14) for index in batch]
    passages = [indices[6 * n : 6 * n + 6] for n in range(14)]
    for n, passage in enumerate(passages):
        assert sorted(index for index in passage if index % 10 < 3) == [10 * n, 10 * n + 1, 10 * n + 2]
    replayed = [index for index in indices if index % 10 >= 3]
    assert sorted(replayed) == [10 * cycle + case for cycle in range(6) for case in range(3, 10)]  # each six times
    assert len({tuple(passage) for passage in passages}) == 14
    sampler.set_position(5)
    assert [i for batch in islice(sampler, 4) for i in batch] == indices[10:18]

    more = EpochSampler(10, 2, seed=1, replayed=[8, 9], replay_share=0.75)  # each of the two twelve times a passage
    assert more.passage_length == 32
    batches = islice(more, 16)
    assert sorted(index for batch in batches for index in batch if index % 10 >= 8) == [
        10 * cycle + case for cycle in range(12) for case in (8, 9)]  # fmt: skip
    assert len({index for batch in islice(more, 64) for index in batch}) == 128  # each augmented in another way


def test_a_share_of_replayed_cases_must_leave_new_ones() -> None:
    assert EpochSampler(10, 2, replayed=[1], replay_share=0).passage_length == 9
    assert EpochSampler(10, 2, replay_share=0.9).passage_length == 10
    for replayed, share in ((range(10), 0.5), ([1], 1.0), ([1], -0.1)):
        with pytest.raises(TrainingError, match=r"split\.shares"):
            EpochSampler(10, 2, replayed=replayed, replay_share=share)


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
