"""Test the test of learning rates: what is suggested, and that it takes the steps of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import make_run
from torch import nn

from napari_seg.errors import OutputError
from napari_seg.training import rate
from napari_seg.training.rate import RateTest, check_picture, run_steps

from segnets.errors import TrainingError  # isort: skip - within reach by tiny_run
from segnets.training import Trainer  # isort: skip - within reach by tiny_run

RATES = 2e-4 * np.geomspace(1e-3, 1e3, 100)


def test_a_tenth_of_the_rate_with_the_lowest_loss_is_suggested() -> None:
    rates = np.geomspace(1e-6, 1, 61)  # ten in each decade
    losses = (np.log10(rates) + 2) ** 2 + np.random.default_rng(0).normal(0, 0.05, 61)
    losses[:20] = losses[20]
    assert RateTest(rates, losses).suggested == pytest.approx(1e-3, rel=0.5)
    assert RateTest(rates, -np.log10(rates)).suggested is None  # falls to the end
    assert RateTest(rates, np.log10(rates)).suggested is None
    assert RateTest(rates[:0], losses[:0]).suggested is None


def test_noise_is_no_minimum() -> None:
    rise = 0.6 * np.clip(np.log10(RATES / 1e-3), 0, None)  # flat until the rate is too large
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.04, 100)
        assert RateTest(RATES, 0.15 + noise).suggested is None
        assert RateTest(RATES, 0.15 + noise + rise).suggested is None
        fall = 0.25 * np.clip(np.log10(RATES / 2e-5), 0, 1)
        found = RateTest(RATES, 0.5 + noise + rise - fall).suggested
        assert found is not None
        assert 1e-5 < found < 2e-4


def make_trainer(folder: Path, loss: Any = None) -> Trainer:
    made = make_run(folder)
    return Trainer(  # without the handlers that schedule and save
        max_epochs=1,
        device="cpu",
        train_data_loader=made.data_loader,
        network=made.network,
        loss_function=loss or made.loss_function,
        optimizer=made.optimizer,
    )


def test_rates_grow_from_step_to_step_until_the_loss_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "STEPS", 60)
    trainer, lines = make_trainer(tmp_path / "run"), []
    found = run_steps(trainer, 0.02, lines.append)
    assert found.rates[0] == pytest.approx(2e-5)
    assert len(found.rates) == len(found.losses) > 30
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(found.rates[-1])
    assert lines[0] == "20 of up to 60 steps"
    rate._draw(found, 0.02, tmp_path / "rate.png")
    assert Image.open(tmp_path / "rate.png").size == (600, 400)


def test_a_first_loss_that_is_not_finite_is_reported(tmp_path: Path) -> None:
    class Infinite(nn.Module):
        def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return logits.sum() * torch.inf

    with pytest.raises(TrainingError, match=r"training\.diverged.*in step 1"):
        run_steps(make_trainer(tmp_path / "run", Infinite()), 0.02, print)


def test_the_picture_must_be_a_new_file(tmp_path: Path) -> None:
    check_picture(tmp_path / "rate.png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "scan.png").write_bytes(b"another")
    for path, code in ((tmp_path / "scan.png", "exists"), (tmp_path, "exists"), (tmp_path / "no" / "a", "not_written")):
        with pytest.raises(OutputError, match=rf"output\.{code}.*--find-rate"):
            check_picture(path)
    assert (tmp_path / "scan.png").read_bytes() == b"another"
