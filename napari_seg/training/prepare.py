"""Prepare the folder of a training: convert the data set, make the bundle, and check what a later start finds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.bundles.litter import is_litter
from napari_seg.errors import OutputError, TrainingError
from napari_seg.formats.exclusive import exclusive
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.progress import describe_seconds
from napari_seg.training.choices import (
    SOFT,
    Choices,
    changed_settings,
    check_folds,
    check_packages,
    check_same,
    check_same_labels,
    check_soft,
    check_values,
)
from napari_seg.training.comparison import COMPARISON
from napari_seg.training.gather.combine import combine
from napari_seg.training.gather.gather import DATA, Continued, Gathered, check_number, gather
from napari_seg.training.history import RUN
from napari_seg.training.identity import check_recorded, identity_of
from napari_seg.training.make_bundle import UNFINISHED, Timing, make_bundle
from napari_seg.training.rate import STEPS, check_picture, find_rate
from napari_seg.training.run import writing
from napari_seg.training.segnets_modules import naming, with_segnets
from napari_seg.training.write import PLAN

if TYPE_CHECKING:
    from segnets.data import Dataset

_LOCK = f"{PLAN}.lock"
_OWN = ("segnets", "configs", "docs", "models", RUN, "LICENSE")
"""What a failed run removes again. Converted cases are kept, so that the next run need not convert them again."""


def data_folder(dataset_dir: Path, out: Path, plan: dict[str, Any]) -> Path:
    """Return the folder that a planned training reads: the converted data set, or the data set as it is.

    Args:
        dataset_dir: data set that was planned.
        out: folder of the bundle.
        plan: its plan.
    """
    return out / DATA if "converted" in plan else dataset_dir


def plan_bundle(
    dataset_dir: Path,
    out: Path,
    choices: Choices,
    *,
    fold: int | None = None,
    dry_run: bool = False,
    trust: bool = False,
    more: Sequence[Path] = (),
    replay: Sequence[Path] = (),
    timed: bool = False,
    limits: Mapping[str, float] | None = None,
    rates: Path | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the plan of the bundle in `out` (the content of plan.json); write the bundle first if it does not exist.

    All pairs of the data set are checked first. plan.json is written last: a bundle with plan.json is complete. A
    failed run leaves nothing behind; after a kill, the next run starts again.

    Args:
        dataset_dir: data set in one of the layouts of `segnets.data.find_dataset`, or one that `gather` converts; then
            training reads `data_folder`.
        out: folder of the bundle: missing, empty, or planned before for the same data set.
        choices: choices of the user. For an existing bundle they must agree with its plan, except for settings that may
            change at each start (`changed_settings`).
        fold: the only fold to train.
        dry_run: plan, and write nothing.
        trust: allow an existing bundle to run its own code.
        more: further data sets, which are combined with the first one.
        replay: data sets of an earlier training, which are combined too and mixed into each epoch at a share.
        timed: measure how long a step and a validation of a new bundle take ("time" in the plan), and validate fewer
            cases if all would take too long.
        limits: max_minutes, max_epochs and gpus of this start, if given, for the number of validated cases.
        rates: in a dry run, test learning rates ("rate" in the plan, see `find_rate`), and draw the losses in this new
            PNG file.
        report: function that prints a line of progress.

    Raises:
        TrainingError: the data set is not suitable for training (`dataset.*`, `data.faults`, `labels.*`,
            `split.too_few`).
        BundleError: an unknown network, option or config id; `bundle.folds`, fewer than two folds; `bundle.fold`,
            no such fold; `bundle.untrusted`, the existing bundle contains other code.
        EnvironmentFault: `environment.package`, an option needs a package that is not installed.
        OutputError: `output.exists`, `out` contains other files, or `rates` exists; `output.not_written`,
            `output.disk_full`.
    """
    if (out / COMPARISON).is_file():
        raise OutputError(
            "output.exists", f"{out} compares configurations; continue it with napari-seg train, or choose a new folder"
        )
    if rates is not None:
        check_picture(rates)
    sources, replayed = [dataset_dir, *more, *replay], len(replay)
    with with_segnets(), writing(out):
        check_values(choices.settings | dict(limits or {}))
        check_soft(choices)
        if (out / PLAN).is_file():
            plan = _planned(sources, replayed, out, choices, fold, dry_run, trust, report)
            return plan | (_test_rates(dataset_dir, out, out, plan, choices, rates, report) if dry_run else {})
        existing = {path.name for path in out.iterdir() if not is_litter(path)} if out.is_dir() else set()
        if not (out / _LOCK).is_symlink():  # locking a link would empty the file that it leads to
            existing -= {_LOCK}
        ours = {UNFINISHED, *_OWN, DATA}
        if (out.exists() and not out.is_dir()) or (existing and not {UNFINISHED} <= existing <= ours):
            raise OutputError(
                "output.exists",
                f"{out} contains files that napari-seg train did not write; choose a new or empty folder",
            )
        check_folds(choices.folds, fold)
        timing = dict(limits or {}) if timed else None
        if dry_run:
            with TemporaryFolder() as root, writing(root):
                plan = _plan(sources, replayed, root, out, choices, timing, report)
                return plan | _test_rates(dataset_dir, root, out, plan, choices, rates, report)
        with _alone(out):
            if (out / PLAN).is_file():  # another process has finished it since
                return _planned(sources, replayed, out, choices, fold, dry_run, trust, report)
            try:
                return _plan(sources, replayed, out, out, choices, timing, report)
            except BaseException:
                _clear(out)
                if (out / DATA).exists():
                    (out / UNFINISHED).touch()  # says that the converted cases are ours
                raise


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Create a bundle's folder if it is missing, and keep other processes from planning in it.

    A folder that is empty at the end is removed, unless it was there before.

    Raises:
        TrainingError: `run.in_use`, another process plans in it.
    """
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    text = f"another process plans a training in {out}; wait for its end, or choose another folder with -o"
    try:
        with exclusive(out / _LOCK, TrainingError("run.in_use", text)):
            yield
    finally:
        if is_new:
            with suppress(OSError):
                out.rmdir()


def _planned(
    sources: Sequence[Path],
    replayed: int,
    out: Path,
    choices: Choices,
    fold: int | None,
    dry_run: bool,
    trust: bool,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Return the plan of an existing bundle, if it was made for the same data and choices.

    Converted cases stay as they are; those that are missing are converted again.
    """
    from napari_seg.training.trust import check_code

    written: dict[str, Any] = json.loads((out / PLAN).read_text(encoding="utf-8"))
    if not trust:
        check_code(out, choices)
    check_recorded(written, out)
    planned = written.get("converted", {}).get("data sets", [])
    check_number(planned, len(sources))

    def check(found: Mapping[str, Any], data_sets: Sequence[dict[str, Any]], is_converted: bool = True) -> None:
        if is_converted != ("converted" in written):
            raise OutputError(
                "output.exists",
                f"{out} was planned for files of other formats, of which {'none' if is_converted else 'some'} had to "
                "be converted; restore them to continue, or choose a new folder with -o",
            )
        if list(data_sets) != planned:
            raise OutputError(
                "output.exists",
                f"{out} was planned for data sets with other classes, or in another order, or to replay others; "
                "give the same ones in the same order, or choose a new folder with -o",
            )
        check_same(written, found, choices, str(out))

    made = written["choices"]
    reading = Choices(options=tuple(made.get("options", ())), settings=made.get("settings", {})).reading
    reading |= choices.reading
    labels = written["choices"].get("labels", {})
    continued = Continued(check, dry_run, planned)
    converted = _converted(sources, replayed, out / DATA, reading, labels, report, continued=continued)
    if converted is None or not dry_run:
        dataset = _dataset(sources, converted, reading)
        if converted is None:
            check(identity_of(dataset), (), is_converted=False)
        check_same_labels(written, dataset, str(out))
    check_folds(written["choices"].get("folds"), fold)
    check_packages(written["choices"].get("options", ()))
    return written


def _plan(
    sources: Sequence[Path],
    replayed: int,
    root: Path,
    out: Path,
    choices: Choices,
    limits: dict[str, float] | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Convert the data set if necessary, and write a new bundle into a folder; see `make_bundle`."""
    from segnets.data import Split

    marker = root / UNFINISHED
    converted = _converted(sources, replayed, root / DATA, choices.reading, choices.labels, report, marker)
    dataset = _dataset(sources, converted, choices.reading)
    data = sources[0] if converted is None else converted.folder
    timing = Timing(data, limits) if limits is not None else None
    split = {name: choices.settings[name] for name in ("fold", "folds") if name in choices.settings}
    split |= {} if choices.folds is None else {"fold": 0, "folds": choices.folds}
    with naming(sources, data):
        divided = Split(dataset, **split)
        parts = {part: divided.count(part) for part in ("training", "validation", "test")}
        _clear(root)
        marker.touch()
        return make_bundle(dataset, root, out, choices, parts, divided.count_replayed(), timing, converted)


def _test_rates(
    dataset_dir: Path,
    root: Path,
    out: Path,
    plan: dict[str, Any],
    choices: Choices,
    picture: Path | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Return {"rate": the planned and the suggested learning rate}; empty without a picture to draw.

    Args:
        dataset_dir: data set that was planned.
        root: folder of the bundle.
        out: folder that it is meant for; another one in a dry run.
        plan: its plan.
        choices: current choices, whose settings may differ from those of the plan.
        picture: see `plan_bundle`.
        report: function that prints a line of progress.
    """
    if picture is None:
        return {}
    made = plan["choices"]
    values = changed_settings(plan, choices) | ({"fold": 0, "folds": made["folds"]} if made.get("folds") else {})
    if weights := made.get("fine_tune"):
        values["finetune"] = str((out / weights["file"]).resolve())
    step = plan.get("time", {}).get("step")
    duration = f", about {describe_seconds(STEPS * step)}" if step else ""
    report(f"testing learning rates in up to {STEPS} steps{duration}")
    with TemporaryFolder() as scratch:
        values["output_dir"] = str(scratch)
        return {"rate": find_rate(root, data_folder(dataset_dir, root, plan), picture, values, report)}


def _converted(
    sources: Sequence[Path],
    replayed: int,
    into: Path,
    reading: dict[str, Any],
    labels: dict[str, Any],
    report: Callable[[str], None],
    marker: Path | None = None,
    continued: Continued | None = None,
) -> Gathered | None:
    """Convert the data set for a training; return None if it is read as it is.

    Args:
        sources: data sets as the user has them; several are combined.
        replayed: number of the last ones that are replayed.
        into: folder of the converted data set.
        reading: settings that say how the data sets are read.
        labels: class -> values or names, as in `Choices`.
        report: function that prints a line of progress.
        marker: file that marks the folder of an incomplete bundle; written before anything is converted.
        continued: how to continue a planned training.
    """
    if len(sources) > 1:
        return combine(sources, into, reading, labels, report, marker, continued, replayed)
    return gather(sources[0], into, reading, report, marker, continued=continued)


def _dataset(sources: Sequence[Path], converted: Gathered | None, reading: dict[str, Any]) -> Dataset:
    """Return the data set that a training reads."""
    from segnets.data import find_dataset

    if converted is None:
        return find_dataset(sources[0], **reading)
    is_combined = len(sources) > 1  # files that need no conversion stay where they are
    soft = bool(reading.get(SOFT))
    return find_dataset(converted.folder, "decathlon", anywhere=is_combined, soft=soft)  # the patients are stated


def _clear(out: Path) -> None:
    for name in _OWN:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    (out / UNFINISHED).unlink(missing_ok=True)
