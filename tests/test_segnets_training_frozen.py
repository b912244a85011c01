"""Frozen stages stay as they are, and a run that releases them resumes exactly."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from ignite.engine import Engine, Events
from tiny_run import losses, make_run, run
from torch import nn

import segnets  # isort: skip - within reach by tiny_run
from segnets.errors import TrainingError  # isort: skip
from segnets.training.frozen import FrozenStages  # isort: skip


def frozen_run(folder: Path, epochs: int | None, stop_at: int | None = None) -> Any:
    """Train for 4 epochs of 3 steps with the first convolution frozen, and return the trainer."""
    trainer = make_run(folder)
    trainer.network.__dict__["encoder"] = nn.ModuleList([trainer.network[0]])
    FrozenStages(trainer.network, 1, epochs).attach(trainer)
    if stop_at is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), lambda: (folder / "stop").touch())
    trainer.run()
    return trainer


def test_frozen_weights_stay_and_the_optimiser_has_no_state_of_them(tmp_path: Path) -> None:
    before = make_run(tmp_path / "same").network.state_dict()
    trainer = frozen_run(tmp_path / "run", None)
    for name in ("weight", "bias"):
        assert torch.equal(getattr(trainer.network[0], name), before[f"0.{name}"])  # no decay either
    assert not torch.equal(trainer.network[3].weight, before["3.weight"])
    assert len(trainer.optimizer.state) == 2


@pytest.mark.parametrize("stop_at", [4, 6, 7])
def test_a_run_that_releases_its_stages_resumes_exactly(tmp_path: Path, stop_at: int) -> None:
    whole = frozen_run(tmp_path / "whole", 2)
    frozen_run(tmp_path / "stopped", 2, stop_at)
    assert len(losses(tmp_path / "stopped")) == stop_at
    resumed = frozen_run(tmp_path / "stopped", 2)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)
    steps = [int(state["step"]) for state in whole.optimizer.state.values()]
    assert sorted(steps) == [6, 6, 12, 12]  # the released weights begin with a state of their own


def test_running_statistics_of_frozen_stages_stay() -> None:
    network = nn.Module()
    network.encoder = nn.ModuleList([nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), nn.BatchNorm2d(2)])

    def step(engine: Engine, batch: Any) -> None:
        network.train()
        network.encoder[1](network.encoder[0](torch.rand(2, 1, 3, 3)))

    engine = Engine(step)
    FrozenStages(network, 1, epochs=1).attach(engine)
    frozen, other = network.encoder[0][1], network.encoder[1]
    engine.run([0, 1], max_epochs=1)
    assert (int(frozen.num_batches_tracked), int(other.num_batches_tracked)) == (0, 2)
    engine.run([0, 1], max_epochs=2)
    assert (int(frozen.num_batches_tracked), int(other.num_batches_tracked)) == (2, 4)


@pytest.mark.parametrize("network", ["UNet", "FCN", "DeepLabV3", "DeepLabV3Plus", "MultiView"])
def test_the_encoders_of_all_networks_are_found(network: str) -> None:
    dims = 3 if network == "MultiView" else 2
    built = getattr(segnets, network)(dims, 1, 3)
    first, encoder = (FrozenStages(built, stages).frozen for stages in (1, "encoder"))
    prefixes = [name for name, module in built.named_modules() if module in encoder]
    assert all("encoder" in name for name in prefixes)
    of_encoder = sum(p.numel() for name, p in built.named_parameters() if "encoder." in name)
    assert sum(p.numel() for module in encoder for p in module.parameters()) == of_encoder
    assert 0 < sum(p.numel() for module in first for p in module.parameters()) < of_encoder


def test_what_can_not_be_frozen_is_refused() -> None:
    for stages in (5, -1, "all", 1.5):
        with pytest.raises(TrainingError, match=r"network.stages: .*expected 0 to 4"):
            FrozenStages(segnets.UNet(2, 1, 2), stages)
    with pytest.raises(TrainingError, match="has no encoder"):
        FrozenStages(nn.Conv2d(1, 2, 1), 1)
    assert not FrozenStages(nn.Conv2d(1, 2, 1)).frozen


def test_a_run_resumes_only_with_the_same_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = tiny_run.Checkpoints
    run(tmp_path, max_epochs=1)  # of an earlier version, which did not write the setting
    for stages, epochs in ((1, 2), (1, 3)):
        monkeypatch.setattr(tiny_run, "Checkpoints", partial(checkpoints, settings={"frozen stages": stages}))
        run(tmp_path, max_epochs=epochs)
    monkeypatch.setattr(tiny_run, "Checkpoints", partial(checkpoints, settings={"frozen stages": 2}))
    with pytest.raises(TrainingError, match=r"run.differs: .*frozen stages: was 1, is 2"):
        run(tmp_path, max_epochs=4)
