"""Prepare the second stage of a cascade: the labels that the first one finds in each case, and its bundle.

As in nnU-Net (Isensee et al. 2021, Nature Methods 18:203) a network at the full resolution is shown the labels of a
network at a lower resolution. Those of each case come from the fold that did not train it, so that the second stage
learns from labels that are as good as those of a new scan.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from filecmp import cmp
from importlib.metadata import version
from pathlib import Path
from typing import Any

from napari_seg.bundles.spec import METADATA, PREVIOUS, WEIGHTS
from napari_seg.errors import counted
from napari_seg.formats.atomic import atomic_write
from napari_seg.formats.nifti import write_map
from napari_seg.training.choices import digest
from napari_seg.training.chosen import copy_bundle
from napari_seg.training.held_out import HeldOut, labels_file
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

    What was written before with the same weights stays. If labels change, their fold is evaluated again.

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
    for fold in range(folds):
        _write_labels(root, first, data, fold, folds, report, stop_file, windows or {})
    inner = root / PREVIOUS
    if not (inner / WEIGHTS).is_file() or not cmp(first / WEIGHTS, inner / WEIGHTS, shallow=False):
        copy_bundle(first, inner)
    metadata = json.loads((root / METADATA).read_text(encoding="utf-8"))
    metadata["required_packages_version"] |= {"scipy": version("scipy")}
    metadata |= {"napari_seg": metadata.get("napari_seg", {}) | {PREVIOUS: PREVIOUS}}
    atomic_write(root / METADATA, json.dumps(metadata, indent=4) + "\n")


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
    from napari_seg.inference.scan import run_regions
    from napari_seg.localise import localise

    weights = digest(weights_of(first / f"fold_{fold}") or first)
    record = labels_file(root, "").parent / CASES.name
    known = {line["case"]: line for line in read_lines(record)}
    cases = read_scores(first / f"fold_{fold}")
    missing = [
        case for case in cases if known.get(case, {}).get("weights") != weights or not labels_file(root, case).is_file()
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
            known[case] = {"case": case, "weights": weights}
            atomic_write(record, "".join(json.dumps(line) + "\n" for line in known.values()))
