"""Test the advice when memory runs out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import StatsHandler
from monai.inferers import SlidingWindowInferer
from tiny_engines import engines

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.errors import TrainingError
from segnets.training.history import History
from segnets.training.memory import OutOfMemory, OutOfMemoryInEvaluation


def out_of_memory(trainer: Engine, history: History, **settings: Any) -> str:
    """Return the message of a run without memory, by default with two cases per batch in one part."""
    settings = {"batch_size": 2, "accumulation_steps": 1, "patch_size": (48, 64, 48), "amp": False} | settings
    for handler in (OutOfMemory(history.validator, **settings), StatsHandler(iteration_log=False)):
        handler.attach(trainer)
    with pytest.raises(TrainingError) as caught:
        trainer.run()
    assert caught.value.code == "training.out_of_memory"
    assert str(caught.value.__cause__).splitlines()[0] in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    "cause",
    [
        lambda: torch.empty(10**16),
        lambda: np.empty(10**17),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")),
    ],
    ids=["torch", "numpy", "cuda"],
)
def test_advice_names_the_settings_to_lower(tmp_path: Path, cause: Any) -> None:
    trainer, history = engines(tmp_path, epochs=1)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: cause())
    message = out_of_memory(trainer, history)
    goes_on = "the same command resumes from the last checkpoint, if one was written"  # there is none yet
    assert (
        f"raise --accumulation_steps (now 1, at most 2), then on a GPU give --amp true: {goes_on}; or else lower"
        in message
    )
    # the patch is part of what makes a run the same, so another folder is needed
    assert "lower --patch_size (now [48, 64, 48]), which starts a new run, in another --output_dir" in message
    assert message.startswith("cpu ran out of memory in step 2; ")


def test_advice_leaves_out_settings_that_are_already_set(tmp_path: Path) -> None:
    trainer, history = engines(tmp_path, epochs=1)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: torch.empty(10**16))
    message = out_of_memory(trainer, history, accumulation_steps=2, amp=True)
    assert message.startswith("cpu ran out of memory in step 2; lower --patch_size (now [48, 64, 48]), which")
    assert "accumulation_steps" not in message
    assert "amp" not in message


def test_advice_for_a_validation_is_about_its_windows(tmp_path: Path) -> None:
    trainer, history = engines(tmp_path, epochs=2)
    history.validator.inferer = SlidingWindowInferer((8, 8, 4), sw_batch_size=16)
    history.validator.add_event_handler(Events.ITERATION_COMPLETED, lambda: torch.empty(10**16))
    message = out_of_memory(trainer, history)
    assert message.startswith(
        "cpu ran out of memory in the validation after step 6; give --windows#sw_batch_size 1 (now 16), then lower "
        "--windows#roi_size (now [8, 8, 4]): the same command resumes from the last checkpoint, if one was written. "
    )


def test_advice_for_an_evaluation_is_about_its_windows(tmp_path: Path) -> None:
    _, history = engines(tmp_path, epochs=2)
    evaluator = history.validator
    OutOfMemoryInEvaluation((8, 8, 4)).attach(evaluator)
    evaluator.inferer = SlidingWindowInferer((8, 8, 4), sw_batch_size=16)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: torch.empty(10**16))
    with pytest.raises(
        TrainingError, match=r"training\.out_of_memory: cpu ran out of memory in the evaluation; "
    ) as caught:
        evaluator.run()
    assert "give --windows#sw_batch_size 1 (now 16), then lower --windows#roi_size (now [8, 8, 4]): " in str(
        caught.value
    )


@pytest.mark.parametrize("where", ["training", "validation"])
def test_other_errors_are_not_changed(tmp_path: Path, where: str) -> None:
    trainer, history = engines(tmp_path, epochs=2)
    OutOfMemory(history.validator, batch_size=1, accumulation_steps=1, patch_size=(8, 8), amp=True).attach(trainer)
    engine = {"training": trainer, "validation": history.validator}[where]
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"inconsistent tensor size|size mismatch"):
        trainer.run()
