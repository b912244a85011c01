"""Choose the cases and random transforms of each training step, as a pure function of the seed and the step.

No random generator keeps a state during the run. So the numbers of workers, processes and restarts do not change the
training, and a run can resume at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable

from segnets.data.cache import CachedCases


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

    Args:
        num_cases: number of cases in the data list.
        batch_size: cases per step of one process.
        seed: seed of the order; not negative.
        repeats: how often an epoch shows each case.
    """

    def __init__(self, num_cases: int, batch_size: int, seed: int = 0, repeats: int = 1) -> None:
        self.num_cases = num_cases
        self.batch_size = batch_size
        self.seed = seed
        self.repeats = repeats
        self.step = 0

    @property
    def global_batch_size(self) -> int:
        """Return the number of cases per step of all processes together."""
        return self.batch_size * _processes()[1]

    def __len__(self) -> int:
        return -(-self.num_cases * self.repeats // self.global_batch_size)

    def set_position(self, step: int) -> None:
        """Let the next iterator begin after `step` steps from the start of the run."""
        self.step = step

    def __iter__(self) -> Iterator[list[int]]:
        first = self.step * self.global_batch_size + _processes()[0] * self.batch_size
        known: tuple[int, Any] = (-1, None)
        while True:
            batch = []
            for sample in range(first, first + self.batch_size):
                passage, place = divmod(sample, self.num_cases)
                if known[0] != passage:
                    known = passage, np.random.RandomState(_seed(self.seed, passage, 0)).permutation(self.num_cases)
                batch.append(passage * self.num_cases + int(known[1][place]))
            yield batch
            first += self.global_batch_size


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
