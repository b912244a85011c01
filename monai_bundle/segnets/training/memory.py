"""Out of memory, said in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ignite.engine import Engine, Events

from segnets.errors import TrainingError

# what torch says where it has no exception type of its own for it: CPU, Apple's GPU, cuBLAS and cuDNN, a killed worker
_SIGNS = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "killed by signal: Killed")


class OutOfMemory:
    """Turns out-of-memory errors of every kind into a `TrainingError` that says what to lower; a trainer's handler.

    Every other exception is raised again as it is. Stands first in the list of handlers, because the first handler of
    an exception is the only one (MONAI's `StatsHandler` is one too).

    Args:
        batch_size: as it is set now, like the others.
        patch_size: in voxels.
        amp: whether mixed precision is on.
    """

    def __init__(self, batch_size: int, patch_size: Sequence[int], amp: bool) -> None:
        self.batch_size = batch_size
        self.patch_size = list(patch_size)
        self.amp = amp

    def attach(self, trainer: Engine) -> None:
        """Sees what the trainer, its data loader and its validations raise."""
        trainer.add_event_handler(Events.EXCEPTION_RAISED, self)

    def __call__(self, trainer: Engine, error: BaseException) -> None:
        """Raises the error again, or what it means.

        Raises:
            TrainingError: training.out_of_memory.
        """
        if not _is_out_of_memory(error):
            raise error
        advice = [f"lower patch_size (now {self.patch_size})"]
        if self.batch_size > 1:
            advice.insert(
                0, f"raise accumulation_steps (up to batch_size, now {self.batch_size}), which changes no result"
            )
        if not self.amp:
            advice.append("set amp to true (now false)")
        raise TrainingError(
            "training.out_of_memory",
            f"{trainer.state.device} ran out of memory in step {trainer.state.iteration}. "
            f"In this order: {'; '.join(advice)}. "
            "The same command goes on from the last checkpoint, if one was written. "
            f"What was said: {_first_line(error)}",
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
