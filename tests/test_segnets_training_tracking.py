"""Test the trackers with stand-ins for their services."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_engines import engines

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.training.history import read_history
from segnets.training.tracking import Aim, WandB, numbers


class Service:
    """Stands in for the run of a service."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.has_ended = False

    def init(self, **options: Any) -> Service:
        self.options = options
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.sent.append((step, values))

    def track(self, value: float, name: str, step: int) -> None:
        self.sent.append((step, {name: value}))

    def finish(self) -> None:
        self.has_ended = True

    close = finish


def test_numbers_are_flat_and_without_nulls() -> None:
    line = {"epoch": 6, "step": 498, "mean_dice": None, "dice": {"front": 0.5, "back": None}, "seconds": 3}
    assert numbers(line) == {"epoch": 6, "dice/front": 0.5, "seconds": 3}


@pytest.mark.parametrize(("kind", "module"), [(WandB, "wandb"), (Aim, "aim")])
def test_all_lines_are_sent(kind: Any, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(init=service.init, Run=service.init))
    trainer, history = engines(tmp_path / "run", epochs=2)
    kind(history, tmp_path / "run", "project").attach(trainer)
    trainer.run()
    assert "project" in service.options.values()
    assert str(tmp_path / "run") in service.options.values()
    sent: dict[int, dict[str, float]] = {}
    for step, values in service.sent:
        sent.setdefault(step, {}).update(values)
    expected: dict[int, dict[str, float]] = {}
    for line in read_history(tmp_path / "run"):
        expected.setdefault(line["step"], {}).update(numbers(line))
    assert sent == expected
    assert {"loss", "lr", "mean_dice", "dice/front"} <= sent[6].keys()
    assert service.has_ended


def test_a_service_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service()

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(service, "log", fail)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=service.init))
    trainer, history = engines(tmp_path, epochs=2)
    WandB(history, tmp_path).attach(trainer)
    with caplog.at_level(logging.WARNING, logger="segnets"):
        trainer.run()
    assert trainer.state.epoch == 2
    assert caplog.text.count("WandB failed (no network)") == 1


def test_an_interrupted_run_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=service.init))
    trainer, history = engines(tmp_path, epochs=4)
    WandB(history, tmp_path).attach(trainer)
    history.listeners.append(lambda line: trainer.terminate(skip_completed=True))
    trainer.run()
    assert trainer.state.epoch == 1
    assert service.has_ended
