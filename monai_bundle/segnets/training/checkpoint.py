"""Save the complete state of a run, in files that survive a kill at any time, and resume from it exactly."""

from __future__ import annotations

import logging
import math
import random
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler

from segnets.data.cache import fingerprint
from segnets.errors import TrainingError
from segnets.files import PART, load_verified, lock, replacing

logger = logging.getLogger("segnets")


class Stateful(Protocol):
    """Have a state of plain values and tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


FIRST_MINUTES = 1.0
"""Minutes until the first checkpoint after a start: first attempts are often stopped early."""

_LATEST, _PREVIOUS = Path("checkpoints", "latest.pt"), Path("checkpoints", "previous.pt")


def has_checkpoint(folder: str | Path) -> bool:
    """Return whether a run's folder has a checkpoint to resume from."""
    return any((Path(folder) / name).exists() for name in (_LATEST, _PREVIOUS))


class Checkpoints:
    """Save and resume a run; must be the first of the trainer's handlers.

    It writes to the run's folder:

        checkpoints/latest.pt, previous.pt    the whole state: network, averaged weights, optimiser, scaler, step,
                                              random states, best metric and all of `objects`
        model.pt                              averaged weights of the best validation; of the last validation while
                                              no case has counted in any
        model_final.pt                        averaged weights of the last step

    Each file is written completely or not at all, and can be loaded with `weights_only=True`. `previous.pt` is the
    checkpoint before `latest.pt`, and replaces it if it can't be read. `checkpoints/lock` is locked during the run.

    On a CPU with the same number of threads, a run that was killed and resumed computes the same numbers as one without
    interruption; on a GPU as far as its kernels are deterministic. Between starts, the numbers of epochs and minutes,
    all settings of validation, and the optimiser's settings may change, as the config says. Other changes (network,
    loss, cases, their transforms, ...) are refused.

    Args:
        folder: folder of the run.
        ema: average of the weights, which is validated and exported; None: the network's own weights.
        validator: MONAI's evaluator, whose key metric determines the best weights.
        objects: name -> further object whose state belongs to the run: history, early stopping, ...
        data: name of a case -> digest of its files, from `segnets.data.check`; a run resumes only with equal digests.
        settings: name -> further setting that must not change.
        every_minutes: minutes between checkpoints; the first comes after at most one minute, the last at the end.
        every_steps: steps between additional checkpoints.
        resume: resume the run in `folder`, if there is one; False: refuse to start if there is one.

    Raises:
        TrainingError: when the trainer starts, "run.in_use", "run.exists", "run.differs", "run.longer" or
            "run.damaged".
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        ema: EMAHandler | None = None,
        validator: Engine | None = None,
        objects: Mapping[str, Stateful] | None = None,
        data: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        every_minutes: float = 5.0,
        every_steps: int | None = None,
        resume: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.latest, self.previous = self.folder / _LATEST, self.folder / _PREVIOUS
        self.ema = ema
        self.validator = validator
        self.objects = dict(objects or {})
        self.data = data
        self.settings = {name: str(value) for name, value in (settings or {}).items()}
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self.resume = resume
        self._best: float | None = None
        self._found: Path | None = None
        self._random: dict[str, Any] | None = None  # restored before the first step
        self._identity: dict[str, Any] = {}
        self._lock: IO[str] | None = None
        self._saved_step, self._saved_at = 0, time.monotonic()
        self._minutes = min(every_minutes, FIRST_MINUTES)

    def attach(self, trainer: Engine) -> None:
        """Resume when the trainer starts, and save between its steps and at its end."""
        trainer.add_event_handler(Events.STARTED, self._start)
        # all handlers of a step or an epoch run before the next batch is requested
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._before_step)

    def _start(self, trainer: Engine) -> None:
        if idist.get_rank() == 0:
            self._lock = lock(self.latest.with_name("lock"))
        if idist.all_reduce(float(idist.get_rank() == 0 and self._lock is None), "MAX"):
            raise TrainingError(
                "run.in_use",
                f"another process trains in {self.folder}; wait for its end, stop it, or give another --output_dir",
            )
        # before the first step: random transforms keep their last draw
        self._identity = _identity(trainer, self.data) | self.settings
        if self.resume:
            self._load(trainer)
        elif has_checkpoint(self.folder):
            raise TrainingError(
                "run.exists",
                f"{self.folder} already holds a run, but resume is false; expected no run; give another "
                "--output_dir, or delete the folder",
            )
        idist.barrier()
        if idist.get_rank() == 0:
            if self._found == self.previous:  # else the next checkpoint would overwrite the only readable one
                self.previous.replace(self.latest)
            for name in ("model.pt", "model_final.pt", "*.png", "checkpoints/latest.pt"):
                for part in self.folder.glob(f"{name}.[0-9]*{PART}"):  # left by a killed process
                    part.unlink()
        self._saved_step, self._saved_at = trainer.state.iteration, time.monotonic()
        # added here and not in `attach`, so that they run after the last validation
        trainer.add_event_handler(Events.TERMINATE, self._interrupted)
        trainer.add_event_handler(Events.COMPLETED, self._finish)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._keep_best, trainer)

    def _before_step(self, trainer: Engine) -> None:
        if self._random is not None:
            # not at the start: creating the data loader's iterator draws from torch's generator
            _set_random_states(self._random)
            self._random = None
        step = trainer.state.iteration
        if step > self._saved_step and (
            time.monotonic() - self._saved_at >= 60 * self._minutes
            or (self.every_steps is not None and step % self.every_steps == 0)
        ):
            self._save(trainer)

    def _interrupted(self, trainer: Engine) -> None:
        if trainer.should_terminate == "skip_completed":
            self._finish(trainer)

    def _finish(self, trainer: Engine) -> None:
        self._save(trainer)
        self._export(trainer, "model_final.pt")
        idist.barrier()  # torchrun kills all processes as soon as one has exited with the status of an interruption
        if self._lock is not None:
            self._lock.close()

    def _keep_best(self, trainer: Engine) -> None:
        state = self.validator.state
        best = float(state.best_metric)
        if math.isnan(best):  # MONAI accepts any first value as the best
            state.best_metric = state.best_metric_epoch = -1
            self._export(trainer, "model.pt")
        elif best != self._best:
            self._best = best
            self._export(trainer, "model.pt")

    def _export(self, trainer: Engine, name: str) -> None:
        if idist.get_rank() == 0:
            network = _unwrapped(trainer.network) if self.ema is None else self.ema.ema_model
            with replacing(self.folder / name) as part:
                torch.save(network.state_dict(), part)

    def _save(self, trainer: Engine) -> None:
        if idist.get_rank() == 0:
            state = {
                "identity": self._identity,
                "step": trainer.state.iteration,
                "best": None if self.validator is None else _best(self.validator),
                "random": self._random or _random_states(),
                "objects": {name: stateful.state_dict() for name, stateful in self.objects.items()},
                **{name: stateful.state_dict() for name, stateful in self._tensors(trainer).items()},
            }
            with replacing(self.latest, self.previous) as part:
                torch.save(state, part)
        self._saved_step, self._saved_at = trainer.state.iteration, time.monotonic()
        self._minutes = self.every_minutes

    def _tensors(self, trainer: Engine) -> dict[str, Any]:
        tensors = {"network": _unwrapped(trainer.network), "optimizer": trainer.optimizer, "scaler": trainer.scaler}
        return tensors if self.ema is None else tensors | {"ema": self.ema.ema_model}

    def _load(self, trainer: Engine) -> None:
        state = self._read()
        if state is None:
            return
        _check_identity(self.folder, state["identity"], self._identity)
        if (done := -(-state["step"] // trainer.state.epoch_length)) > trainer.state.max_epochs:
            raise TrainingError(
                "run.longer",
                f"{self.folder} holds a run of {done} epochs already, and max_epochs is {trainer.state.max_epochs}; "
                f"expected {done} or more; raise --max_epochs, or give another --output_dir",
            )
        for name in self.objects.keys() & state["objects"].keys():
            self.objects[name].load_state_dict(state["objects"][name])
        # the optimiser's settings come from the config, not from the checkpoint
        settings = [{k: v for k, v in g.items() if k != "params"} for g in trainer.optimizer.param_groups]
        for name, stateful in self._tensors(trainer).items():
            if state.get(name):  # a disabled scaler has no state
                stateful.load_state_dict(state[name])
        for group, setting in zip(trainer.optimizer.param_groups, settings, strict=True):
            group.update(setting)
        if self.validator is not None and state["best"] is not None:
            self._best, self.validator.state.best_metric_epoch = state["best"]
            self.validator.state.best_metric = self._best
        self._random = state["random"]
        trainer.state.iteration = state["step"]
        trainer.state.epoch = state["step"] // trainer.state.epoch_length
        trainer.data_loader.batch_sampler.set_position(state["step"])
        logger.info("resumed after step %d, from %s", state["step"], self._found)

    def _read(self) -> dict[str, Any] | None:
        faults = []
        for path in (self.latest, self.previous):
            if path.exists():
                try:
                    state = load_verified(path, "cpu")
                    self._found = path
                    return state
                except Exception as error:  # torch raises many types of errors for a damaged file
                    faults.append(f"{path.name} ({type(error).__name__}: {str(error).partition(chr(10))[0]})")
                    logger.warning("%s can't be read; trying the previous checkpoint", path)
        if faults:
            raise TrainingError(
                "run.damaged",
                f"no checkpoint in {self.latest.parent} can be read: {', '.join(faults)}; restore one, or delete the "
                "folder to train from the start",
            )
        return None


def _check_identity(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise `TrainingError` "run.differs" if a checkpoint belongs to another run; arguments as `_identity` returns."""
    changes = []
    for name, value in new.items():
        before = old.get(name, value)  # earlier versions did not write all entries
        if before == value:
            continue
        if isinstance(value, list):
            removed, added = ([v for v in one if v not in other] for one, other in ((before, value), (value, before)))
            order = "in another order" if not removed and not added else "without"
            before, value = (", ".join(v) or order for v in (removed, added))
        changes.append(f"{name}: was {before}, is {value}")
        if name == "cases a step":
            changes[-1] += " (batch_size times the number of GPUs)"
    if changes:
        raise TrainingError(
            "run.differs",
            f"{folder} holds a run with other settings. {'; '.join(changes)}. "
            "Resume it with the same settings, or give another --output_dir",
        )


def _identity(trainer: Engine, data: Mapping[str, str] | None) -> dict[str, Any]:
    """Return, as name -> description, the settings that must not change when a run is resumed."""
    network, dataset = _unwrapped(trainer.network), trainer.data_loader.dataset
    sampler = trainer.data_loader.batch_sampler
    weights = sum(p.numel() for p in network.parameters())
    layers = re.sub("0x[0-9a-f]+", "", str(network))  # without memory addresses
    files = [f"{name} ({data[name]})" for case in dataset.data if data and (name := case.get("name")) in data]
    return ({"files of cases": files} if files else {}) | {
        "network": f"{type(network).__name__} of {weights:,} weights ({fingerprint(layers)[:8]})",
        "optimiser": type(trainer.optimizer).__name__,
        "loss": _name_and_fingerprint(trainer.loss_function),
        "cases": f"{len(dataset.data)} ({fingerprint([case.get('name', case) for case in dataset.data])[:8]})",
        "preprocessing": [_name_and_fingerprint(t) for t in dataset.cases.transform.flatten().transforms],
        # not flattened, which would replace the generators of the transforms
        "augmentation": [_name_and_fingerprint(t) for t in dataset.random.transforms],
        "cases a step": sampler.global_batch_size,
        "steps an epoch": trainer.state.epoch_length,
        "seed": sampler.seed,
    }


def _name_and_fingerprint(component: Any) -> str:
    """Return the name of a transform or loss and a fingerprint of its settings."""
    return f"{getattr(component, '__name__', type(component).__name__)} ({fingerprint(component)[:8]})"


def _best(validator: Engine) -> list[float]:
    return [float(validator.state.best_metric), validator.state.best_metric_epoch]


def _unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network inside torch's wrappers for distributed training and compilation."""
    for name in ("module", "_orig_mod"):
        network = getattr(network, name, network)
    return network


def _random_states() -> dict[str, Any]:
    """Return the random states of Python, numpy and torch, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - a transform may draw from it
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_states(states: dict[str, Any]) -> None:
    """Restore random states, as `_random_states` returns them."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
