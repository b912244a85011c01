"""Explain errors of exhausted memory, with advice on which settings to lower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ignite.engine import Engine, Events

from segnets.errors import TrainingError

_SIGNS = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "killed by signal: Killed")
"""Parts of torch's messages without an exception type: CPU, Apple's GPU, cuBLAS and cuDNN, a killed worker."""


class OutOfMemory:
    """Convert out-of-memory errors of all types to a `TrainingError` with advice; a handler of the trainer.

    Other exceptions are raised again unchanged. It must be the first of the handlers, because ignite calls only the
    first handler of an exception (MONAI's `StatsHandler` is one too).

    Args:
        validator: the trainer's validator, which needs other advice, because it processes whole cases in windows.
        batch_size: current batch size.
        accumulation_steps: current number of parts of a batch.
        patch_size: current patch size in voxels.
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
        """Handle the exceptions of the trainer, its data loader and its validations."""
        self.validator.add_event_handler(Events.EXCEPTION_RAISED, self._in_validation, trainer)
        trainer.add_event_handler(Events.EXCEPTION_RAISED, self)

    def __call__(self, trainer: Engine, error: BaseException) -> None:
        """Raise the error again, or a `TrainingError` if memory ran out.

        Raises:
            TrainingError: training.out_of_memory.
        """
        advice = []
        if self.accumulation_steps < self.batch_size:
            advice.append(f"raise --accumulation_steps (now {self.accumulation_steps}, at most {self.batch_size})")
        if not self.amp:
            advice.append("on a GPU give --amp true")
        first = f"{_in_this_order(advice)}; or else " if advice else ""
        _raise(
            error,
            f"{trainer.state.device} ran out of memory in step {trainer.state.iteration}",
            f"{first}lower --patch_size (now {self.patch_size}), which starts a new run, in another --output_dir",
        )

    def _in_validation(self, validator: Engine, error: BaseException, trainer: Engine) -> None:
        what = f"{validator.state.device} ran out of memory in the validation after step {trainer.state.iteration}"
        _raise(error, what, _in_this_order(_advice_on_windows(validator, self.patch_size)))


class OutOfMemoryInEvaluation:
    """Convert out-of-memory errors as `OutOfMemory` does, in an evaluation; the first of its handlers.

    Args:
        patch_size: current patch size in voxels.
    """

    def __init__(self, patch_size: Sequence[int]) -> None:
        self.patch_size = list(patch_size)

    def attach(self, evaluator: Engine) -> None:
        """Handle the exceptions of the evaluation."""
        evaluator.add_event_handler(Events.EXCEPTION_RAISED, self)

    def __call__(self, evaluator: Engine, error: BaseException) -> None:
        """Raise the error again, or a `TrainingError` if memory ran out.

        Raises:
            TrainingError: training.out_of_memory.
        """
        advice = ", then ".join(_advice_on_windows(evaluator, self.patch_size))
        what = f"{evaluator.state.device} ran out of memory in the evaluation"
        _raise(error, what, f"{advice}: the same command evaluates the weights again")


def _advice_on_windows(evaluator: Engine, patch_size: Sequence[int]) -> list[str]:
    """Return the settings to change so that whole cases take less memory."""
    windows = evaluator.inferer
    while hasattr(windows, "inferer"):  # inside deciding and test-time averaging
        windows = windows.inferer
    advice = []
    if (batch := getattr(windows, "sw_batch_size", 1)) > 1:
        advice.append(f"give --windows#sw_batch_size 1 (now {batch})")
    if evaluator.state.device.type != "cpu" and getattr(windows, "device", None) is None:
        advice.append("give --windows#device cpu, which keeps the result off the GPU")
    return [*advice, f"lower --windows#roi_size (now {list(getattr(windows, 'roi_size', patch_size))})"]


def _in_this_order(advice: Sequence[str]) -> str:
    return f"{', then '.join(advice)}: the same command resumes from the last checkpoint, if one was written"


def _raise(error: BaseException, what: str, advice: str) -> None:
    """Raise `TrainingError` if memory ran out, or else the error itself."""
    if not _is_out_of_memory(error):
        raise error
    raise TrainingError("training.out_of_memory", f"{what}; {advice}. The error was: {_first_line(error)}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
