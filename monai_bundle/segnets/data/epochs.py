"""Choose the cases and random transforms of each training step, as a pure function of the seed and the step.

No random generator keeps a state during the run. So the numbers of workers, processes and restarts do not change the
training, and a run can resume at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable
from numpy.typing import NDArray

from segnets.data.cache import CachedCases
from segnets.errors import TrainingError


class TrainingSet(torch.utils.data.Dataset):
    """Provide the cases of a data list after deterministic transforms, which are cached on disk, and random ones.

    An index is `passage * number of cases + case`, where `passage` counts the previous passages through all cases;
    `EpochSampler` yields such indices. An index gives the same item in every process.

    Args:
        data: cases, each a mapping with paths as `str`.
        deterministic: transforms before the first random one.
        random: the remaining transforms. Both MONAI's `R` and torch's generator, which torchvision uses, are seeded.
        cache_dir: see `CachedCases`.
        seed: seed of the random transforms; not negative.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        deterministic: Compose | Sequence[Callable],
        random: Compose | Sequence[Callable],
        cache_dir: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        self.cases = CachedCases(data, deterministic, cache_dir)
        # a copy: another set may use the same transforms, and seeds them otherwise
        self.random = deepcopy(random if isinstance(random, Compose) else Compose(random))
        self.seed = seed
        # all transforms share one generator: seeding it takes microseconds, `set_random_state` of each milliseconds
        self.generator = np.random.RandomState(seed)
        _share_generator(self.generator, self.random)

    @property
    def data(self) -> list[Mapping[str, Any]]:
        return self.cases.data

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Any:
        passage, case = divmod(index, len(self.cases))
        item = self.cases[case]
        seed = _seed(self.seed, passage, case + 1)
        self.generator.seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.random(item)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> TrainingSet:
        """Do nothing: MONAI's `DataLoader` would give each worker its own seed."""
        return self


class EpochSampler(torch.utils.data.Sampler[list[int]]):
    """Yield batches of indices into a `TrainingSet` endlessly, for `DataLoader(batch_sampler=...)`.

    The sequence of all cases, shuffled again in each passage, is divided into batches. So a batch may contain the last
    cases of one passage and the first of the next; no case is dropped or repeated to fill a batch. An epoch is the
    number of steps, rounded up, in which each case is seen `repeats` times.

    In a distributed run each process takes `batch_size` cases per step, the process of rank r the r-th part of them:
    two processes see in each step the cases that one process with twice the batch size sees.

    Replayed cases, those of an earlier training, are mixed in so that it is not forgotten: a passage shows all others
    once, and as many replayed ones as make up the share, each of them equally often in the long run.

    Args:
        num_cases: number of cases in the data list.
        batch_size: cases per step of one process.
        seed: seed of the order; not negative.
        repeats: how often an epoch shows each case.
        replayed: indices of the replayed cases.
        replay_share: their fraction of the cases in a passage, under 1; with 0 they are left out.

    Raises:
        TrainingError: "split.shares", the share is not in this range, or all cases are replayed.
    """

    def __init__(
        self,
        num_cases: int,
        batch_size: int,
        seed: int = 0,
        repeats: int = 1,
        replayed: Sequence[int] = (),
        replay_share: float = 0.5,
    ) -> None:
        self.num_cases = num_cases
        self.batch_size = batch_size
        self.seed = seed
        self.repeats = repeats
        self.replayed = list(replayed)
        self.others = sorted(set(range(num_cases)) - set(self.replayed))
        self.passage_length = passage_length(len(self.others), len(self.replayed), replay_share)
        self.step = 0

    @property
    def global_batch_size(self) -> int:
        """Return the number of cases per step of all processes together."""
        return self.batch_size * _processes()[1]

    def __len__(self) -> int:
        return -(-self.passage_length * self.repeats // self.global_batch_size)

    def set_position(self, step: int) -> None:
        """Let the next iterator begin after `step` steps from the start of the run."""
        self.step = step

    def __iter__(self) -> Iterator[list[int]]:
        first = self.step * self.global_batch_size + _processes()[0] * self.batch_size
        order = lru_cache(4)(self._order)
        while True:
            batch = []
            for sample in range(first, first + self.batch_size):
                passage, place = divmod(sample, self.passage_length)
                position = int(order(passage, self.passage_length, 0)[place])
                if position < len(self.others):
                    batch.append(passage * self.num_cases + self.others[position])
                    continue
                drawn = passage * (self.passage_length - len(self.others)) + position - len(self.others)
                cycle, place = divmod(drawn, len(self.replayed))  # their own passages, which are longer or shorter
                position = int(order(cycle, len(self.replayed), self.num_cases + 1)[place])
                batch.append(cycle * self.num_cases + self.replayed[position])
            yield batch
            first += self.global_batch_size

    def _order(self, passage: int, count: int, kind: int) -> NDArray[np.int64]:
        """Return an order of `count` cases; `kind` is no number of a case from 1, for a seed of its own."""
        return np.random.RandomState(_seed(self.seed, passage, kind)).permutation(count)


def part_of_process(count: int) -> range:
    """Return which of `count` cases this process validates, as indices; all if there are fewer cases than processes."""
    rank, processes = _processes()
    return range(rank, count, processes) if count >= processes else range(count)


def passage_length(others: int, replayed: int, share: float) -> int:
    """Return how many cases a passage of `EpochSampler` shows.

    Args:
        others: number of cases that are not replayed.
        replayed: number of replayed cases.
        share: fraction of replayed cases in the passage.

    Raises:
        TrainingError: "split.shares".
    """
    if not replayed:
        return others
    if not isinstance(share, int | float) or not 0 <= share < 1 or not others:
        raise TrainingError(
            "split.shares",
            f"replay_share is {share}, of {others} new and {replayed} replayed cases in training; expected a fraction "
            "from 0 to under 1, and a new case",
        )
    return others + round(others * share / (1 - share))


def _seed(*numbers: int) -> int:
    """Return a seed of 32 bits that depends on all the numbers (numpy's `SeedSequence`)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _processes() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _share_generator(generator: np.random.RandomState, transform: Any) -> None:
    """Let a transform, and all transforms inside it, draw from one generator."""
    if isinstance(transform, Compose):  # its own method gives each inner transform a generator with another seed
        transform.R = generator
        for t in transform.transforms:
            _share_generator(generator, t)
    elif isinstance(transform, Randomizable):
        transform.set_random_state(state=generator)
