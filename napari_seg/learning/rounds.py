"""Rounds: the list of what one improvement of a model is trained on, which later acceptances do not change."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.bundles.spec import Bundle
from napari_seg.errors import InputError, TrainingError
from napari_seg.formats import image2d
from napari_seg.formats.atomic import atomic_write, not_written
from napari_seg.formats.channels import joined
from napari_seg.formats.exclusive import exclusive
from napari_seg.formats.nifti import count_volumes, stated_size, write_map
from napari_seg.formats.scan import Scan
from napari_seg.learning.crops import write_crops
from napari_seg.learning.inherit import others_of
from napari_seg.learning.same_scan import ScanIdentity
from napari_seg.learning.scans import labels_of, scan_of, unreadable
from napari_seg.learning.training_set import (
    INDEX,
    ROUNDS,
    AcceptedCase,
    TrainingSet,
    as_index,
    from_index,
    locked,
    read_training_set,
)
from napari_seg.progress import Progress, ignore_progress
from napari_seg.training.write import PLAN
from napari_seg.volume import Volume

_LEFT_OUT = "left out"
"""Key of a list: name of a case that can't be used -> reason."""


@contextmanager
def reserved(folder: Path, out: Path) -> Iterator[None]:
    """Keep other processes from improving a model into the same folder.

    Args:
        folder: training set.
        out: folder of the new model.

    Raises:
        TrainingError: `run.in_use`, another process does.
        OutputError: `output.not_written`, `output.disk_full`.
    """
    if not (folder / INDEX).is_file():  # `open_round` refuses it
        yield
        return
    path = _list_of(folder, out).with_suffix(".lock")
    text = f"another process improves a model into {out}; wait for its end, or choose another folder with -o"
    with ExitStack() as stack:
        try:
            path.parent.mkdir(exist_ok=True)
            stack.enter_context(exclusive(path, TrainingError("run.in_use", text)))
        except OSError as error:
            raise not_written(str(path), error) from error
        yield


def open_round(
    folder: Path,
    bundle: Bundle,
    out: Path,
    report: Callable[[str], None] = lambda text: None,
    progress: Progress = ignore_progress,
) -> Path:
    """Return the list of cases for a new model; the same one again for a model whose training was planned.

    The list names files of the training set, which stay as they are while the list is there. It has the classes of the
    old model, too: where they were not annotated, nothing is learned about them. For a model with a localiser it names
    crops of its regions. Cases that can't be read, or that have no crop, are left out.

    Args:
        folder: training set.
        bundle: the old model.
        out: folder of the new model.
        report: function that prints a line about each case that is left out.
        progress: called with the stage "reading" or "locating" and the number of cases; may raise `Cancelled`.

    Raises:
        InputError: `improve.too_few`, there are no cases of a part; `improve.channels`, the scans have another number
            of channels than the model; and as for `read_training_set`. Then no list is left.
        EnvironmentFault: as for `write_crops`.
        OutputError: `output.not_written`, `output.disk_full`.
    """
    path = _list_of(folder, out)
    if not _is_planned(path, out):
        with locked(folder):
            whole = read_training_set(folder)
            _check(whole, bundle)
            content = whole.without({name.casefold() for name in others_of(bundle)})
            _write(path, _list(content, bundle) | {"index": as_index(content)})
        try:  # the training set is not locked meanwhile; its files stay, because the list names them
            _leave_out(folder, bundle, path, progress)
        except BaseException:
            close_round(path)
            raise
    for name, reason in left_out_of(path).items():
        report(f"left out {name}: {reason}")
    return path


def corrected_of(folder: Path, out: Path) -> tuple[str, ...]:
    """Return the structures that were corrected in a training set: when a planned round began, or else by now.

    Args:
        folder: training set.
        out: folder of the new model.

    Raises:
        InputError: as for `read_training_set` and `content_of_round`.
    """
    path = _list_of(folder, out)
    content = content_of_round(path, with_left_out=True) if _is_planned(path, out) else read_training_set(folder)
    return content.corrected


def _is_planned(path: Path, out: Path) -> bool:
    return path.is_file() and (out / PLAN).is_file()


def _list_of(folder: Path, out: Path) -> Path:
    """Return the list of the round that trains a new model."""
    key = hashlib.sha256(str(out.resolve()).encode(errors="surrogateescape")).hexdigest()[:8]
    return folder / ROUNDS / f"{out.name}-{key}.json"


def close_round(path: Path) -> None:
    """Remove the list of a round whose training was not planned, with its crops.

    Args:
        path: list of the round.
    """
    with suppress(OSError):  # the next round of this name replaces it
        path.unlink(missing_ok=True)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)


def left_out_of(path: Path) -> dict[str, str]:
    """Return name -> reason of the cases that a round leaves out.

    Args:
        path: list of the round.
    """
    return dict(_read(path)[1].get(_LEFT_OUT, {}))


def content_of_round(path: Path, *, with_left_out: bool = False) -> TrainingSet:
    """Return the content of a training set as it was when a round began.

    Args:
        path: list of the round.
        with_left_out: include the cases that the round leaves out.

    Raises:
        InputError: `accept.not_a_set`, the list is damaged.
    """
    content, listed = _read(path)
    left_out = () if with_left_out else listed.get(_LEFT_OUT, ())
    return replace(content, cases=tuple(case for case in content.cases if case.name not in left_out))


def _read(path: Path) -> tuple[TrainingSet, dict[str, Any]]:
    """Return the content of a training set as it was when a round began, and the list of the round."""
    try:
        listed: dict[str, Any] = json.loads(path.read_bytes())
        return from_index(listed["index"]), listed
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        text = f"{path} is damaged; remove it and the folder of the new model, and begin again"
        raise InputError("accept.not_a_set", text) from error


def check_replayed(folder: Path, content: TrainingSet, data: Path) -> None:
    """Check that no scan of the validation part is replayed, that is, trained on.

    Args:
        folder: training set.
        content: its content when the round began, with the cases that the round leaves out: they may be readable in
            the next round, and compared then.
        data: folder of the combined data set.

    Raises:
        InputError: `improve.seen`.
    """
    scans: dict[tuple[int, ...], list[AcceptedCase]] = {}
    of_any_size: list[AcceptedCase] = []
    for case in content.part_of("validation"):
        try:
            shape, _ = stated_size(folder / case.labels)
        except InputError:
            of_any_size.append(case)
        else:
            scans.setdefault(tuple(sorted(shape[:3])), []).append(case)
    listed = json.loads((data / "dataset.json").read_bytes())["training"]
    seen = 0
    for image in (entry["image"] for entry in listed if entry.get("replay")):
        paths = [data / path for path in ([image] if isinstance(image, str) else image)]
        if same := [*scans.get(_sorted_size(paths[0]), ()), *of_any_size]:
            identity = ScanIdentity.of(_replayed(paths))
            seen += any(map(identity.is_of, same))
    if seen:
        raise InputError(
            "improve.seen",
            f"{seen} of the replayed scans are validation cases of the training set, which must never be trained on; "
            "leave them out of the data set that is replayed, and choose another folder for the new model",
        )


def _sorted_size(path: Path) -> tuple[int, ...]:
    """Return the numbers of voxels along the three axes of an image that training reads, in ascending order."""
    shape = (*image2d.stated_size(path), 1) if image2d.is_image2d(path) else stated_size(path)[0][:3]
    return tuple(sorted(shape))


def _replayed(paths: Sequence[Path]) -> Volume:
    """Read an image of a replayed data set as scans are read that are accepted: several files are its channels."""
    scans = [Scan(path.name, "image2d" if image2d.is_image2d(path) else "nifti", (path,)) for path in paths]
    if len(scans) > 1:
        return joined({str(n): scan.read(channels=1, one_slice=True) for n, scan in enumerate(scans)})
    channels = count_volumes(paths[0]) if scans[0].format == "nifti" else None
    return scans[0].read(channels=channels, one_slice=True)


def accepted_since(folder: Path, path: Path) -> int:
    """Return how many cases were accepted, for the first time or again, since a round began.

    Args:
        folder: training set.
        path: list of the round.
    """
    known = {case.labels for case in _read(path)[0].cases}
    return sum(case.labels not in known for case in read_training_set(folder).cases)


def _leave_out(folder: Path, bundle: Bundle, path: Path, progress: Progress) -> None:
    """Leave out of the list of a round what can't be read, or cut its crops.

    Raises:
        InputError: `improve.too_few`, no case of a part is left.
        EnvironmentFault, OutputError: as for `write_crops`.
    """
    content, listed = _read(path)
    if bundle.localiser is not None:
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)  # of a process that was killed
        crops = write_crops(folder, content, bundle, path.with_suffix(""), progress)
        left_out, entries = crops.left_out, list(crops.entries)
        listed |= _list_of_crops(bundle)
    else:
        left_out = unreadable(folder, content, progress)
        text = f"its structures are none of {bundle.name!r}; accept others of this scan, or leave it"
        left_out |= {one.name: InputError("improve.no_structure", text) for one in content.cases if not one.annotated}
        entries = [entry for entry in listed["training"] if entry["name"] not in left_out]
    reasons = {name: f"{error.code}: {error.message}" for name, error in left_out.items()}
    if missing := [part for part in ("training", "validation") if part not in {entry["split"] for entry in entries}]:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:4])
        text = f"no case for {' and for '.join(missing)} can be used ({why})"
        raise InputError(
            "improve.too_few", f"{text}; expected at least one of each; mend these cases, or accept others"
        )
    if others_of(bundle):
        files = _write_labels(folder, content, path.with_suffix(""), left_out)
        entries = [entry | {"label": files[entry["name"]]} for entry in entries]
    _write(path, listed | {"training": entries, _LEFT_OUT: reasons})


def _write_labels(folder: Path, content: TrainingSet, into: Path, left_out: Container[str]) -> dict[str, str]:
    """Write label maps with the structures of a round alone, and return name -> file, relative to the list.

    Raises:
        OutputError: `output.not_written`, `output.disk_full`.
    """
    files: dict[str, str] = {}
    try:
        into.mkdir(exist_ok=True)
        for case in content.cases:
            if case.name in left_out:
                continue
            grid = scan_of(folder, case).grid
            labels = labels_of(folder, case, grid)
            kept = np.isin(labels, [content.structures[name] for name in case.annotated])
            write_map(np.where(kept, labels, 0).astype(labels.dtype), grid, into / f"{case.name}.nii.gz")
            files[case.name] = f"./{into.name}/{case.name}.nii.gz"
    except OSError as error:
        raise not_written(str(into), error) from error
    return files


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise not_written(str(path), error) from error


def _list_of_crops(bundle: Bundle) -> dict[str, Any]:
    """Return the description of a list for a network that is run in boxes of a scan."""
    return {
        "description": "crops of cases accepted in napari-seg",
        "modality": {str(number): name for number, name in enumerate(bundle.channel_names)},
        "labels": {"background": 0} | {one.name: one.label for one in bundle.network_segments},
    }


def _check(content: TrainingSet, bundle: Bundle) -> None:
    counts = [len({case.patient for case in content.part_of(part)}) for part in ("training", "validation")]
    if min(counts) < 1:
        raise InputError(
            "improve.too_few",
            f"the training set has cases of {counts[0]} patients for training and of {counts[1]} for validation; "
            "expected at least one of each; accept cases of more patients",
        )
    if content.channel_count != bundle.in_channels:
        text = f"the scans have {content.channel_count} channels, model {bundle.name!r} takes {bundle.in_channels}"
        raise InputError("improve.channels", f"{text}; expected the same; choose a model for these scans")


def _list(content: TrainingSet, bundle: Bundle) -> dict[str, Any]:
    listed = content.as_list()
    known = {name.casefold(): name for name in content.structures}
    labels: dict[str, int] = {}
    free = max(content.structures.values(), default=0) + 1
    for segment in bundle.network_segments:  # in the order of the old classes
        if name := known.get(segment.name.casefold()):
            labels[name] = content.structures[name]
        else:
            labels[segment.name], free = free, free + 1
    labels |= {name: value for name, value in content.structures.items() if name not in labels}
    for case, entry in zip(content.cases, listed["training"], strict=True):
        entry |= {key: f"..{entry[key].removeprefix('.')}" for key in ("image", "label")}
        if not set(labels) <= set(case.annotated):
            entry["labelled"] = sorted(case.annotated)
    names = content.channels if len(content.channels) > 1 else bundle.channel_names
    listed["modality"] = {str(number): name for number, name in enumerate(names)}
    return listed | {"labels": {"background": 0, **labels}}
