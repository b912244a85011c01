"""Test the test of learning rates: what is suggested, and that it takes the steps of the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import make_run

from segnets.training import Trainer  # isort: skip - within reach by tiny_run
from segnets.training.rate import RateFinder, RateTest  # isort: skip - within reach by tiny_run


def test_a_tenth_of_the_rate_with_the_lowest_loss_is_suggested() -> None:
    rates = np.geomspace(1e-6, 1, 61)  # ten in each decade
    losses = (np.log10(rates) + 2) ** 2 + np.random.default_rng(0).normal(0, 0.05, 61)
    assert RateTest(rates, losses).suggested == pytest.approx(1e-3, rel=0.5)
    assert RateTest(rates, -np.log10(rates)).suggested is None
    assert RateTest(rates, np.log10(rates)).suggested is None
    assert RateTest(rates[:0], losses[:0]).suggested is None


def test_rates_grow_from_step_to_step_until_the_loss_diverges(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run")
    trainer = Trainer(  # without the handlers that schedule and save
        max_epochs=1,
        device="cpu",
        train_data_loader=made.data_loader,
        network=made.network,
        loss_function=made.loss_function,
        optimizer=made.optimizer,
    )
    found = RateFinder(tmp_path / "rate.png", learning_rate=0.02, steps=60).run(trainer)
    assert found.rates[0] == pytest.approx(2e-5)
    assert len(found.rates) == len(found.losses) > 30
    assert found.suggested is not None
    assert 1e-4 < found.suggested < 1
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(found.rates[-1])
    assert Image.open(tmp_path / "rate.png").size == (600, 400)
