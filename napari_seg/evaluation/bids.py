"""Names of BIDS as training reads them (`segnets.data.bids`): label maps, their scans, and tables of labels."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from napari_seg.errors import InputError
from napari_seg.evaluation.labels import Classes
from napari_seg.formats.endings import nifti_ending

LABEL_SUFFIXES = (("dseg",), ("seg",), ("mask", "roi"))
"""Suffixes of label maps; those of a later group count only if there are none of an earlier one."""

SCAN_ENTITIES = ("sub-", "ses-", "acq-", "run-", "rec-")
"""Entities that identify a scan; others, such as `space-` and `desc-`, do not."""

_NAME = re.compile(r"sub-[A-Za-z0-9]+(_[A-Za-z0-9-]+)+")
_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
_DRAWN = re.compile(r"(seg|lesion|label|mask)-.*")
_NOT_STRUCTURES = "_desc-brain_mask"


def is_bids_name(stem: str) -> bool:
    """Return whether a file name without ending has the form of BIDS, such as `sub-01_T1w`."""
    return bool(_NAME.fullmatch(stem))


def is_label_map(stem: str) -> bool:
    """Return whether a name of BIDS is that of a label map."""
    return is_bids_name(stem) and any(_suffix(stem) in group for group in LABEL_SUFFIXES)


def without_scans(files: Sequence[Path]) -> list[Path]:
    """Return the files without those that are no label maps by their names in BIDS; all if none is a label map."""
    names = {file: file.name.removesuffix(nifti_ending(file)) for file in files}
    for group in LABEL_SUFFIXES:
        found = {
            file
            for file, name in names.items()
            if is_bids_name(name) and _suffix(name) in group and not name.endswith(_NOT_STRUCTURES)
        }
        if found:
            return [file for file in files if file in found or not is_bids_name(names[file])]
    return list(files)


def scan_entities(stem: str) -> tuple[str, ...]:
    """Return the entities in a name of BIDS that identify its scan; none for any other name."""
    return tuple(word for word in stem.split("_") if word.startswith(SCAN_ENTITIES)) if is_bids_name(stem) else ()


def shared_words(result: str, other: str) -> int:
    """Return how many words a result and a reference or scan share, both named as in BIDS; 0 if they don't belong.

    They belong together if the result has all entities of the other one that identify its scan. `predict` writes the
    suffix of the scan as `desc-T1w`.
    """
    words = set(result.split("_"))
    words |= {word.removeprefix("desc-") for word in words}
    entities = scan_entities(other)
    return len(words.intersection(other.split("_"))) if entities and words.issuperset(entities) else 0


def named_classes(path: Path) -> Classes:
    """Return the names of the values of a label map in BIDS: of its `*dseg.tsv`, or else of its entity `label-`.

    A table lies next to it or in a folder above it, up to the one of its derivative, and has no other entities. The
    nearest one counts.

    Args:
        path: the label map; one without a name of BIDS has no classes.

    Raises:
        InputError: `dataset.bad_table`.
    """
    stem = path.name.removesuffix(nifti_ending(path))
    if not is_label_map(stem):
        return {}
    words = stem.split("_")[:-1]
    subject = next((n for n, folder in enumerate(path.parents) if _SUBJECT.fullmatch(folder.name)), -1)
    for folder in path.parents[: subject + 2]:
        for table in sorted(folder.glob("*dseg.tsv"), key=lambda table: (-table.name.count("_"), table.name)):
            if set(words).issuperset(table.stem.split("_")[:-1]) and (classes := dict(_rows(table))):
                return classes
    return {word.removeprefix("label-"): frozenset({1}) for word in words if word.startswith("label-")}


def _rows(table: Path) -> Iterator[tuple[str, frozenset[int]]]:
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            try:
                name, value = row["name"].strip(), int(row["index"])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                text = f"found {row} in {table.name}; expected the columns index and name"
                raise InputError("dataset.bad_table", f"{text}; correct the table") from error
            if value:
                yield name, frozenset({value})


def _suffix(stem: str) -> str:
    """Return the suffix of a name, with "seg" for endings such as `_seg-manual` that are no suffix of BIDS."""
    suffix = stem.rpartition("_")[2]
    return "seg" if _DRAWN.fullmatch(suffix) else suffix
