"""Trains a planned bundle: MONAI's own command in a process of its own, and what is left of it in the bundle."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from napari_seg.bundle import METADATA, WEIGHTS
from napari_seg.errors import Cancelled, TrainingError
from napari_seg.planning.choices import digest

RUN = "training"
"""The run's folder inside the bundle."""
STOP = "stop"
"""A file of this name in the bundle stops whatever is run for it."""
_TAIL = 100_000
_ERROR = re.compile(r"TrainingError: ([a-z_]+\.[a-z_]+): (.+?)\s*(?:\n\s*\n|\Z)", re.DOTALL)


def command(run_id: str, root: Path, **values: Any) -> list[str]:
    """What a person would type to run one of the bundle's configs.

    Args:
        run_id: "training", "evaluating" or "inference".
        root: the bundle.
        values: of the config's ids.
    """
    config = {"training": "train", "evaluating": "evaluate", "inference": "inference"}[run_id]
    words = [sys.executable, "-m", "monai.bundle", "run", run_id]
    words += ["--config_file", str(root / "configs" / f"{config}.yaml")]
    for name, value in values.items():
        words += [f"--{name}", "$None" if value is None else str(value)]  # MONAI takes None itself for not said
    return words


def training_command(
    root: Path, dataset_dir: Path, folder: str = RUN, fine_tune: Mapping[str, str] | None = None, **values: Any
) -> list[str]:
    """The training of a bundle in one of its folders.

    Args:
        root: the bundle.
        dataset_dir: its data set.
        folder: the run's.
        fine_tune: the weights to begin from, as of `Choices`; a run that has begun does not need them.
        values: of the config's ids, as of `command`.

    Raises:
        TrainingError: `weights.missing` or `weights.changed`, they are needed and are not what they were.
    """
    if fine_tune and not any((root / folder / "checkpoints").glob("*.pt")):
        weights = (root / fine_tune["file"]).resolve()
        if digest(weights) != fine_tune["sha256"]:
            raise TrainingError(
                "weights.changed",
                f"{weights} holds other weights than when {root} was planned to begin from them; bring those back and "
                "say where they are with --fine-tune, or choose a new folder with -o",
            )
        values["finetune"] = weights
    return command("training", root, dataset_dir=dataset_dir, output_dir=root / folder, **values)


def train(root: Path, dataset_dir: Path, **values: Any) -> dict[str, Any] | None:
    """Begins a bundle's training or goes on with it; its best weights so far end in the bundle, stopped or not.

    Args:
        root: the bundle.
        dataset_dir: its data set.
        values: as of `training_command`.

    Returns:
        {"mean_dice", "epoch", "dice": {name: Dice}, ...} of the best validation; None if there was none.

    Raises:
        TrainingError: the training failed.
        Cancelled: it was interrupted.
    """
    try:
        run(training_command(root, dataset_dir, **values), root / STOP)
    finally:
        best, weights = _best_validation(root / RUN), weights_of(root / RUN)
        if weights:
            ship(root, weights, {"validation mean Dice": best["mean_dice"]} if best else {})
    return best


def run(words: list[str], stop_file: Path) -> None:
    """Runs a command to its end, with all it says.

    An interrupt (Ctrl-C, SIGTERM, a closed terminal) is passed on, and the command's own end awaited: it saves.

    Args:
        words: the command.
        stop_file: interrupts it too, as SIGTERM does, and is removed.

    Raises:
        TrainingError: it failed; with the command's own code and message where it gave one.
        Cancelled: it was interrupted; the message says whether it has saved.
    """
    # its errors are read on the way through; a terminal stays one, so that its progress bar does too
    reading, writing = os.openpty() if sys.stderr.isatty() else os.pipe()
    # MONAI warns that a config's code will run, which is what was asked for
    quiet = ["ignore::UserWarning:monai.bundle.scripts", "ignore::UserWarning:monai.data.meta_tensor"]
    filters = [*quiet, *filter(None, [os.environ.get("PYTHONWARNINGS")])]  # of several that fit, the last one counts
    environment = {**os.environ, "PYTHONWARNINGS": ",".join(filters)}
    child = subprocess.Popen(words, stderr=writing, process_group=0, env=environment)
    os.close(writing)
    interrupted = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def pass_on_file() -> None:
        if stop_file.exists():
            stop_file.unlink()
            pass_on(signal.SIGTERM, None)

    signals = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in signals}
    try:
        said = _copy_to_stderr(reading, pass_on_file)
        status = child.wait()
    finally:
        os.close(reading)
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted:
        # what `segnets.training.StopOnSignal` exits with; who dies of a signal, while Python loads or of a second
        # one, has another status
        has_saved = status in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)
        raise Cancelled(
            "run.stopped",
            "stopped and saved; the same command goes on from there"
            if has_saved
            else "stopped; nothing new was saved; the same command goes on from what there was before",
        )
    if status:
        code, message = _error(said, status)
        raise TrainingError(code, message)


def _copy_to_stderr(reading: int, each_second: Callable[[], None]) -> str:
    """The last of what came."""
    tail = b""
    while True:
        each_second()
        if not select.select([reading], [], [], 1.0)[0]:
            continue
        try:
            chunk = os.read(reading, 65536)
        except OSError:  # how a terminal says that its other end is closed
            chunk = b""
        if not chunk:
            return tail.decode(errors="replace").replace("\r\n", "\n")
        sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()
        tail = (tail + chunk)[-_TAIL:]


def _error(said: str, status: int) -> tuple[str, str]:
    own = _ERROR.findall(said)
    if own:
        return own[-1]
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return (
            "training.out_of_memory",
            f"the system killed the training (status {status}), as it does where memory runs out. In this order: raise "
            "accumulation_steps (--set accumulation_steps=2, up to batch_size), which changes no result; lower "
            "patch_size, with a new folder; set amp to true. The same command goes on from the last checkpoint, if one "
            "was written",
        )
    # the first of a chain of exceptions is the cause of the others
    cause = re.search(r"^[\w.]*(?:Error|Exception)\b.*", said, re.MULTILINE)
    shown = cause[0] if cause else "no error was shown"
    return "training.failed", f"the training ended with status {status} ({shown}); what led to it stands above"


def history(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's history.jsonl, in order; none if it has not begun."""
    from napari_seg.planning import with_segnets

    with with_segnets():
        from segnets.training.history import read_history

        lines: list[dict[str, Any]] = read_history(run_folder) if (run_folder / "history.jsonl").is_file() else []
    return lines


def _best_validation(run_folder: Path) -> dict[str, Any] | None:
    from napari_seg.planning import with_segnets

    lines = history(run_folder)
    with with_segnets():
        from segnets.training.curves import best_validation

        best: dict[str, Any] | None = best_validation(lines)
    return best


def weights_of(run_folder: Path) -> Path | None:
    """The best validated weights of a run, the last ones if none were validated, or None."""
    return next((path for name in ("model.pt", "model_final.pt") if (path := run_folder / name).is_file()), None)


def ship(root: Path, weights: Path, metrics: Mapping[str, float]) -> None:
    """Makes weights those of the bundle, and says in its metadata how good they were; whole at every instant."""
    unfinished = root / WEIGHTS.with_suffix(".unfinished")
    shutil.copyfile(weights, unfinished)
    unfinished.replace(root / WEIGHTS)
    metadata = json.loads((root / METADATA).read_text(encoding="utf-8"))
    metadata["eval_metrics"] = {name: round(value, 4) for name, value in metrics.items()}
    replace_text(root / METADATA, json.dumps(metadata, indent=4) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that whoever reads it, after a kill too, finds the old text or the new one."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
