"""Write the files of a run as `segnets.training` writes them, without a training."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("front", "back")


def lines_of(epochs: int, every: int = 2) -> list[dict[str, Any]]:
    """Return a history of 3 steps per epoch, validated after every second one; the Dice rises and then falls a bit."""
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        if epoch % every == 0:
            front = 0.9 - 0.3 / epoch - (0.05 if epoch > 0.8 * epochs else 0)
            dice = {"front": front, "back": front - 0.1}
            lines.append({"epoch": epoch, "step": 3 * epoch, "mean_dice": front - 0.05, "dice": dice,
                          "planned_steps": 30, "seconds": 2.0 * epoch})  # fmt: skip
        lines.append({"epoch": epoch, "step": 3 * epoch, "loss": 1 / epoch, "lr": 0.01, "seconds": 2.0 * epoch})
    return lines


def progress_of(epoch: int, stage: str = "training", **values: Any) -> dict[str, Any]:
    """Return the line of progress.jsonl after a number of 10 epochs."""
    progress = {"stage": stage, "epoch": epoch, "epochs": 10, "step": 3 * epoch, "steps": 30, "loss": 1 / epoch,
                "seconds": 2.0 * epoch, "seconds_left": 2.0 * (10 - epoch), "done": 0, "total": 0,
                "time": time.time()}  # fmt: skip
    return progress | values


def write_run(folder: Path, epochs: int = 10, stage: str = "ended", cases: int = 6) -> Path:
    """Write history.jsonl, progress.jsonl, validation.jsonl and worst_best.png of a run, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "history.jsonl", lines_of(epochs))
    write_lines(folder / "progress.jsonl", [progress_of(epochs, stage)])
    scores = [
        {"case": f"case_{n}", "epoch": epochs, "mean_dice": {"front": 0.9 - 0.05 * n, "back": None if n else 0.6}}
        for n in range(cases)
    ]
    write_lines(folder / "validation.jsonl", scores)
    Image.new("RGB", (90, 60)).save(folder / "worst_best.png")
    return folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write lines of JSON."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
