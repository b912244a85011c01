"""Check every file of a data set before training, and report all faults at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segnets.annotation import IGNORED
from segnets.data.declarations import MAX_VALUE
from segnets.data.file_facts import Facts, image_paths, read_all
from segnets.data.labels import ClassValues, mode_fault, ranges
from segnets.data.layouts import Dataset
from segnets.data.pairing import Case, list_endings
from segnets.data.patients import MAY_SHARE, may_share_patients
from segnets.errors import TrainingError

logger = logging.getLogger(__name__)

GEOMETRY_TOLERANCE = 0.1
"""Largest accepted distance between corners of an image and its label map, in voxels of the image."""

MAX_FAULTS = 1000
"""Number of faults that are reported with a line of their own; the others are counted."""

REPEATED = (
    "the same image is in several cases that count as different patients, so training and test may share scans and "
    "scores may be too good; remove the copies, or state one patient for these cases in a list"
)
"""What to say if there are `repeated_images`."""

_SHOWN_FILES = 8
_SHOWN_RUNS = 8
_ROUNDING = 1e-3
"""Largest accepted distance of a fraction from 0 to 1, which interpolation may leave."""

_SHOWN_CASES = 20

_VOXELS = re.compile(r" \(\d+ voxels\)")


class Fault(NamedTuple):
    """One line of the report; "all" stands for the whole data set in place of a case."""

    code: str
    case: str
    text: str


def check(
    dataset: Dataset,
    classes: ClassValues | None = None,
    *,
    cases: Sequence[Case] | None = None,
    num_channels: int | None = None,
    allow_empty: bool = False,
    cache_dir: str | Path | None = None,
    facts: Mapping[str, Facts] | None = None,
) -> dict[str, str]:
    """Read every image and label map to its end, and report all faults at once.

    Args:
        dataset: as `find_dataset` returns.
        classes: the values of each class; None accepts all label values.
        cases: cases to check, such as a part of the data set (`Split`); None: all of the data set.
        num_channels: expected number of channels of every image; None: the most frequent number. 2D images are
            converted to grey (1) or RGB (3).
        allow_empty: accept label maps without any class.
        cache_dir: folder that keeps the facts of each file, so that a second check reads only changed files.
        facts: facts of the files, as `read_all` returns; None: the files are read.

    Returns:
        Name of a case -> digest of the voxels and geometry of its files, equal on all machines.

    Raises:
        TrainingError: "data.faults", with one line per fault.
    """
    start = time.monotonic()
    faults = [Fault("dataset.stated", "all", text) for text in dataset.unclear]
    faults += unpaired_faults(dataset) if cases is None else []
    cases = dataset.cases if cases is None else cases
    faults += _duplicates(cases)
    known, foreground = None, None
    ignored = [(value, value) for value in dataset.ignored]
    if classes:
        try:
            values_of = classes.values
        except TrainingError as error:
            faults.append(Fault(error.code, "all", error.message))
        else:
            named = [*dataset.labels.values(), dataset.ignored, [0]]
            known = [bounds for values in (*values_of.values(), *named) for bounds in ranges(list(values))]
            foreground = [bounds for number, values in values_of.items() if number > 0 for bounds in ranges(values)]
            ignored = ranges(values_of.get(IGNORED, []))
    facts = read_all(cases, cache_dir, dataset.soft) if facts is None else facts
    channels = _most_frequent((n for case in cases if (n := _channels(case, facts))), 1)
    for case in cases:
        scans, label = [facts[path] for path in image_paths(case)], facts[case["label"]]
        for path, of_file in zip((*image_paths(case), case["label"]), (*scans, label), strict=True):
            faults += [Fault(code, case["name"], text) for code, text in _file_faults(Path(path).name, of_file)]
        found = [
            *_label_faults(label, known, foreground, ignored, allow_empty, dataset.soft),
            *_labelled_faults(label, dataset.labelled.get(case["name"]), ignored),
            *_channel_faults(_channels(case, facts), num_channels, channels, dataset.is_2d),
            *_mode_faults(scans, num_channels or channels),
            *_axes_faults(scans[0]),
            *_geometry_faults(scans, label),
        ]
        faults += [Fault(code, case["name"], text) for code, text in found]
    if faults:
        count = f"{len(faults)} fault{'s' * (len(faults) > 1)} in {dataset.root} ({len(cases)} cases)"
        raise TrainingError("data.faults", "\n".join([f"{count}; nothing was computed", *_lines(faults)]))
    patients = {dataset.patients[case["name"]] for case in cases}
    logger.info(
        f"{len(cases)} case{'s' * (len(cases) != 1)} of {len(patients)} patient{'s' * (len(patients) != 1)} checked in "
        f"{time.monotonic() - start:.0f} s "
        f"({dataset.layout}): no fault"
    )
    if dataset.layout != "voc" and may_share_patients(patients):
        logger.warning(MAY_SHARE)
    if repeated := repeated_images(dataset, cases, facts):
        shown = "; ".join(" and ".join(names[:_SHOWN_FILES]) for names in repeated[:_SHOWN_FILES])
        logger.warning(f"{REPEATED} ({len(repeated)} images): {shown}")
    _log_unannotated(dataset, ignored, [facts[case["label"]] for case in cases])
    if dataset.unread:
        logger.warning(f"files not read and left out: {list_endings(dataset.unread)}")
    digests = {}
    for case in cases:
        parts = [facts[path].get("digest") for path in (*image_paths(case), case["label"])]
        labelled = dataset.labelled.get(case["name"])
        digests[case["name"]] = _digest(parts if labelled is None else [*parts, str(labelled)])
    return digests


def _log_unannotated(dataset: Dataset, ignored: Sequence[tuple[int, int]], labels: Iterable[Facts]) -> None:
    """Log what is not annotated: the fraction of ignored voxels, and the number of cases without some classes."""
    values: Counter[str] = Counter()
    for facts in labels:
        values.update(facts["values"])
    count = sum(voxels for value, voxels in values.items() if _in_ranges(int(value), ignored))
    if ignored:
        stated = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ignored)
        fraction = count / max(1, values.total())
        logger.info(f"{fraction:.1%} of the voxels are ignored (value {stated}): they are neither trained nor scored")
    if dataset.labelled:
        logger.info(
            f"{len(dataset.labelled)} cases are annotated with some of the classes only, as dataset.json declares; the "
            "others are neither trained nor scored in them"
        )


def _lines(faults: Sequence[Fault]) -> Iterator[str]:
    """Yield a line for each fault, or for all cases with the same one; numbers of voxels may differ."""
    same: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        same.setdefault((fault.code, _VOXELS.sub("", fault.text)), []).append(fault)
    rows = []
    for (code, text), some in same.items():
        names = ", ".join(fault.case for fault in some[:_SHOWN_CASES])
        more = f" and {len(some) - _SHOWN_CASES} more" if len(some) > _SHOWN_CASES else ""
        rows.append(some[0] if len(some) == 1 else Fault(code, f"{len(some)} cases", f"{text}: {names}{more}"))
    shown, rest = rows[:MAX_FAULTS], rows[MAX_FAULTS:]
    width, second = (max(len(row[n]) for row in shown) for n in (0, 1))
    for row in shown:
        yield f"  {row.code:{width}}  {row.case:{second}}  {row.text}"
    for code, count in Counter(row.code for row in rest).items():
        yield f"  and {count} more of {code}"


def unpaired_faults(dataset: Dataset) -> Iterator[Fault]:
    """Return a fault for each case without an image or a label map, which names the missing paths of a list."""
    for case in dataset.unpaired:
        has, lacks = ("image", "label") if "image" in case else ("label", "image")
        if missing := case.get("missing"):
            verb = "does" if len(missing) == 1 else "do"
            text = (
                f"{case['list']} lists {' and '.join(missing)}, which {verb} not exist; expected absolute paths "
                "or paths relative to the list; correct them, restore the files, or remove the case from the list"
            )
        else:
            present = case.get(has, "the list of cases")
            present = Path(present[0] if isinstance(present, list) else present).name
            text = (
                f"{present} has no {lacks}; expected an image and a label map; add the missing one or remove this one"
            )
        yield Fault(f"partner.no_{lacks}", case["name"], text)


def _duplicates(cases: Sequence[Case]) -> Iterator[Fault]:
    named: dict[str, list[Case]] = {}
    for case in cases:
        named.setdefault(case["name"], []).append(case)
    for name, same in named.items():
        if len(same) > 1:
            paths = {path for case in same for path in (*image_paths(case), case["label"])}
            files = ", ".join(sorted({Path(path).name for path in paths})[:_SHOWN_FILES])
            yield Fault(
                "name.twice",
                name,
                f"{len(same)} cases have this name ({files}); expected one; rename or remove the others",
            )


def repeated_images(dataset: Dataset, cases: Sequence[Case], facts: Mapping[str, Facts]) -> list[list[str]]:
    """Return the names of cases that have one image in common and count as different patients, in a list for each.

    Args:
        dataset: as `find_dataset` returns.
        cases: its cases, or some of them.
        facts: facts of the files, as `read_all` returns.
    """
    same: dict[tuple[str, ...], list[str]] = {}
    for case in cases:
        digests = [facts[path].get("digest", "") for path in image_paths(case)]
        if all(digests):
            same.setdefault(tuple(digests), []).append(case["name"])
    return [names for names in same.values() if len({dataset.patients[name] for name in names}) > 1]


def _file_faults(name: str, facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield the faults that both images and label maps can have."""
    if "error" in facts:
        yield tuple(facts["error"])
        return
    if facts["not_finite"]:
        yield "values.not_finite", f"{name} has {facts['not_finite']} voxels that are NaN or infinite; replace them"
    elif "values" not in facts and facts["low"] == facts["high"]:
        yield (
            "image.constant",
            f"{name} is {facts['low']} everywhere; expected varying intensities; export it again or leave it out",
        )
    affine = facts["affine"]
    if affine is not None and not (np.isfinite(affine).all() and abs(np.linalg.det(np.array(affine)[:3, :3])) > 1e-12):
        yield "geometry.invalid", f"{name} has an affine that is not invertible; expected one that is; export it again"


def _label_faults(
    facts: Facts,
    known: Iterable[tuple[int, int]] | None,
    foreground: Iterable[tuple[int, int]] | None,
    ignored: Iterable[tuple[int, int]],
    allow_empty: bool,
    soft: bool = False,
) -> Iterator[tuple[str, str]]:
    """Yield the faults of a label map.

    `known` and `foreground` are ranges of accepted values, None for all; `ignored` is the ranges of ignored values.
    """
    if "error" in facts:
        return
    if soft:
        if min(facts["low"], 1 - facts["high"]) < -_ROUNDING:
            yield (
                "label.fractions",
                f"values from {facts['low']:g} to {facts['high']:g}; expected fractions from 0 to 1; divide them by "
                "their largest possible value, or leave the option soft out if they are numbers of classes",
            )
            return
        if facts["channels"] < (needed := max((high for _, high in foreground or ()), default=1)):
            count = f"{facts['channels']} structure{'s' * (facts['channels'] != 1)}"
            yield (
                "label.channels",
                f"fractions of {count}; expected {needed}, one after the other along the fourth axis",
            )
    elif facts["channels"] != 1:
        yield "label.channels", f"the label map has {facts['channels']} channels; expected one; export it again"
    if facts.get("fractional"):
        yield (
            "label.fractional",
            f"{facts['fractional']} voxels of the label map are no integers, as after interpolation; "
            "expected integer labels; resample it with nearest neighbours, or, if they are fractions of structures, "
            "from 0 to 1, train on them (napari-seg: --option soft; MONAI: regions.yaml, then soft.yaml)",
        )
        return
    values = {int(value): count for value, count in sorted(facts["values"].items(), key=lambda v: int(v[0]))}
    large = [v for v in values if abs(v) > MAX_VALUE]
    unknown = large or [v for v in values if known is not None and not _in_ranges(v, known)]
    if unknown:
        some = ", ".join(f"{v} ({values[v]} voxels)" for v in unknown[:6])
        more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
        ranges_known = sorted(set(known)) if known and not large else [(-MAX_VALUE, MAX_VALUE)]
        expected = ", ".join(
            f"{low}" if low == high else f"{low}-{high}" if low >= 0 else f"{low} to {high}"
            for low, high in ranges_known
        )
        yield "label.values", f"values {some}{more}; expected {expected}; {_way_out(unknown)}"
    elif values and all(_in_ranges(v, ignored) for v in values):
        yield (
            "label.ignored",
            "all voxels of the label map have an ignored value; expected annotated ones; leave the case out, or "
            "assign the value with --labels, such as background=255",
        )
    elif not allow_empty and not any(v != 0 if foreground is None else _in_ranges(v, foreground) for v in values):
        yield (
            "label.empty",
            "the label map contains no class; expected at least one; leave the case out, or give --allow_empty true",
        )


def _way_out(unknown: Sequence[int]) -> str:
    """Return what to do about unknown values, in ascending order."""
    if max(map(abs, unknown)) > MAX_VALUE:
        return "correct them"
    steps = itertools.groupby(enumerate(unknown), lambda pair: pair[1] - pair[0])
    runs = [[value for _, value in step] for _, step in steps]
    listed = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    out = f"leave them out with background={listed} or ignore={listed} in --labels, " * (len(runs) <= _SHOWN_RUNS)
    return f"correct them, {out}or name every class in --labels"


def _labelled_faults(
    facts: Facts, labelled: Sequence[int] | None, ignored: Iterable[tuple[int, int]]
) -> Iterator[tuple[str, str]]:
    """Yield the fault of a label map with other values than dataset.json declares for it; None: it declares none."""
    values = sorted(int(value) for value in facts.get("values", {}))
    others = [v for v in values if v and not _in_ranges(v, ignored)] if labelled is not None else []
    others = [v for v in others if v not in (labelled or ())]
    if others:
        yield (
            "label.labelled",
            f"the label map has {', '.join(map(str, others[:6]))}, and dataset.json declares that only "
            f"{', '.join(map(str, labelled or ())) or 'no value'} is annotated in this case; correct one of them",
        )


def _in_ranges(value: int, bounds: Iterable[tuple[int, int]]) -> bool:
    return any(low <= value <= high for low, high in bounds)


def _channel_faults(found: int, expected: int | None, usual: int, is_2d: bool) -> Iterator[tuple[str, str]]:
    if not found or (is_2d and (expected or usual) in (1, 3)):
        return
    if found != (expected or usual):
        why = "" if expected else ", as most images have"
        advice = "add the missing files" if found < (expected or usual) else "save those that are needed alone"
        yield (
            "image.channels",
            f"{found} channel{'s' * (found != 1)}; expected {expected or usual}{why}; {advice} or leave it out",
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
            "as I x J x 1 voxels or as a PNG or TIFF image, or leave it out",
        )


def _geometry_faults(scans: list[Facts], label: Facts) -> Iterator[tuple[str, str]]:
    """Compare grids: those of channels must be equal as MONAI compares them, the label map's to a tenth of a voxel."""
    if any("error" in facts for facts in (*scans, label)):
        return
    first = scans[0]
    for what, facts in [*((f"channel {n}", scan) for n, scan in enumerate(scans[1:], 1)), ("the label map", label)]:
        if facts["shape"] != first["shape"]:
            yield (
                "geometry.shape",
                f"{what} has {_size(facts)} voxels, the image {_size(first)}; expected the same; "
                "if it is this case's, resample one of them",
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
                    f"{f' to {tolerance:.2g} mm' if facts is label else ''}; if it is this case's, "
                    "resample it, or copy the right affine",
                )


def _digest(parts: Sequence[str | None]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _size(facts: Facts) -> str:
    return " x ".join(map(str, facts["shape"]))


def _most_frequent(numbers: Iterable[int], otherwise: int) -> int:
    return next((number for number, _ in Counter(numbers).most_common(1)), otherwise)


def _channels(case: Case, facts: Mapping[str, Facts]) -> int:
    """Return the number of channels of a case's image; 0 if a file can't be read."""
    each = [facts[path].get("channels", 0) for path in image_paths(case)]
    return sum(each) if all(each) else 0
