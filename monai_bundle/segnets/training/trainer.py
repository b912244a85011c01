"""Compute one step of training."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer, Workflow
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys

from segnets.errors import TrainingError

logger = logging.getLogger("segnets")


def amp_dtype(amp: bool | str, device: torch.device | str) -> torch.dtype:
    """Return the type in which mixed precision computes.

    Args:
        amp: "bfloat16" or "float16"; True: bfloat16 on a GPU that computes it (NVIDIA's since Ampere), because its
            range is that of float32, else the default of torch for the device, which is float16 on other GPUs.
        device: the device.

    Raises:
        TrainingError: "bundle.setting", another name.
    """
    if isinstance(amp, str):
        if amp not in ("bfloat16", "float16"):
            raise TrainingError("bundle.setting", f"found amp {amp!r}; expected true, false, bfloat16 or float16")
        return torch.bfloat16 if amp == "bfloat16" else torch.float16
    kind = torch.device(device).type
    if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.get_autocast_dtype(kind)


class Trainer(SupervisedTrainer):
    """Train as MONAI's trainer, with mixed precision on all devices, gradient clipping, L1 penalty and split batches.

    It differs from its base class in three ways:

    - `amp` enables `torch.autocast` on all devices, in the type of `amp_dtype` or `dtype` of `amp_kwargs`; with float16
      gradients are scaled. The loss is computed in float32.
    - `accumulation_steps` is the number of parts into which each batch is split. The parts are processed one after the
      other, which needs less memory and gives the same step, if the loss is a mean over cases and no layer depends on
      the whole batch. Steps, schedules, averages of weights and checkpoints count batches, not parts.
    - The output of a step is its loss without the penalty. Only `BACKWARD_COMPLETED` and `MODEL_COMPLETED` are fired
      within a step.

    Args:
        amp: mixed precision; a type as in `amp_dtype`.
        amp_kwargs: arguments of `torch.autocast`.
        max_gradient_norm: largest Euclidean norm of the gradient over all parameters; a larger gradient is scaled down.
        l1_penalty: factor of the sum of absolute weights (of kernels, not of biases and normalisations) in the
            minimised function.
        settings: arguments of MONAI's `SupervisedTrainer`.

    Raises:
        TrainingError: "training.diverged", the loss is not finite; the weights do not include that step.
    """

    def __init__(
        self,
        *,
        amp: bool | str = False,
        amp_kwargs: Mapping[str, Any] | None = None,
        max_gradient_norm: float | None = None,
        l1_penalty: float = 0.0,
        **settings: Any,
    ) -> None:
        dtype = amp_dtype(amp, settings["device"])
        super().__init__(amp=bool(amp), amp_kwargs={"dtype": dtype, **(amp_kwargs or {})}, **settings)
        self.max_gradient_norm = max_gradient_norm
        self.l1_penalty = l1_penalty

    def run(self) -> None:
        """Train from the trainer's current state to `max_epochs`."""
        device = self.state.device.type
        if device == "cpu" and self.amp:
            logger.warning(
                "amp is true on a CPU: in bfloat16 torch 2.13 computes wrong gradients at times, for convolutions of a "
                "few voxels and many features; expected amp false there"
            )
        # without float16 the scaler does nothing, so all types take the same path
        self.scaler = torch.amp.GradScaler(device, enabled=self.amp and self.amp_kwargs["dtype"] == torch.float16)
        before = multiprocessing.active_children()
        try:
            Workflow.run(self)  # not SupervisedTrainer's, which would replace the scaler
        except BaseException:
            # the error keeps the data loader alive, and at exit Python would wait forever for its workers, which
            # ignore SIGTERM (`StopOnSignal`)
            for worker in set(multiprocessing.active_children()) - set(before):
                worker.kill()
                with suppress(RuntimeError):  # torch's report that the worker died
                    worker.join()
            raise

    def _iteration(self, engine: Engine, batchdata: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        device = self.state.device
        batch = self.prepare_batch(batchdata, device, self.non_blocking, **self.to_kwargs)
        # a network computes faster with tensors without metadata
        images, labels = (x.as_tensor() if isinstance(x, MetaTensor) else x for x in batch)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        parts = self.accumulation_steps
        for image, label in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            with torch.autocast(device.type, enabled=self.amp, **self.amp_kwargs):
                logits = self.inferer(image, self.network)
            logits = [x.float() for x in logits] if isinstance(logits, list | tuple) else logits.float()
            loss = self.loss_function(logits, label).mean() * (len(image) / len(images))
            self.scaler.scale(loss).backward()
            total += loss.detach()
        if not torch.isfinite(total):
            raise TrainingError(
                "training.diverged",
                f"the loss is {total.item()} in step {self.state.iteration}; expected a finite number; resume from the "
                "last checkpoint with a lower --learning_rate, or with --max_gradient_norm 12",
            )
        self.scaler.unscale_(self.optimizer)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        for p in parameters:
            if self.l1_penalty and p.grad is not None and p.ndim > 1:
                p.grad.add_(p.detach().sign(), alpha=self.l1_penalty)
        if self.max_gradient_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

        engine.state.output = {CommonKeys.LOSS: total}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
