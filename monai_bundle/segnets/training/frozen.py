"""Keep the first stages of a network's encoder as they are, when fine-tuning."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from segnets.errors import TrainingError

logger = logging.getLogger("segnets")

ENCODER = "encoder"


class FrozenStages:
    """Freeze the first stages of the encoder for some epochs, or for good.

    Frozen weights get no gradient, so the optimiser skips them: no weight decay and no momentum, and its state of them
    begins when they are released. Normalisations with running statistics keep these; others, as the instance
    normalisation of `UNet`, have none. Dropout stays active.

    What is frozen depends only on the trainer's step, so a resumed run needs no state.

    Args:
        network: the network, with an `encoder` of its own or in its modules (`MultiView`).
        stages: number of stages from the image on; "encoder": all of them; 0: none.
        epochs: number of epochs; None: for good.

    Raises:
        TrainingError: "network.stages", the encoder has fewer stages, or the network has no encoder.
    """

    def __init__(self, network: nn.Module, stages: int | str = 0, epochs: int | None = None) -> None:
        self.epochs = epochs
        self.frozen: list[nn.Module] = []
        self.is_frozen: bool | None = None
        if stages == 0:
            return
        encoders = [_stages_of(module.encoder) for module in network.modules() if hasattr(module, "encoder")]
        most = min((len(encoder) for encoder in encoders), default=0)
        count = most if stages == ENCODER else stages
        if not isinstance(count, int) or not 0 < count <= most:
            raise TrainingError(
                "network.stages",
                f"frozen_stages is {stages!r}; expected 0 to {most}, the stages of the encoder, or {ENCODER!r}"
                if most
                else f"frozen_stages is {stages!r}, and {type(network).__name__} has no encoder; expected 0",
            )
        self.frozen = [module for encoder in encoders for stage in encoder[:count] for module in stage]

    def attach(self, trainer: Engine) -> None:
        """Freeze or release before each step."""
        if self.frozen:
            trainer.add_event_handler(Events.ITERATION_STARTED, self._before_step)
            for module in self.frozen:
                for part in module.modules():
                    if isinstance(part, _NormBase) and part.track_running_stats:
                        part.register_forward_pre_hook(self._keep_statistics)

    def _before_step(self, trainer: Engine) -> None:
        steps = None if self.epochs is None else self.epochs * trainer.state.epoch_length
        is_frozen = steps is None or trainer.state.iteration <= steps
        if is_frozen == self.is_frozen:
            return
        was_frozen, self.is_frozen = self.is_frozen, is_frozen
        parameters = [parameter for module in self.frozen for parameter in module.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(not is_frozen)
            parameter.grad = None
        if is_frozen or was_frozen:
            count = sum(parameter.numel() for parameter in parameters)
            logger.info("%d weights of the encoder are %s", count, "frozen" if is_frozen else "trained from now on")

    def _keep_statistics(self, module: nn.Module, _: Any) -> None:
        if self.is_frozen:
            module.eval()


def _stages_of(encoder: nn.Module) -> list[list[nn.Module]]:
    """Return the modules of each stage of an encoder; its stem belongs to the first one."""
    if isinstance(encoder, nn.ModuleList):
        return [[stage] for stage in encoder]
    first = [module for name, module in encoder.named_children() if name != "stages"]
    stages = [[stage] for stage in getattr(encoder, "stages", [])]
    if stages:
        stages[0] = first + stages[0]
    return stages
