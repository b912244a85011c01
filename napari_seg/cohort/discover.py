"""From what a user names - files, folders - to cases: each scan once, each with a name and a source of its own."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from napari_seg.errors import InputError
from napari_seg.formats import Scan, find, nifti_ending
from napari_seg.formats.archive import shown

PROGRAM = "napari-seg"
SUFFIX = "_seg"
CERTAINTY_MAPS = ("confidence", "entropy")


@dataclass(frozen=True)
class Case:
    """One scan of a run.

    Attributes:
        name: what its results are called; unique in the run.
        source: the file, or the folder of the series, as the user would name it.
        identity: stands for the place the scan was read from, so that a result is not taken for another scan's.
        scan: how to read it.
    """

    name: str
    source: str
    identity: str
    scan: Scan


def find_cases(inputs: Sequence[Path]) -> tuple[list[Case], list[tuple[Path, InputError]]]:
    """Every scan below the inputs, once, and what could not be looked at.

    Results of earlier runs that lie in a folder among the scans are passed over. Scans that share a name are told
    apart by the folders they lie in, so that a name does not depend on what else is found, or when.

    Args:
        inputs: files and folders.
    """
    scans: dict[tuple[Path, ...], tuple[Scan, str]] = {}
    faults: list[tuple[Path, InputError]] = []
    for path in inputs:
        try:
            found = find(path, passing_over=is_result).scans
        except InputError as fault:
            faults.append((path, fault))
            continue
        for scan in found:
            files = tuple(shown(file.resolve()) for file in scan.files)
            scans.setdefault(files, (scan, scan.source))
    return _named(list(scans.items())), faults


def is_result(path: Path) -> bool:
    """Whether an earlier run wrote a label map, a map of its certainty or a picture, told by the record beside it."""
    ending = nifti_ending(path) or (path.suffix if path.suffix == ".png" else "")
    stem = path.name.removesuffix(ending)
    for name in CERTAINTY_MAPS:
        stem = stem.removesuffix(f"_{name}")
    return bool(ending) and stem.endswith(SUFFIX) and read_record(path.with_name(f"{stem}.json")) is not None


def read_record(path: Path) -> dict[str, Any] | None:
    """What an earlier run wrote beside a label map; None if the file is missing or not ours."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and str(record.get("program", "")).startswith(PROGRAM) else None


def _named(scans: list[tuple[tuple[Path, ...], tuple[Scan, str]]]) -> list[Case]:
    groups: dict[str, list[int]] = defaultdict(list)
    for number, (_, (scan, _)) in enumerate(scans):
        groups[scan.name.casefold()].append(number)
    names = [scan.name for _, (scan, _) in scans]
    for group in groups.values():
        if len(group) > 1:
            told_apart = _told_apart([names[n] for n in group], [_folder(*scans[n]) for n in group])
            for number, name in zip(group, told_apart, strict=True):
                names[number] = name
    taken: set[str] = set()
    cases = []
    for (files, (scan, source)), name in zip(scans, names, strict=True):
        identity = hashlib.sha256(str(files[0]).encode()).hexdigest()[:16]
        unique, number = name, 2
        while unique.casefold() in taken:  # several series of one name in one folder
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique.casefold())
        cases.append(Case(unique, source, identity, scan))
    return cases


def _folder(files: tuple[Path, ...], found: tuple[Scan, str]) -> Path:
    """Where a scan lies; of DICOM, without words that stand in the patient's name or identifier too.

    A folder of which nothing is left gets a few letters that follow from its name and do not tell it.
    """
    scan, _ = found
    if scan.format != "dicom":
        return files[0].parent
    from napari_seg.formats.dicom_series import public_name, read_header

    try:
        tags = read_header(scan.files[0]).tags
    except InputError:
        return files[0].parent
    parts = files[0].parent.parts
    return Path(*(public_name(part, tags) or hashlib.sha256(part.encode()).hexdigest()[:6] for part in parts))


def _told_apart(names: list[str], folders: list[Path]) -> list[str]:
    """The names with as many of their folders before them as it takes, those that all of them share left out."""
    parts = [folder.parts for folder in folders]
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False)))
    own = ["_".join(p[shared:]) for p in parts]
    return [f"{folder}_{name}" if folder else name for folder, name in zip(own, names, strict=True)]
