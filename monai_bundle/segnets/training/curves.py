"""Draw the learning curves of a run, and compare several runs.

python -m segnets.training.curves RUN [RUN ...] -o compare.png
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from segnets.files import replacing
from segnets.training.history import History, read_history

logger = logging.getLogger("segnets")

Lines = list[dict[str, Any]]


class LearningCurve:
    """Draw the learning curves after each validation and at the end; a handler of the trainer, after its `History`.

    Args:
        history: history that is drawn.
        path: PNG file, replaced each time.
    """

    def __init__(self, history: History, path: str | Path) -> None:
        self.history = history
        self.path = Path(path)

    def attach(self, trainer: Engine) -> None:
        """Draw after each validation of the history's validator and at the trainer's end."""
        if not can_draw(self.path):
            return
        if self.history.validator is not None:
            self.history.validator.add_event_handler(Events.COMPLETED, self._draw)
        trainer.add_event_handler(Events.COMPLETED, self._draw)

    def _draw(self) -> None:
        if idist.get_rank() == 0 and self.history.path.exists():
            draw_curves({self.path.parent.name: read_history(self.history.path)}, self.path)


def can_draw(path: Path) -> bool:
    """Return whether matplotlib, which training does not need, is installed; log it if it is not."""
    if find_spec("matplotlib"):
        return True
    logger.info(f"{path.name} will not be drawn: matplotlib is not installed")
    return False


def draw_curves(runs: Mapping[str, Lines], path: str | Path) -> None:
    """Draw the loss and the Dice over the epochs into a PNG file, with the best validation of each run marked.

    A single run is drawn with its learning rate and the Dice of every class, several runs with their mean Dice only.

    Args:
        runs: name of a run -> lines of its history.
        path: PNG file, replaced in one step.
    """
    # imported here, because training must not need matplotlib; not pyplot, because its figures are global
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    loss_axes, dice_axes = figure.subplots(2, 1, sharex=True)
    for name, lines in runs.items():
        epochs, losses = _series(lines, "loss")
        (curve,) = loss_axes.plot(epochs, losses, label=name, color="black" if len(runs) == 1 else None)
        epochs, dice = _series(lines, "mean_dice")
        dice_axes.plot(epochs, dice, ".-", color=curve.get_color(), label=name if len(runs) > 1 else "mean")
        best = best_validation(lines)
        if best is not None:
            label = f"{best['mean_dice']:.4f} (epoch {best['epoch']})"
            dice_axes.plot(best["epoch"], best["mean_dice"], "*", markersize=13, color=curve.get_color(), label=label)
    if len(runs) == 1:
        (lines,) = runs.values()
        rate_axes = loss_axes.twinx()
        rate_axes.plot(*_series(lines, "lr"), color="0.7", linewidth=1)
        rate_axes.set_ylabel("learning rate", color="0.5")
        for label in next((line["dice"] for line in lines if "dice" in line), {}):
            of_class = [{"epoch": line["epoch"], "dice": line["dice"][label]} for line in lines if "dice" in line]
            dice_axes.plot(*_series(of_class, "dice"), linewidth=1, label=label)
    loss_axes.set_ylabel("training loss")
    legends = [loss_axes.legend()]
    dice_axes.set(xlabel="epoch", ylabel="validation Dice")
    if dice_axes.lines:
        legends.append(dice_axes.legend(loc="lower right"))
    for legend in legends:
        for text in legend.get_texts():
            text.set_parse_math(False)  # what is between $ in a name is no formula
    for axes in (loss_axes, dice_axes):
        axes.grid(alpha=0.3)
    with replacing(path, is_optional=True) as part:
        figure.savefig(part, format="png", dpi=110)


def best_validation(lines: Lines) -> dict[str, Any] | None:
    """Return the line of the validation with the highest mean Dice, the first one of equals; None if there is none."""
    return max((x for x in lines if x.get("mean_dice") is not None), key=lambda x: x["mean_dice"], default=None)


def table(runs: Mapping[str, Lines]) -> str:
    """Return a table with a line per run: best mean Dice, its epoch, epochs, minutes, and the best Dice per class."""
    rows = [("run", "best Dice", "epoch", "epochs", "minutes", "Dice of each class")]
    for name, lines in runs.items():
        best = best_validation(lines) or {}
        dice = "  ".join(f"{label} {_rounded(value)}" for label, value in best.get("dice", {}).items())
        epochs = max((line["epoch"] for line in lines if "loss" in line), default=0)
        minutes = max((line["seconds"] for line in lines if "seconds" in line), default=0) / 60
        rows.append(
            (name, _rounded(best.get("mean_dice")), str(best.get("epoch", "-")), str(epochs), f"{minutes:.1f}", dice)
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _series(lines: Lines, key: str) -> tuple[list[int], list[float]]:
    found = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the runs and draw their curves into one PNG file."""
    parser = argparse.ArgumentParser(prog="python -m segnets.training.curves", description="Compare runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a training")
    parser.add_argument("-o", "--output", type=Path, default=Path("compare.png"), help="PNG file to write")
    parsed = parser.parse_args(arguments)
    missing = [str(run) for run in parsed.runs if not (run / "history.jsonl").is_file()]
    if missing:
        parser.error(f"found no history.jsonl in {', '.join(missing)}; give output folders of trainings")
    runs = {str(run): read_history(run) for run in parsed.runs}
    print(table(runs))
    draw_curves(runs, parsed.output)
    print(f"wrote {parsed.output}")


if __name__ == "__main__":
    main()
