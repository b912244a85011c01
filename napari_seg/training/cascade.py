"""Prepare the second stage of a cascade: the labels that the first one finds in each case, and its bundle.

As in nnU-Net (Isensee et al. 2021, Nature Methods 18:203) a network at the full resolution is shown the labels of a
network at a lower resolution. Those of each case come from the fold that did not train it, so that the second stage
learns from labels that are as good as those of a new scan.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from filecmp import cmp
from importlib.metadata import version
from pathlib import Path
from typing import Any

from napari_seg.bundles.spec import METADATA, PREVIOUS, WEIGHTS
from napari_seg.errors import TrainingError, counted
from napari_seg.formats.atomic import atomic_write
from napari_seg.formats.exclusive import exclusive
from napari_seg.formats.nifti import write_map
from napari_seg.training.choices import digest
from napari_seg.training.chosen import copy_bundle
from napari_seg.training.held_out import HeldOut, check_stop, labels_file
from napari_seg.training.history import RUN, read_lines
from napari_seg.training.run import weights_of
from napari_seg.training.scores import CASES, EVALUATION, read_scores
from napari_seg.training.segnets_modules import with_segnets


def begin_second_stage(
    root: Path,
    first: Path,
    data: Path,
    folds: int,
    report: Callable[[str], None],
    stop_file: Path,
    windows: Mapping[str, Any] | None = None,
) -> None:
    """Write the labels of the first stage in each case, and its bundle, into the bundle of the second stage.

    What was written before with the same weights and postprocessing stays. If labels change, their fold is evaluated
    again. While another command does the same, this one waits for its end.

    Args:
        root: folder of the second stage's bundle.
        first: folder of the first stage's bundle, whose folds are finished.
        data: folder of the data set.
        folds: number of folds.
        report: function that prints a line of progress.
        stop_file: file that stops the work.
        windows: values of this start for the evaluation of the first stage, see `window_values`.

    Raises:
        Cancelled: the file appeared; the labels of finished cases are kept.
        EnvironmentFault: `environment.memory`, a case does not fit in memory.
        OutputError: as for `write_map`.
    """
    with _alone(root, first, report, stop_file):
        for fold in range(folds):
            _write_labels(root, first, data, fold, folds, report, stop_file, windows or {})
        inner = root / PREVIOUS
        if not (inner / WEIGHTS).is_file() or not cmp(first / WEIGHTS, inner / WEIGHTS, shallow=False):
            part = root / RUN / "part" / PREVIOUS  # the name of a bundle's folder is in its metadata
            shutil.rmtree(part.parent, ignore_errors=True)
            copy_bundle(first, part)
            shutil.rmtree(inner, ignore_errors=True)
            part.rename(inner)
            part.parent.rmdir()
        metadata = json.loads((root / METADATA).read_text(encoding="utf-8"))
        metadata["required_packages_version"] |= {"scipy": version("scipy")}
        metadata |= {"napari_seg": metadata.get("napari_seg", {}) | {PREVIOUS: PREVIOUS}}
        atomic_write(root / METADATA, json.dumps(metadata, indent=4) + "\n")


@contextmanager
def _alone(root: Path, first: Path, report: Callable[[str], None], stop_file: Path) -> Iterator[None]:
    """Lock the labels of a cascade's first stage; wait while another command has locked them.

    Raises:
        Cancelled: the stop file appeared meanwhile.
    """
    path = root / RUN / "previous.lock"
    path.parent.mkdir(exist_ok=True)
    in_use = TrainingError("run.in_use", f"another command writes the labels of {first.name}")
    with ExitStack() as stack:
        is_reported = False
        while True:
            try:
                stack.enter_context(exclusive(path, in_use))
                break
            except TrainingError:
                if not is_reported:
                    report(f"{in_use.message}; waiting for its end")
                is_reported = True
                check_stop(stop_file)
                time.sleep(1)
        yield


def _write_labels(
    root: Path,
    first: Path,
    data: Path,
    fold: int,
    folds: int,
    report: Callable[[str], None],
    stop_file: Path,
    windows: Mapping[str, Any],
) -> None:
    """Write the labels that a fold's network finds in its validation cases, as far as they are not those of it."""
    import yaml

    from napari_seg.inference.scan import run_regions
    from napari_seg.localise import localise

    evaluation = yaml.safe_load((first / "configs" / "evaluate.yaml").read_text(encoding="utf-8"))
    line = {"weights": digest(weights_of(first / f"fold_{fold}") or first), "largest": evaluation.get("largest", [])}
    record = labels_file(root, "").parent / CASES.name
    known = _read_record(record)
    cases = read_scores(first / f"fold_{fold}")
    missing = [
        case for case in cases if known.get(case) != {"case": case, **line} or not labels_file(root, case).is_file()
    ]
    if not missing:
        return
    report(f"labels of {first.name} on fold {fold} of {folds}: {counted(len(missing), 'case')}")
    shutil.rmtree(root / f"fold_{fold}" / EVALUATION, ignore_errors=True)
    shutil.rmtree(root / RUN / "cache", ignore_errors=True)  # prepared cases contain the earlier labels
    with with_segnets():
        held_out = HeldOut(data, {first.name: first}, fold, folds, stop_file, {first.name: windows})
        for case in missing:
            _, volume = held_out.read(case)
            settings = held_out.settings(first.name, case, volume)
            regions, _ = localise(volume, settings.bundle, held_out.on_step)
            labels, _, _ = run_regions(volume, regions, settings, held_out.on_step)
            path = labels_file(root, case)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_map(labels, volume.grid, path)
            known = _read_record(record) | {case: {"case": case, **line}}  # not all file systems have locks
            atomic_write(record, "".join(json.dumps(one) + "\n" for one in known.values()))


def _read_record(record: Path) -> dict[str, dict[str, Any]]:
    """Return case -> the weights and the structures of one component that made its labels."""
    return {line["case"]: line for line in read_lines(record)}
