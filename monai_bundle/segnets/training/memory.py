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
        validator: the trainer's, whose needs are others: whole cases, in windows.
        batch_size: as it is set now, like the others.
        accumulation_steps: parts of a batch.
        patch_size: in voxels.
        amp: whether mixed precision is on.
    """

    def __init__(
        self, validator: Engine, batch_size: int, accumulation_steps: int, patch_size: Sequence[int], amp: bool
    ) -> None:
        self.validator = validator
        self.batch_size = batch_size
        self.accumulation_steps = accumulation_steps
        self.patch_size = list(patch_size)
        self.amp = amp

    def attach(self, trainer: Engine) -> None:
        """Sees what the trainer, its data loader and its validations raise."""
        self.validator.add_event_handler(Events.EXCEPTION_RAISED, self._in_validation, trainer)
        trainer.add_event_handler(Events.EXCEPTION_RAISED, self)

    def __call__(self, trainer: Engine, error: BaseException) -> None:
        """Raises the error again, or what it means.

        Raises:
            TrainingError: training.out_of_memory.
        """
        advice = []
        if self.accumulation_steps < self.batch_size:
            advice.append(f"raise accumulation_steps (now {self.accumulation_steps}, at most {self.batch_size})")
        if not self.amp:
            advice.append("set amp to true")
        goes_on = f"{_in_this_order(advice)}; or else " if advice else ""
        _raise(
            error,
            f"{trainer.state.device} ran out of memory in step {trainer.state.iteration}",
            f"{goes_on}lower patch_size (now {self.patch_size}), which makes it another run, in another output_dir",
        )

    def _in_validation(self, validator: Engine, error: BaseException, trainer: Engine) -> None:
        device = validator.state.device
        windows = getattr(validator.inferer, "inferer", validator.inferer)  # within an average over copies
        advice = []
        if (together := getattr(windows, "sw_batch_size", 1)) > 1:
            advice.append(f"set windows#sw_batch_size to 1 (now {together})")
        if device.type != "cpu" and getattr(windows, "device", None) is None:
            advice.append("set windows#device to cpu, which keeps the answer off the GPU")
        advice.append(f"lower windows#roi_size (now {list(getattr(windows, 'roi_size', self.patch_size))})")
        _raise(
            error,
            f"{device} ran out of memory in the validation after step {trainer.state.iteration}",
            _in_this_order(advice),
        )


def _in_this_order(advice: Sequence[str]) -> str:
    return f"{', then '.join(advice)}: the same command goes on from the last checkpoint, if one was written"


def _raise(error: BaseException, what: str, advice: str) -> None:
    """The error itself, if it is of another kind."""
    if not _is_out_of_memory(error):
        raise error
    raise TrainingError("training.out_of_memory", f"{what}; {advice}. What was said: {_first_line(error)}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
