"""Send the lines of a run's history to a tracking service: losses, learning rates and the Dice of each class.

TensorBoard and MLflow have handlers in MONAI; this is for services that have none.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from segnets.training.history import History

logger = logging.getLogger("segnets")


class Tracker:
    """Send each line of a history as name -> number; a handler of the trainer, and the base of those below.

    A service that fails during the run is reported once and dropped; the training continues.

    Args:
        history: history of the run.
        folder: folder of the run, whose name becomes the run's name.
        project: name under which the service groups runs.
    """

    def __init__(self, history: History, folder: str | Path, project: str = "segnets") -> None:
        self.history = history
        self.folder = Path(folder).resolve()
        self.project = project
        self._run: Any = None

    def begin(self) -> Any:
        """Return a new run of the service."""
        raise NotImplementedError

    def send(self, step: int, values: dict[str, float]) -> None:
        """Send values of one step."""
        raise NotImplementedError

    def end(self) -> None:
        """End the run of the service."""
        raise NotImplementedError

    def attach(self, trainer: Engine) -> None:
        """Begin with the trainer, and send what its history records."""
        if idist.get_rank() != 0:
            return
        trainer.add_event_handler(Events.STARTED, self._begin)
        trainer.add_event_handler(Events.COMPLETED, self._end)
        trainer.add_event_handler(Events.TERMINATE, self._interrupted)

    def _begin(self) -> None:
        self._run = self.begin()
        self.history.listeners.append(self._send)

    def _send(self, line: dict[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self.send(line["step"], numbers(line))
        except Exception as error:  # a service may raise anything, and a training may have run for days
            logger.warning("%s failed (%s); the training continues without it", type(self).__name__, error)
            self._run = None

    def _interrupted(self, trainer: Engine) -> None:
        if trainer.should_terminate == "skip_completed":
            self._end()

    def _end(self) -> None:
        if self._run is not None:
            with suppress(Exception):  # as in `_send`
                self.end()
            self._run = None


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of history.jsonl, those of classes as "dice/NAME"; nulls are left out."""
    flat = {name: value for name, value in line.items() if name != "step"}
    flat |= {f"dice/{name}": value for name, value in flat.pop("dice", {}).items()}
    return {name: float(value) for name, value in flat.items() if value is not None}


class WandB(Tracker):
    """Track a run with Weights & Biases; WANDB_MODE=offline keeps everything in the folder of the run."""

    def begin(self) -> Any:
        """Return a new run."""
        import wandb

        return wandb.init(project=self.project, name=self.folder.name, dir=str(self.folder))

    def send(self, step: int, values: dict[str, float]) -> None:
        """Log the values."""
        self._run.log(values, step=step)

    def end(self) -> None:
        """Finish the run."""
        self._run.finish()


class Aim(Tracker):
    """Track a run with Aim, in a repository in the folder of the run."""

    def begin(self) -> Any:
        """Return a new run."""
        import aim

        return aim.Run(repo=str(self.folder), experiment=self.project)

    def send(self, step: int, values: dict[str, float]) -> None:
        """Track each value."""
        for name, value in values.items():
            self._run.track(value, name=name, step=step)

    def end(self) -> None:
        """Close the run."""
        self._run.close()
