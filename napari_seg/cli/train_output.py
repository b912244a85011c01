"""Output of `napari-seg train`: the plan before a training, its scores and the next command after it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def print_comparison(rows: list[list[str]]) -> None:
    """Print the table of compared configurations and the rule behind it."""
    from napari_seg.training.comparison import COMPARED_RULE, HEADS

    widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]
    for row in (HEADS, *rows):
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print(COMPARED_RULE)


def print_bundle(out: Path, plan: dict[str, Any], *, is_useful: bool = True) -> None:
    """Remember the consent to a trained bundle, and print where it is and, if it is useful, how it is used."""
    from napari_seg.bundles.read import read_bundle
    from napari_seg.bundles.spec import MEMBERS, WEIGHTS
    from napari_seg.bundles.trust import remember
    from napari_seg.errors import BundleError

    if (out / WEIGHTS).is_file() or (out / MEMBERS).is_dir():
        with suppress(OSError, BundleError):  # then predict asks for consent
            remember(read_bundle(out))  # what this person trained here needs no further consent
        print(f"bundle  {out}")
        if is_useful:
            print(f"try     {shlex.join(predicting(plan, out))}")


def predicting(plan: dict[str, Any], out: Path) -> list[str]:
    """Return the words of a command that segments a scan with the bundle."""
    found = plan["fingerprint"]
    channels = () if found["modality"] == "image2d" else found.get("channels", ())
    scan = ["SCAN"] if len(channels) < 2 else [word for name in channels for word in ("--channel", f"{name}=FILE")]
    return ["napari-seg", "predict", *scan, "--model", str(out), "-o", "results"]


def print_plan(plan: dict[str, Any], limits: dict[str, Any]) -> None:
    """Print the plan, the network with its memory, and the time."""
    from napari_seg.training.describe import network_rows, plan_rows, time_rows
    from napari_seg.training.memory_plan import find_device

    for heading, text in (*plan_rows(plan), *network_rows(plan, find_device()), *time_rows(plan, limits)):
        print(f"{heading:<8}{text}")
    sys.stdout.flush()


_OF_FOLD = 2
"""Number of commands of a fold: its training and its evaluation."""


def print_commands(commands: Sequence[Sequence[str]], fold: int | None) -> None:
    """Print the commands of a training.

    Args:
        commands: the commands.
        fold: index of the only fold that is trained; None: all, of which the first one is printed.
    """
    lines = [shlex.join(words) for words in commands]
    if fold is None and (more := lines[_OF_FOLD:]):
        lines[_OF_FOLD:] = [f"... and {len(more)} more; --fold I prints those of a fold"]
    print("would run", *lines, sep="\n  ")


def print_rate(rate: dict[str, Any], picture: Path) -> None:
    """Print the planned and the suggested learning rate."""
    text = f"learning_rate {rate['planned']:g} is planned; "
    tested = f"in {rate['steps']} steps"
    if rate["suggested"] is None:
        text += f"no other one stands out from the noise of the losses {tested}: keep it"
    else:
        text += (
            f"{rate['suggested']:g} is suggested, a tenth of the one with the lowest loss {tested}; "
            f"--set learning_rate={rate['suggested']:g} takes it"
        )
    print(f"rate    {text} ({picture})")


def print_best(best: dict[str, Any] | None) -> None:
    """Print the Dice of the best validation."""
    if best is None:
        print("no validation; the last weights are the bundle's")
        return
    each = ", ".join(f"{name} {value:.4f}" for name, value in best["dice"].items() if value is not None)
    print(f"best    Dice {best['mean_dice']:.4f} in epoch {best['epoch']} ({each})")


MIN_DICE = 0.1
"""Mean Dice below which few steps were not enough for weights that were trained before."""


def print_steps(steps: tuple[int, int] | None, tuned_dice: float | None = None) -> bool:
    """Print how many of the planned steps were reached, with advice if they were few; nothing if all were.

    Args:
        steps: reached and planned steps; None if they are not known.
        tuned_dice: best mean Dice of a fine-tuning, which may need few steps; None for any other training.

    Returns:
        Whether they were enough for a useful network.
    """
    from napari_seg.training.time_plan import FEW

    if steps is None or steps[0] >= steps[1]:
        return True
    reached, planned = steps
    print(f"steps   {reached} of {planned} planned ({reached / planned:.1%})")
    is_useful = reached >= FEW * planned or (tuned_dice is not None and tuned_dice >= MIN_DICE)
    if not is_useful:
        print(
            "        too few for a useful network: run the same command with a larger --max-minutes, or without it, to "
            "continue; for a shorter plan use --max-epochs and a new folder"
        )
    return is_useful


def print_scores(out: Path) -> None:
    """Print the scores in the metadata of the bundle, and what they were measured on."""
    from napari_seg.errors import counted
    from napari_seg.training.scores import explain, read_evaluation, score_rows

    if (entry := read_evaluation(out)) is None:
        return
    rows = score_rows(entry)
    width = max(len(row[0]) for row in rows)
    print(f"{entry['part']}: Dice on the grids of the images, with 95 % intervals")
    for name, cases, mean, interval, _ in rows:
        print(f"        {name:{width}}  {mean} ({interval}), {counted(int(cases), 'case')}")
    print(f"        {explain(entry)}")


def print_report(out: Path) -> None:
    """Print where the report is, if there is one."""
    from napari_seg.training.report import REPORT

    if (out / REPORT).is_file():
        print(f"report  {out / REPORT}")


def print_folds(dice: dict[str, list[float]], folds: int) -> None:
    """Print mean and standard deviation of each structure over the finished folds."""
    from math import nan
    from statistics import mean, stdev

    for name, values in dice.items():
        spread = f" +- {stdev(values):.4f}" if len(values) > 1 else ""
        print(f"Dice    {name} {mean(values or [nan]):.4f}{spread} over {len(values)} of {folds} folds")
    if dice:
        print("        slightly optimistic: measured on the cases that selected the best epoch of each fold")


def print_line(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)
