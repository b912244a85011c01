"""What a training sees and in which order, as a pure function of the seed and the number of the step.

Nothing is drawn from a generator that lives through the run. So the number of workers, of processes or of restarts
changes nothing in what is trained on, and a run resumes at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable

from segnets.data.cache import CachedCases


class TrainingSet(torch.utils.data.Dataset):
    """The cases of a data list after deterministic transforms, kept on disk, and random ones.

    An index is `passage * number of cases + case`, `passage` counting how often all cases were gone through before;
    `EpochSampler` gives such indices. The same index gives the same item, in any process.

    Args:
        data: cases, each a mapping with paths as `str`.
        deterministic: transforms up to the first random one.
        random: the other transforms. MONAI's draw from their `R`, torchvision's from torch's generator; both are set.
        cache_dir: see `CachedCases`.
        seed: of the random transforms; not negative.
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
        self.random = random if isinstance(random, Compose) else Compose(random)
        self.seed = seed
        # all draw from one generator: to seed it anew costs microseconds, `set_random_state` of each milliseconds
        self.generator = np.random.RandomState(seed)
        _draw_from(self.generator, self.random)

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
        """Nothing: MONAI's `DataLoader` would give each worker a seed of its own, and undo what this class is for."""
        return self


class EpochSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of indices into a `TrainingSet`, without end, for `DataLoader(batch_sampler=...)`.

    All cases, shuffled, then all again in another order, and so on, are cut into batches. So a batch may hold the last
    cases of one passage and the first of the next: none is left out or shown twice for a batch to be full. An epoch is
    only the number of steps in which each case is seen `repeats` times, rounded up.

    In a distributed run a step takes `batch_size` cases for each process, and the process of rank r the r-th part of
    them: two processes see in each step what one with twice the batch size sees.

    Args:
        num_cases: of the data list.
        batch_size: cases a step of one process.
        seed: of the order; not negative.
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
        """Cases a step of all processes."""
        return self.batch_size * _processes()[1]

    def __len__(self) -> int:
        return -(-self.num_cases * self.repeats // self.global_batch_size)

    def set_position(self, step: int) -> None:
        """Lets the next iterator begin after `step` steps from the start of the run."""
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
    """32 bits that differ wherever the numbers do (numpy's `SeedSequence`)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _processes() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _draw_from(generator: np.random.RandomState, transform: Any) -> None:
    """Lets a transform, and all within it, draw from one generator."""
    if isinstance(transform, Compose):  # its own method gives each transform within it a generator with another seed
        transform.R = generator
        for t in transform.transforms:
            _draw_from(generator, t)
    elif isinstance(transform, Randomizable):
        transform.set_random_state(state=generator)
