"""The check of every file before training: all faults of a data set in one report."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import logging
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segnets.data.labels import Classes, Labels, label_picture, label_values, mode_fault, picture, ranges
from segnets.data.layouts import PICTURES, VOLUMES, Case, Dataset, find_dataset, is_picture, listed_endings
from segnets.data.split import PATIENT, by_patient, may_share_patients
from segnets.errors import TrainingError
from segnets.files import replacing

logger = logging.getLogger(__name__)

WORKERS = 4
"""Files read at a time, and so held in memory."""

GEOMETRY_TOLERANCE = 0.1
"""How far, in voxels of the image, a label map's corners may lie from the image's."""

MAX_IGNORED = 0.2
"""The largest fraction of the voxels that may be ignored values, which are trained as background."""

_SLAB = 1 << 22
_SECONDS_BETWEEN_LINES = 10
_CACHE_VERSION = 3

Facts = dict[str, Any]
"""What one file holds, as JSON can: "error" (code and text), or "shape", "affine", "channels", "not_finite", "low",
"high", "digest" of all that; of a label map "values" (value -> voxels) and "fractional" (voxels that hold no whole
number); of a picture "mode", as PIL names it."""


class Fault(NamedTuple):
    """One line of the report."""

    code: str
    case: str
    text: str


def check(
    dataset_dir: str | Path,
    classes: Classes | None = None,
    labels: Labels | None = None,
    *,
    cases: Sequence[Case] | None = None,
    num_channels: int | None = None,
    allow_empty: bool = False,
    cache_dir: str | Path | None = None,
    patient: str | None = None,
    **layout: Any,
) -> dict[str, str]:
    """Read every image and label map to its end, and report all faults at once.

    Args:
        dataset_dir: in one of the layouts of `find_dataset`.
        classes: as in metadata.json's `channel_def`; without it, label values may be any.
        labels: which values stand for which class, as of `label_values`.
        cases: only these, as `datalist` returns them; all of the data set if left out.
        num_channels: of every image; the most frequent number if left out. Pictures are made grey (1) or RGB (3).
        allow_empty: a label map without any class is no fault.
        cache_dir: keeps what was found in each file, so that a second check reads only files that changed since.
        patient: as of `datalist`; how many patients that makes is told.
        layout: `layout`, `images_dir`, `labels_dir` and `channels`, as of `find_dataset`.

    Returns:
        Name of a case -> digest of the voxels and the geometry of its files, the same on every machine.

    Raises:
        TrainingError: "data.faults", with a line a fault; and those of `find_dataset`.
    """
    start = time.monotonic()
    dataset = find_dataset(dataset_dir, **layout)
    faults = [*_lonely(dataset)] if cases is None else []
    cases = dataset.cases if cases is None else cases
    faults += _twice(cases)
    known, meant = None, None
    if classes:
        try:
            meant = label_values(dataset, classes, labels)
        except TrainingError as error:
            faults.append(Fault(error.code, "all", error.message))
        else:
            named = [*dataset.labels.values(), dataset.ignored, [0]]
            known = [pair for values in (*meant.values(), *named) for pair in ranges(list(values))]
            meant = [pair for number, values in meant.items() if number for pair in ranges(values)]
    facts = read_all(cases, cache_dir)
    channels = _most_frequent((n for case in cases if (n := _channels(case, facts))), 1)
    for case in cases:
        scans, label = [facts[path] for path in _paths(case)], facts[case["label"]]
        for path, its in zip((*_paths(case), case["label"]), (*scans, label), strict=True):
            faults += [Fault(code, case["name"], text) for code, text in _file_faults(Path(path).name, its)]
        found = [
            *_label_faults(label, known, meant, allow_empty),
            *_channel_faults(_channels(case, facts), num_channels, channels, dataset.pictures),
            *_mode_faults(scans, num_channels or channels),
            *_axes_faults(scans[0]),
            *_geometry_faults(scans, label),
        ]
        faults += [Fault(code, case["name"], text) for code, text in found]
    ignored = _ignored_fraction(dataset, labels, [facts[case["label"]] for case in cases])
    if ignored > MAX_IGNORED:
        values = ", ".join(map(str, dataset.ignored))
        text = (
            f"{ignored:.0%} of the voxels have value {values}, which the data set means to be ignored; training can "
            f"leave nothing out yet and would take it for background, which is accepted for at most {MAX_IGNORED:.0%}; "
            f"if it is background, say so by labels, e.g. background={dataset.ignored[0]}"
        )
        faults.append(Fault("label.ignored", "all", text))
    if faults:
        width, second = (max(len(fault[n]) for fault in faults) for n in (0, 1))
        lines = [f"  {f.code:{width}}  {f.case:{second}}  {f.text}" for f in faults]
        count = f"{len(faults)} fault{'s' * (len(faults) > 1)} in {dataset_dir} ({len(cases)} cases)"
        raise TrainingError("data.faults", "\n".join([f"{count}; nothing was computed", *lines]))
    patients = by_patient(cases, patient or PATIENT)
    logger.info(
        f"{len(cases)} cases of {len(patients)} patients checked in {time.monotonic() - start:.0f} s "
        f"({dataset.layout}): no fault"
    )
    if dataset.layout != "voc" and may_share_patients(patients):
        logger.warning(
            "several cases have names that differ in their last number or letter only, as rat1_a and rat1_b do, and "
            "count as a patient each: if they are of one, give datalist's patient, a pattern such as '^[^_]+', or "
            "what is validated on may have been trained on"
        )
    if dataset.ignored:
        values = ", ".join(map(str, dataset.ignored))
        text = f"the data set means value {values} to be ignored; it is trained as background"
        logger.warning(f"{text} ({ignored:.1%} of the voxels)")
    if dataset.unread:
        logger.warning(f"not read, and left out: {listed_endings(dataset.unread)}")
    return {
        case["name"]: _digest([facts[path].get("digest") for path in (*_paths(case), case["label"])]) for case in cases
    }


def _ignored_fraction(dataset: Dataset, labels: Labels | None, facts: Iterable[Facts]) -> float:
    """Return which fraction of all labelled voxels has a value to be ignored that the user has not given a meaning."""
    said = [pair for values in (labels or {}).values() for pair in ranges(values)]
    values: Counter[str] = Counter()
    for its in facts:
        values.update(its.get("values", {}))
    ignored = sum(values[str(value)] for value in dataset.ignored if not _inside(value, said))
    return ignored / max(1, values.total())


def _lonely(dataset: Dataset) -> Iterator[Fault]:
    for case in dataset.lonely:
        has, lacks = ("image", "label") if "image" in case else ("label", "image")
        there = case.get(has, "its entry in dataset.json")
        there = Path(there[0] if isinstance(there, list) else there).name
        yield Fault(
            f"partner.no_{lacks}",
            case["name"],
            f"{there} has no {lacks}; expected one of each; add it or leave this out",
        )


def _twice(cases: Sequence[Case]) -> Iterator[Fault]:
    for name, count in Counter(case["name"] for case in cases).items():
        if count > 1:
            its = [(*_paths(case), case["label"]) for case in cases if case["name"] == name]
            files = ", ".join(sorted({Path(path).name for paths in its for path in paths}))
            yield Fault("name.twice", name, f"{count} cases of this name ({files}); expected one; rename or remove")


def _file_faults(name: str, facts: Facts) -> Iterator[tuple[str, str]]:
    """Of an image or a label map, whatever it is."""
    if "error" in facts:
        yield tuple(facts["error"])
        return
    if facts["not_finite"]:
        yield "values.not_finite", f"{name} has {facts['not_finite']} voxels that are NaN or infinite; replace them"
    elif "values" not in facts and facts["low"] == facts["high"]:
        yield (
            "image.constant",
            f"{name} is {facts['low']} everywhere; expected an image; export it again or leave it out",
        )
    affine = facts["affine"]
    if affine is not None and not (np.isfinite(affine).all() and abs(np.linalg.det(np.array(affine)[:3, :3])) > 1e-12):
        yield "geometry.invalid", f"{name} says nothing of where its voxels lie; expected an affine; export it again"


def _label_faults(
    facts: Facts, known: Iterable[tuple[int, int]] | None, meant: Iterable[tuple[int, int]] | None, allow_empty: bool
) -> Iterator[tuple[str, str]]:
    if "error" in facts:
        return
    if facts["channels"] != 1:
        yield "label.channels", f"a label map of {facts['channels']} channels; expected one, a number a voxel"
    if facts["fractional"]:
        yield (
            "label.fractional",
            f"{facts['fractional']} voxels of the label map hold no whole number; it was interpolated; "
            "expected labels; resample it with nearest neighbours",
        )
        return
    values = {int(value): count for value, count in sorted(facts["values"].items(), key=lambda v: int(v[0]))}
    strangers = [v for v in values if known is not None and not _inside(v, known)]
    if strangers:
        some = ", ".join(f"{v} ({values[v]} voxels)" for v in strangers[:6])
        more = f" and {len(strangers) - 6} more" if len(strangers) > 6 else ""
        expected = ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in sorted(set(known)))
        yield "label.values", f"values {some}{more}; expected {expected}; correct them, or say by labels what they are"
    elif not allow_empty and not any(v != 0 if meant is None else _inside(v, meant) for v in values):
        yield (
            "label.empty",
            "the label map holds no class; expected one at least; leave the case out, or set allow_empty to true "
            "(--allow_empty true)",
        )


def _inside(value: int, bounds: Iterable[tuple[int, int]]) -> bool:
    return any(low <= value <= high for low, high in bounds)


def _channel_faults(found: int, expected: int | None, usual: int, pictures: bool) -> Iterator[tuple[str, str]]:
    if not found or (pictures and (expected or usual) in (1, 3)):
        return
    if found != (expected or usual):
        why = "" if expected else ", as most images have"
        yield (
            "image.channels",
            f"{found} channels; expected {expected or usual}{why}; add the missing files or leave it out",
        )


def _mode_faults(scans: list[Facts], channels: int) -> Iterator[tuple[str, str]]:
    for mode in dict.fromkeys(facts.get("mode", "") for facts in scans):
        if fault := mode_fault(mode, channels):
            yield "image.mode", fault


def _axes_faults(first: Facts) -> Iterator[tuple[str, str]]:
    if "error" not in first and first["affine"] is not None and len(first["shape"]) != 3:
        yield (
            "geometry.axes",
            f"{len(first['shape'])} spatial axes ({_size(first)} voxels); expected 3 of a volume; save a single slice "
            "as I x J x 1 voxels or as a PNG or TIFF picture, or leave it out",
        )


def _geometry_faults(scans: list[Facts], label: Facts) -> Iterator[tuple[str, str]]:
    """The channels must lie on one grid as MONAI sees it, and the label map on it up to a tenth of a voxel."""
    if any("error" in facts for facts in (*scans, label)):
        return
    first = scans[0]
    for what, facts in [*((f"channel {n}", scan) for n, scan in enumerate(scans[1:], 1)), ("the label map", label)]:
        if facts["shape"] != first["shape"]:
            yield (
                "geometry.shape",
                f"{what} has {_size(facts)} voxels, the image {_size(first)}; expected the same; resample one of them",
            )
        elif facts["affine"] is not None and first["affine"] is not None:
            ours, theirs = np.array(first["affine"]), np.array(facts["affine"])
            indices = itertools.product(*((0, n - 1) for n in (*first["shape"], 1, 1)[:3]))
            corners = np.array([(*index, 1) for index in indices])
            away = float(np.linalg.norm(corners @ (ours - theirs).T, axis=1).max())
            tolerance = GEOMETRY_TOLERANCE * float(np.linalg.norm(ours[:3, :3], axis=0).min())
            is_close = away <= tolerance if facts is label else np.allclose(ours, theirs)
            if not is_close and np.isfinite(away):
                yield (
                    "geometry.affine",
                    f"{what} lies up to {away:.3g} mm from the image; expected the same grid"
                    f"{f' to {tolerance:.2g} mm' if facts is label else ''}; resample it, or copy the right affine",
                )


def _digest(parts: Sequence[str | None]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _size(facts: Facts) -> str:
    return " x ".join(map(str, facts["shape"]))


def _most_frequent(numbers: Iterable[int], otherwise: int) -> int:
    return next((number for number, _ in Counter(numbers).most_common(1)), otherwise)


def _paths(case: Case) -> list[str]:
    return case["image"] if isinstance(case["image"], list) else [case["image"]]


def _channels(case: Case, facts: Mapping[str, Facts]) -> int:
    """0 if a file can't be read."""
    each = [facts[path].get("channels", 0) for path in _paths(case)]
    return sum(each) if all(each) else 0


def read_all(cases: Iterable[Case], cache_dir: str | Path | None) -> dict[str, Facts]:
    """Path -> facts of every file, those that did not change from the cache."""
    is_label = {path: False for case in cases for path in _paths(case)} | {case["label"]: True for case in cases}
    cache = Path(cache_dir) / "checked_files.json" if cache_dir else None
    stored = _stored(cache)
    stamps = {path: _stamp(path, label) for path, label in is_label.items()}
    facts = {
        path: stored[path]["facts"] for path, stamp in stamps.items() if stored.get(path, {}).get("stamp") == stamp
    }
    to_read = [path for path in is_label if path not in facts]
    said = time.monotonic()
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            results = pool.map(lambda path: read_facts(path, is_label[path]), to_read)
            for n, (path, found) in enumerate(zip(to_read, results, strict=True), 1):
                facts[path] = found
                if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                    said = time.monotonic()
                    logger.info(f"checking: {n} of {len(to_read)} files")
    finally:
        if cache and to_read:
            # what could not be read is tried again: a right or a mount may have been missing
            entries = {p: {"stamp": stamps[p], "facts": f} for p, f in facts.items() if "error" not in f}
            with replacing(cache) as part:
                part.write_text(json.dumps({"version": _CACHE_VERSION, "files": entries}))
    return facts


def _stored(cache: Path | None) -> dict[str, Any]:
    try:
        content = json.loads(cache.read_text()) if cache else {}
    except (OSError, ValueError):  # absent or damaged: every file is read again
        return {}
    return content["files"] if content.get("version") == _CACHE_VERSION else {}


def _stamp(path: str, is_label: bool) -> list[int]:
    try:
        stat = os.stat(path)
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns, int(is_label)]


def read_facts(path: str, is_label: bool) -> Facts:
    """What a file holds, read to its end; never raises for a bad file."""
    try:
        if is_picture(path):
            with Image.open(path) as image:
                return _summary(*_open_picture(image, is_label), is_label) | {"mode": image.mode}
        if not path.lower().endswith(VOLUMES):
            raise TrainingError("file.format", f"training reads {', '.join(VOLUMES + PICTURES)}; convert it")
        return _summary(*_open_volume(path), is_label)
    except TrainingError as error:
        found = error.code, error.message
    except EOFError:
        found = "file.truncated", "its gzip stream has no end"
    except (gzip.BadGzipFile, zlib.error) as error:
        found = "file.damaged", f"its gzip stream is damaged ({error})"
    except Exception as error:  # a reader may stumble over anything, and the other files are to be checked all the same
        found = "file.unreadable", f"it can't be read ({type(error).__name__}: {error})"
    return {"error": [found[0], f"{Path(path).name}: {found[1]}; copy or export it again"]}


def _open_volume(path: str) -> tuple[list[int], int, Any, Iterator[NDArray]]:
    """Spatial shape, channels, affine and slabs of a NIfTI file; behind three axes the last one is of channels (MONAI).

    nibabel does not notice a gzip stream that is cut short or damaged behind the voxels it reads, so the bytes are
    read here, once and to their end.
    """
    with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as stream:
        content = stream.read()
    is_second = nibabel.Nifti2Header.may_contain_header(content[:1024])
    image = (nibabel.Nifti2Image if is_second else nibabel.Nifti1Image).from_bytes(content)
    needed = image.dataobj.offset + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    if needed > len(content):
        raise TrainingError("file.truncated", f"{len(content)} of {needed} bytes are there")
    thickness = max(1, _SLAB // max(1, int(np.prod(image.shape[:-1]))))
    slabs = (np.asarray(image.dataobj[..., k : k + thickness]) for k in range(0, image.shape[-1], thickness))
    axes = image.ndim - 1 if image.ndim > 3 else image.ndim
    return list(image.shape[:axes]), int(np.prod(image.shape[axes:])), image.affine.tolist(), slabs


def _open_picture(image: Image.Image, is_label: bool) -> tuple[list[int], int, Any, Iterator[NDArray]]:
    if getattr(image, "n_frames", 1) > 1:
        raise TrainingError("file.pages", f"{image.n_frames} pages or frames; expected one picture")
    array = np.asarray(label_picture(image) if is_label else picture(image))
    return [array.shape[1], array.shape[0]], array.shape[2] if array.ndim == 3 else 1, None, iter([array])


def _summary(shape: list[int], channels: int, affine: Any, slabs: Iterator[NDArray], is_label: bool) -> Facts:
    not_finite, fractional, bounds, values = 0, 0, [], Counter()
    digest = hashlib.sha256(json.dumps([shape, channels, affine]).encode())
    for slab in slabs:
        digest.update(slab.tobytes())
        if slab.dtype.kind == "f":
            good = np.isfinite(slab)
            if not good.all():
                not_finite += int(slab.size - np.count_nonzero(good))
                slab = slab[good]
        if slab.size:
            bounds += [float(slab.min()), float(slab.max())]
        if is_label:
            rounded = np.rint(slab) if slab.dtype.kind == "f" else slab
            fractional += int(np.count_nonzero(abs(slab - rounded) > 1e-3)) if slab.dtype.kind == "f" else 0
            if not fractional:
                numbers, counts = np.unique(rounded, return_counts=True)
                values.update({str(int(v)): int(n) for v, n in zip(numbers, counts, strict=True)})
    facts: Facts = {"shape": shape, "channels": channels, "affine": affine, "not_finite": not_finite}
    facts |= {"low": min(bounds, default=0.0), "high": max(bounds, default=0.0), "digest": digest.hexdigest()}
    return facts | ({"values": dict(values), "fractional": fractional} if is_label else {})
