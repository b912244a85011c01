"""One step of training."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer, Workflow
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys

from segnets.errors import TrainingError


class Trainer(SupervisedTrainer):
    """MONAI's trainer with mixed precision on every device, gradient clipping, an L1 penalty and batches in parts.

    It differs from its base class in this:

    - `amp` means `torch.autocast` on the trainer's device with that device's usual type (float16 on CUDA, with a
      gradient scaler; bfloat16 on a processor, without) or with `amp_kwargs`'s `dtype`. The loss is computed in
      float32.
    - `accumulation_steps` is the number of parts in which a batch goes through the network, one after the other: less
      memory and the same step, as long as the loss is a mean over cases and nothing in the network looks at the whole
      batch. So steps, schedules, averages of weights and checkpoints count batches, never parts.
    - The output of a step is its loss alone, without the penalty. Only `BACKWARD_COMPLETED` and `MODEL_COMPLETED` are
      fired within a step.

    Args:
        max_gradient_norm: gradients are scaled down to this Euclidean norm over all parameters where theirs is larger.
        l1_penalty: this times the sum of the absolute weights (of kernels, not of biases and normalisations) is added
            to what is minimised.
        settings: of MONAI's `SupervisedTrainer`.

    Raises:
        TrainingError: "training.diverged", the loss is not a finite number; the weights have not taken that step.
    """

    def __init__(self, *, max_gradient_norm: float | None = None, l1_penalty: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.max_gradient_norm = max_gradient_norm
        self.l1_penalty = l1_penalty

    def run(self) -> None:
        """Trains from the state the trainer is in to `max_epochs`."""
        device = self.state.device.type
        dtype = self.amp_kwargs.get("dtype", torch.get_autocast_dtype(device))
        # without float16 the scaler does nothing, so there is one path for all
        self.scaler = torch.amp.GradScaler(device, enabled=self.amp and dtype == torch.float16)
        before = multiprocessing.active_children()
        try:
            Workflow.run(self)  # not SupervisedTrainer's, which would replace the scaler
        except BaseException:
            # the error keeps the data loader, and Python waits at its end, for ever, for a worker of it that ignores
            # SIGTERM (`StopOnSignal`)
            for worker in set(multiprocessing.active_children()) - set(before):
                worker.kill()
                with suppress(RuntimeError):  # by which torch tells of its death
                    worker.join()
            raise

    def _iteration(self, engine: Engine, batchdata: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        device = self.state.device
        batch = self.prepare_batch(batchdata, device, self.non_blocking, **self.to_kwargs)
        # a network computes faster with tensors that carry nothing with them
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
                f"the loss is {total.item()} in step {self.state.iteration}; go on from the last checkpoint with a "
                "lower learning_rate, or with max_gradient_norm set (12, say)",
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
