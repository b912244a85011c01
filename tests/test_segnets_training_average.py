"""Test the moving average of the weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from tiny_run import (
    make_run,
    run,
    volumes,
)

from segnets.training import WeightAverage  # isort: skip


def test_the_average_of_a_short_run_is_as_good_as_its_network(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 16, "dropout": 0.0, "every_steps": None}
    first = make_run(tmp_path / "first", **options).network
    trainer = run(tmp_path / "run", **options)
    assert trainer.state.iteration == 48
    average = copy.deepcopy(first)
    average.load_state_dict(torch.load(tmp_path / "run" / "model_final.pt", weights_only=True))
    images, labels = (torch.as_tensor(np.stack([case[key] for case in volumes(5)])) for key in ("image", "label"))
    with torch.no_grad():
        begun, last, mean = (
            trainer.loss_function(net.eval()(images), labels).item() for net in (first, trainer.network, average)
        )
    assert last < 0.95 * begun
    assert mean < last + 0.1 * (begun - last)  # with momentum alone: by nine tenths


def test_the_average_weighs_its_steps_by_their_number() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 100.0)
    average = WeightAverage(network, momentum=0.7)
    engine = Engine(lambda engine, batch: network.weight.data.fill_(batch))
    average.attach(engine)
    engine.run([1.0, 2.0, 3.0, 4.0])
    expected = 100.0
    for weight, momentum in ((1.0, 9 / 11), (2.0, 9 / 12), (3.0, 0.7), (4.0, 0.7)):
        expected = (1 - momentum) * expected + momentum * weight
    assert average.ema_model.weight.item() == pytest.approx(expected)
