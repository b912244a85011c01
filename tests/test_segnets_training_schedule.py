"""Test schedules by steps and by minutes."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.training import Schedule, StopAfterMinutes


def rates(make: Any, fractions: list[float], epochs: int) -> list[float]:
    """Return the rate before each of 10 steps per epoch, with the used fraction of the time after each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    minutes = StopAfterMinutes(1)
    schedule = Schedule(make(optimizer, 10 * epochs), minutes)
    found = []

    def step(engine: Engine, _: Any) -> None:
        found.append(optimizer.param_groups[0]["lr"])
        minutes.fraction = fractions[engine.state.epoch - 1]

    engine = Engine(step)
    schedule.attach(engine)
    engine.run(range(10), max_epochs=len(fractions))
    engine.state.max_epochs = epochs
    return found


SCHEDULES = {
    "linear": lambda o, n: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=n),
    "cosine": lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, n),
    "polynomial": lambda o, n: torch.optim.lr_scheduler.PolynomialLR(o, n, 0.9),
    "one cycle": lambda o, n: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=n),
    "warm-up": lambda o, n: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=5),
            torch.optim.lr_scheduler.CosineAnnealingLR(o, n - 5),
        ],
        [5],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_schedule_follows_the_larger_fraction_of_steps_or_time(name: str) -> None:
    planned = rates(SCHEDULES[name], [0.0] * 4, 4)
    assert len(set(planned)) > 30
    # by the end of the first epoch half of the time is gone: step 20 of 40 less one
    hurried = rates(SCHEDULES[name], [0.5, 0.5, 0.99, 0.99], 4)
    assert hurried[0] == planned[0]
    assert hurried[1] == hurried[2] == hurried[10] == planned[round(0.5 * 39)]
    assert hurried[19] == planned[max(19, round(0.5 * 39))]
    assert hurried[21] == hurried[39] == planned[39]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_resumed_by_the_step_and_the_minutes(name: str) -> None:
    planned = rates(SCHEDULES[name], [0.0] * 4, 4)
    for step, fraction, expected in ((17, 0.0, 17), (17, 0.5, round(0.5 * 39)), (39, 1.0, 39)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        minutes = StopAfterMinutes(1)
        minutes.load_state_dict({"seconds": 60 * fraction})
        schedule = Schedule(SCHEDULES[name](optimizer, 40), minutes)
        engine = Engine(lambda *_: None)
        schedule.attach(engine)
        engine.state.max_epochs, engine.state.epoch_length, engine.state.iteration = 4, 10, step
        engine.fire_event(Events.STARTED)
        assert optimizer.param_groups[0]["lr"] == planned[expected]
        assert schedule.steps == expected
