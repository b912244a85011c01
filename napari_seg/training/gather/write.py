"""Write pairs as cases in the Decathlon's layout, each verified and once only: the next start continues."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_seg.errors import InputError, Notice, OutputError
from napari_seg.formats.atomic import atomic_file, atomic_write
from napari_seg.formats.channels import joined
from napari_seg.formats.image2d import COLOURS, read_image2d_files
from napari_seg.formats.in_worker import read_in_worker
from napari_seg.formats.nifti import count_volumes, write_map, write_volume
from napari_seg.formats.tiff_stack import read_tiff_stack
from napari_seg.training.gather.fractions import named_structures, read_fractions
from napari_seg.training.gather.frames import Fault
from napari_seg.training.gather.labels import LabelTable, as_declared, described, read_labels
from napari_seg.training.gather.pair import Pair
from napari_seg.volume import Volume, smallest_label_type

RECORD = "gathered.json"
_VERSION = 1
_REPORTED = 10
"""Minimum number of cases between two lines of progress."""

_IMAGES, _LABELS = "imagesTr", "labelsTr"
_FILES = re.compile(rf"({_IMAGES}|{_LABELS})/[\w.-]+\.(nii\.gz|png|tif)")
"""Files of written cases; a record that lists others came from elsewhere, and nothing that it lists is removed."""


@dataclass
class _Record:
    """What was written so far.

    Attributes:
        cases: name -> {"key", "files", "channels", "notices", "empty", "voxels", "listed"} of a written case; cases of
            an older version lack the last two.
        table: values of the names of structures.
    """

    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    table: LabelTable = field(default_factory=LabelTable)

    @classmethod
    def read(cls, folder: Path) -> _Record:
        """Return the record in a folder; an empty one if it is missing, damaged or of another version."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            is_ours = all(_FILES.fullmatch(file) for case in content["cases"].values() for file in case["files"])
            if content["version"] == _VERSION and is_ours:
                shared = {int(value): tuple(names) for value, names in content.get("shared", {}).items()}
                return cls(dict(content["cases"]), LabelTable(dict(content["labels"]), shared))
        return cls()

    def write(self, folder: Path) -> None:
        content = {"version": _VERSION, "cases": self.cases, "labels": self.table.values, "shared": self.table.shared}
        atomic_write(folder / RECORD, json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True)
class Written:
    """Summary of the cases that were written.

    Attributes:
        cases: names of the cases.
        empty: number of frames without labels, which were left out.
        notices: code -> number of cases with such a notice.
        listed: name of a case -> values of the structures that its files list, with voxels or without.
        pixels_mm: smallest and largest size of the pixels of single slices that became 2D images; None if all are equal
            or there are none.
    """

    cases: tuple[str, ...]
    empty: int
    notices: dict[str, int]
    listed: dict[str, tuple[int, ...]]
    pixels_mm: tuple[float, float] | None = None


def write_cases(
    pairs: Sequence[Pair],
    folder: Path,
    report: Callable[[str], None],
    *,
    labels: Mapping[str, Sequence[int]] | None = None,
    ignored: Sequence[int] = (),
    channels: Sequence[str] = (),
    regions: Mapping[str, int] | None = None,
    keep: bool = False,
    soft: bool = False,
) -> tuple[Written, list[Fault]]:
    """Write pairs into `imagesTr/` and `labelsTr/` with a dataset.json, except for those that are there already.

    Args:
        pairs: pairs with distinct names.
        folder: folder to write; created if missing. Cases of other pairs in it are removed, unless they are kept.
        report: function that prints a line of progress.
        labels: name -> values, if the data set declares them: those of label maps without names, and those that
            structures with these names get. Otherwise the names in the label maps get one value each.
        ignored: values that stand for no class.
        channels: names of the channels, if the data set names them.
        regions: name -> label in results, in ascending order of precedence, if classes in `labels` overlap.
        keep: keep cases whose files have changed as they were written.
        soft: the labels are fractions, see `read_fractions`.

    Returns:
        The summary, and the faults of pairs that can't be read.

    Raises:
        OutputError: `output.not_written`, `output.disk_full`, `output.not_equal`; `output.exists`, a folder is a link.
    """
    make_folders(folder, _IMAGES, _LABELS)
    record = _Record.read(folder)
    record.table.ignored = tuple(ignored)
    declared = hashlib.sha256(repr((labels, tuple(ignored))).encode()).hexdigest()[:16] if labels else ""
    structures = named_structures(pairs, labels or {}) if soft else ()
    if soft:
        declared += hashlib.sha256(repr(structures).encode()).hexdigest()[:16]
    keys = {pair.name: pair.key + declared for pair in pairs}
    changed = [name for name, case in record.cases.items() if keys.get(name) != case["key"]]
    if keep and changed:
        report(
            f"{len(changed)} of {len(pairs)} cases have changed or moved since they were converted, and stay as they "
            "were converted; to train on the changed ones, choose a new folder"
        )
    for name in () if keep else changed:
        for file in record.cases.pop(name)["files"]:
            (folder / file).unlink(missing_ok=True)
    faults: list[Fault] = []
    to_do = [pair for pair in pairs if not _is_written(record.cases.get(pair.name), folder)]
    if to_do:
        report(f"converting {len(to_do)} of {len(pairs)} cases")
    for number, pair in enumerate(to_do, 1):
        try:
            if soft:
                case = _write_fractions(pair, folder, structures)
            else:
                case = _write(pair, folder, record.table, labels, ignored)
            record.cases[pair.name] = case | {"key": keys[pair.name]}
        except InputError as error:
            faults.append((error.code, pair.name, error.message))
            continue
        record.write(folder)
        if number % max(_REPORTED, len(to_do) // 10) == 0 and number < len(to_do):
            report(f"converting: {number} of {len(to_do)}")
    cases = {pair.name: record.cases[pair.name] for pair in pairs if pair.name in record.cases}
    counts = Counter(code for case in cases.values() for code in set(case["notices"]))
    named: dict[str, Any] = {}
    order: list[int] = []
    is_named = not labels and bool(record.table.values) and any(case.get("listed", True) for case in cases.values())
    if structures:
        named = {name: number for number, name in enumerate(structures, 1)}
    elif labels:
        ordered = {**{name: labels[name] for name in regions or {}}, **labels}
        named, order = {name: list(values) for name, values in ordered.items()}, list((regions or {}).values())
    elif is_named:
        voxels: Counter[int] = Counter()
        for case in cases.values():
            voxels.update({int(value): count for value, count in case.get("voxels", {}).items()})
        named, order = described(record.table, voxels)
        values = [set(map(int, case.get("voxels", {}))) for case in cases.values()]
        if with_shared := sum(not of_case.isdisjoint(record.table.shared) for of_case in values):
            counts["labels.overlapping" if order else "labels.overlap_resolved"] += with_shared
        text = "its label map names no structure, and those of other cases do; name its values in labels.json"
        unnamed = [name for name, case in cases.items() if case.get("voxels") and not case.get("listed", True)]
        faults += [("labels.unnamed_beside_named", name, text) for name in unnamed]
    else:
        named = _only_structure(pairs, cases)
    if named or ignored:
        named = {"background": 0, **named} | ({"ignore": list(ignored)} if ignored else {})
    if to_do or not keep:
        written_pairs = [pair for pair in pairs if pair.name in cases and not cases[pair.name]["empty"]]
        _write_description(folder, written_pairs, cases, _numbered_patients(written_pairs), named, order, channels)
    empty = sum(case["empty"] for case in cases.values())
    of_name = {name.casefold(): tuple(values) for name, values in (labels or record.table.as_labels()).items()}
    listed = {
        name: tuple(value for one in case["listed"] for value in of_name.get(one.casefold(), ()))
        for name, case in cases.items()
        if case.get("listed")
    }
    written = tuple(name for name, case in cases.items() if not case["empty"])
    pixels = [size for case in cases.values() for size in case.get("pixels_mm", ())]
    pixels_mm = (min(pixels), max(pixels)) if pixels and max(pixels) > 1.01 * min(pixels) else None
    return Written(written, empty, dict(counts), listed, pixels_mm), faults


def _numbered_patients(pairs: Sequence[Pair]) -> dict[str, str]:
    """Return name of a case -> its patient as a number; empty if each is a patient of its own, as its name says."""
    from segnets.data.patients import patient_of

    numbers: dict[str, int] = {}
    numbered = {pair.name: f"patient {numbers.setdefault(pair.patient, len(numbers) + 1)}" for pair in pairs}
    are_own = len(numbers) == len(pairs) and all(patient_of(pair.name) == pair.name for pair in pairs)
    return {} if are_own else numbered


def _only_structure(pairs: Sequence[Pair], cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the labels of a data set whose label maps are files of one name, if they hold one value: {name: value}."""
    names = {pair.only_structure for pair in pairs if pair.name in cases}
    values = {value for case in cases.values() for value in case.get("voxels", {})}
    return {names.pop(): int(values.pop())} if len(names) == len(values) == 1 and "" not in names else {}


def make_folders(folder: Path, *names: str) -> None:
    """Create a folder of converted cases with its parts.

    Raises:
        OutputError: `output.exists`, one of them is a link.
    """
    for path in (folder, *(folder / name for name in names)):
        path.mkdir(parents=True, exist_ok=True)
        check_no_link(path)


def check_no_link(path: Path) -> None:
    """Check that a folder of a bundle is none elsewhere: its files would be replaced or removed.

    Raises:
        OutputError: `output.exists`.
    """
    if path.resolve() != path.parent.resolve() / path.name:
        raise OutputError("output.exists", f"{path} is a link to another folder; remove it, or choose a new folder")


def _is_written(case: Mapping[str, Any] | None, folder: Path) -> bool:
    return case is not None and all((folder / file).is_file() for file in case["files"])


def _write(
    pair: Pair,
    folder: Path,
    table: LabelTable,
    labels: Mapping[str, Sequence[int]] | None,
    ignored: Sequence[int],
) -> dict[str, Any]:
    volume = _read(pair)
    found = read_labels(pair, volume, header_names=not labels)
    array, is_resolved = as_declared(found, labels, ignored) if labels else (table.unified(found), False)
    noticed = [notice.code for notice in (*volume.notices, *found.notices)]
    case: dict[str, Any] = {
        "files": [],
        "channels": list(_channel_names(pair, volume)),
        "notices": [*noticed, *(["labels.overlap_resolved"] if is_resolved else [])],
        "empty": pair.frame is not None and not array.any(),
        "voxels": {str(value): int(count) for value, count in enumerate(np.bincount(array.ravel())) if value and count},
        "listed": list(found.listed),
    }
    if case["empty"]:
        return case
    if not pair.is_stack and (volume.source.format == "image2d" or _is_2d(volume)):
        image, label = _write_2d(pair.name, volume.array[..., 0], array[..., 0], folder)
        if volume.source.format != "image2d":
            case["pixels_mm"] = [round(size, 6) for size in volume.grid.spacing_mm[:2]]
    else:
        image, label = (Path(name, f"{pair.name}.nii.gz") for name in (_IMAGES, _LABELS))
        write_volume(volume, folder / image)
        write_map(array, volume.grid, folder / label)
    return case | {"files": [image.as_posix(), label.as_posix()]}


def _write_fractions(pair: Pair, folder: Path, structures: Sequence[str]) -> dict[str, Any]:
    """Write the scan of a pair and the fractions of its structures, one after the other along the fourth axis.

    Raises:
        InputError: `label.fractions`, the scan is a 2D image; and those of `read_fractions`.
    """
    volume = _read(pair)
    if volume.source.format == "image2d":
        text = "its labels are fractions of a 2D image of a format that is converted; expected volumes, or TIFF images"
        raise InputError("label.fractions", text)
    fractions = read_fractions(pair, volume, structures)
    image, label = (Path(name, f"{pair.name}.nii.gz") for name in (_IMAGES, _LABELS))
    write_volume(volume, folder / image)
    write_volume(fractions, folder / label)
    return {
        "files": [image.as_posix(), label.as_posix()],
        "channels": list(_channel_names(pair, volume)),
        "notices": [notice.code for notice in volume.notices],
        "empty": False,
        "voxels": {str(n): int(np.count_nonzero(one > 0.5)) for n, one in enumerate(fractions.array, 1)},
        "listed": [],
    }


def _is_2d(volume: Volume) -> bool:
    """Return whether a volume is a single slice in grey or in colours of 8 bits, which a 2D image holds."""
    in_colours = len(volume.array) == COLOURS and volume.array.dtype == np.uint8
    return volume.grid.shape[2] == 1 and (len(volume.array) == 1 or in_colours)


def _read(pair: Pair) -> Volume:
    """Read the image of a pair, or one frame of it."""
    (_, first), *others = pair.images
    if pair.is_stack:
        return read_in_worker(read_tiff_stack, first.files)
    if first.format == "image2d" and not others:
        return read_in_worker(partial(read_image2d_files, page=pair.frame), first.files)
    if others:
        grid_first = sorted(pair.images, key=lambda image: image != pair.images[pair.drawn_on])
        volume = joined({name: scan.read(pair.frame, channels=1, one_slice=True) for name, scan in grid_first})
        names = [name for name, _ in pair.images]
        places = [volume.channel_names.index(name) for name in names]
        return replace(volume, array=volume.array[places], channel_names=tuple(names)) if pair.drawn_on else volume
    if pair.frame is not None:
        return first.read(pair.frame, one_slice=True)
    channels = count_volumes(first.files[0]) if first.format == "nifti" else None
    return first.read(channels=channels, one_slice=True)


def _channel_names(pair: Pair, volume: Volume) -> tuple[str, ...]:
    names = tuple(name for name, _ in pair.images)
    if len(names) > 1:
        return names
    if volume.source.format == "image2d":
        return ("red", "green", "blue") if len(volume.array) == 3 else ("grey",)
    return (volume.modality,) if volume.modality and len(volume.array) == 1 else ()


def _write_2d(name: str, image: NDArray, label: NDArray, folder: Path) -> tuple[Path, Path]:
    """Write a 2D image (C, I, J) and its labels (I, J) as PNG, or the image as TIFF if PNG can't hold its values.

    Raises:
        OutputError: `output.not_equal`, a file reads back with other values.
    """
    pixels = image[0].T if len(image) == 1 else image.transpose(2, 1, 0)
    ending = ".png" if pixels.dtype in (np.uint8, np.uint16) else ".tif"
    if ending == ".tif":
        pixels = pixels.astype(np.float32)
    files = Path(_IMAGES, f"{name}{ending}"), Path(_LABELS, f"{name}.png")
    labels = label.T.astype(smallest_label_type(int(label.max(initial=0))))
    for file, values in zip(files, (pixels, labels), strict=True):
        with atomic_file(folder / file, file.suffix) as hidden:
            Image.fromarray(np.ascontiguousarray(values)).save(hidden)
            with Image.open(hidden) as written:
                if not np.array_equal(np.asarray(written), values, equal_nan=values.dtype.kind == "f"):
                    text = f"{folder / file} reads back with other values, so it was removed; try again"
                    raise OutputError("output.not_equal", text)
    return files


def _write_description(
    folder: Path,
    pairs: Sequence[Pair],
    cases: Mapping[str, Mapping[str, Any]],
    patients: Mapping[str, str],
    labels: Mapping[str, Any],
    order: Sequence[int],
    channels: Sequence[str],
) -> None:
    """Write dataset.json.

    Args:
        folder: folder of the converted data set.
        pairs: pairs that were written.
        cases: what was written.
        patients: name of a case -> its patient as a number; "" or missing for a case that is a patient of its own.
        labels: names and values.
        order: labels of regions in results; empty if classes don't overlap.
        channels: names of the channels; empty for those of the images.
    """
    training = []
    for pair in pairs:
        image, label = cases[pair.name]["files"]
        entry: dict[str, Any] = {"image": f"./{image}", "label": f"./{label}"}
        if patient := patients.get(pair.name):
            entry["patient"] = patient
        if pair.labelled is not None:
            entry["labelled"] = list(pair.labelled)
        entry |= {"split": pair.part} if pair.part else {}
        entry |= {"fold": pair.fold} if pair.fold is not None else {}
        training.append(entry)
    found = Counter(tuple(case["channels"]) for case in cases.values() if case["channels"])
    names = list(channels) or list(next((names for names, _ in found.most_common(1)), ()))
    description = {
        "description": "converted by napari-seg train",
        "modality": {str(number): name for number, name in enumerate(names)},
        "labels": labels,
        "training": training,
        **({"regions_class_order": list(order)} if order else {}),
    }
    atomic_write(folder / "dataset.json", json.dumps(description, indent=1) + "\n")


def describe_notices(counts: Mapping[str, int]) -> list[Notice]:
    """Return one notice per code, with the number of its cases."""
    from napari_seg.error_codes import CODES

    return [Notice(code, f"{count} cases: {CODES[code].meaning}") for code, count in sorted(counts.items())]
