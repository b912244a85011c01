"""Find scans and label maps in BIDS data sets (Gorgolewski et al. 2016; bids-specification 1.10)."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from segnets.data.pairing import Case, count_unread, image_files, stem
from segnets.errors import TrainingError

_ANATOMY = ("sub-*/anat", "sub-*/ses-*/anat")
_LABEL_SUFFIXES = (("dseg",), ("seg",), ("mask", "roi"))
"""Suffixes of label maps; those of a later group count only if a data set has none of an earlier one."""

_FRACTIONS = (("probseg",),)
"""The same for fractions."""

_DRAWN = re.compile(r"(seg|lesion|label|mask)-.*")
"""Endings of label maps that are no suffix of BIDS, such as `_seg-manual`."""

_SCAN_ENTITIES = ("sub-", "ses-", "acq-", "run-", "rec-")
_RESULTS = ("derivatives", "napari-seg")
_NOT_STRUCTURES = re.compile(r"_desc-brain_mask$")
_USUAL = {"T1w": 3, "T2w": 2, "FLAIR": 1}


class BidsCases(NamedTuple):
    """Cases of a BIDS data set.

    Attributes:
        cases: cases with image and label map.
        unpaired: scans without a label map, and label maps without a scan.
        labels: name -> values in the label maps; empty if the data set names none.
        channels: suffixes of the files that form an image.
        unread: see `Dataset`.
    """

    cases: tuple[Case, ...]
    unpaired: tuple[Case, ...]
    labels: dict[str, tuple[int, ...]]
    channels: tuple[str, ...]
    unread: dict[str, int]


def bids_cases(
    root: Path,
    labels_dir: str | Path | None,
    channels: Sequence[str] | None,
    convertible: bool = False,
    soft: bool = False,
) -> BidsCases:
    """Pair the scans of a data set with label maps: derivatives, or files in the folders of the scans.

    A label map is a file with the suffix `_dseg`, or `_seg` or `_mask` if there is no `_dseg`; one of fractions has the
    suffix `_probseg`. It belongs to the scan with the same subject, session and other entities of a scan.

    Args:
        root: folder of the data set.
        labels_dir: derivative that holds the label maps; None: any.
        channels: suffixes of the files that form an image; None: the one that most labelled scans have.
        convertible: return several label maps of a scan, one for each `label-` entity, as a list.
        soft: the label maps hold fractions.

    Raises:
        TrainingError: "dataset.ambiguous", "dataset.bad_table".
    """
    scans: dict[tuple[str, str], list[Path]] = {}
    for folder in _ANATOMY:
        for path in (path for where in sorted(root.glob(folder)) for path in image_files(where)):
            key, _, suffix = stem(path).rpartition("_")
            if not _is_label_map(path):
                scans.setdefault((key, suffix), []).append(path)
    keys = {key for key, _ in scans}
    suffixes = {suffix for _, suffix in scans}
    unpaired: list[Case] = []
    labelled: dict[str, list[Path]] = {}
    stated_suffixes: Counter[str] = Counter()
    for path in sorted(bids_labels(root, labels_dir, soft)):
        # other entities of a derivative's name (space-, desc-, ...) do not identify its scan
        parts = stem(path).split("_")
        stated = {part for part in parts[:-1] if part.startswith(_SCAN_ENTITIES)}
        fits = sorted(key for key in keys if stated <= set(key.split("_")))
        stated_suffixes.update(part for part in parts[:-1] if part in suffixes)
        if len(fits) > 1:
            raise TrainingError(
                "dataset.ambiguous",
                f"{path} fits scans {', '.join(fits)}; give one derivative with --labels_dir, or name files in full",
            )
        if fits:
            labelled.setdefault(fits[0], []).append(path)
        else:
            unpaired.append({"name": stem(path).rpartition("_")[0], "label": str(path)})
    if not channels:
        common = stated_suffixes or Counter(suffix for key, suffix in scans if key in labelled)
        channels = sorted(common, key=lambda suffix: (-common[suffix], -_USUAL.get(suffix, 0), suffix))[:1]
    cases: list[Case] = []
    for key in sorted(keys):
        found = [str(path) for suffix in channels for path in scans.get((key, suffix), ())]
        case: Case = {"name": key, "image": found[0] if len(channels) == 1 and found else found}
        if key in labelled:
            case["label"] = _label_of(labelled[key], channels, suffixes, convertible)
        if found and key in labelled:
            cases.append(case)
        elif found or key in labelled:
            unpaired.append({name: value for name, value in case.items() if value})
    used = [case["label"] for case in cases]
    labels = _named_in_tables(root, used) or _named_by_files(used)
    unread = count_unread(*(path for pattern in _ANATOMY for path in root.glob(pattern)))
    return BidsCases(tuple(cases), tuple(unpaired), labels, tuple(channels), unread)


def bids_labels(root: Path, labels_dir: str | Path | None = None, soft: bool = False) -> Iterator[Path]:
    """Yield the label maps of a data set; see `bids_cases`.

    The derivative that `napari-seg predict` writes is left out unless `labels_dir` names it: it holds results.
    """
    where = root / labels_dir if labels_dir else root
    patterns = [f"{folder}{inner}/*.nii*" for folder in ("", "derivatives/*/") for inner in _ANATOMY]
    found = [path for pattern in (patterns if not labels_dir else patterns[:2]) for path in where.glob(pattern)]
    if not labels_dir:
        found = [path for path in found if path.relative_to(root).parts[:2] != _RESULTS]
    for group in _FRACTIONS if soft else _LABEL_SUFFIXES:
        of_group = [path for path in found if _suffix_of(path) in group and not _NOT_STRUCTURES.search(stem(path))]
        if of_group:
            yield from of_group
            return


def _suffix_of(path: Path) -> str:
    """Return the suffix of a file, with "seg" for endings such as `_seg-manual` that are no suffix of BIDS."""
    suffix = stem(path).rpartition("_")[2]
    return "seg" if _DRAWN.fullmatch(suffix) else suffix


def _is_label_map(path: Path) -> bool:
    return any(_suffix_of(path) in group for group in (*_LABEL_SUFFIXES, *_FRACTIONS))


def _entity(path: str | Path, name: str) -> str:
    return next((part[len(name) + 1 :] for part in stem(Path(path)).split("_") if part.startswith(f"{name}-")), "")


def _label_of(found: Sequence[Path], channels: Sequence[str], suffixes: set[str], convertible: bool) -> str | list[str]:
    """Return the label map of a scan: the one that names its suffix, or one for each `label-` entity.

    Raises:
        TrainingError: "dataset.ambiguous", there are several for one structure.
    """
    own = [path for path in found if set(stem(path).split("_")) & set(channels)]
    found = own or [path for path in found if not set(stem(path).split("_")[:-1]) & suffixes] or found
    if len(found) == 1:
        return str(found[0])
    structures = [_entity(path, "label") for path in found]
    if convertible and "" not in structures and len(set(structures)) == len(structures):
        return [str(path) for path in found]
    raise TrainingError(
        "dataset.ambiguous",
        f"{found[1]} fits {found[0]} as well; give one derivative with --labels_dir, or name files in full",
    )


def _named_by_files(labels: Sequence[str | list[str]]) -> dict[str, tuple[int, ...]]:
    """Return the name of the one structure that all label maps have in their names, as `_label-lesion_mask`."""
    names = {_entity(path, "label") if isinstance(path, str) else "" for path in labels}
    return {name: (1,) for name in names} if len(names) == 1 and names != {""} else {}


def _named_in_tables(root: Path, labels: Sequence[str | list[str]]) -> dict[str, tuple[int, ...]]:
    """Return name -> value from the `*_dseg.tsv` tables (columns index and name), which must agree with each other.

    Args:
        root: folder of the data set.
        labels: label maps that are used; other tables in the data set describe other label maps.
    """
    tables_in = cache(lambda folder: list(folder.glob("*dseg.tsv")))
    tables = {
        table
        for of_case in labels
        for path in ([of_case] if isinstance(of_case, str) else of_case)
        for table in _tables_of(Path(path), root, tables_in)
    }
    names: dict[str, tuple[int, ...]] = {}
    for path in sorted(tables):
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                rows = list(csv.DictReader(stream, delimiter="\t"))
        except (UnicodeError, csv.Error) as error:
            raise TrainingError("dataset.bad_table", f"{path}: expected a table in UTF-8 ({error})") from error
        for row in rows:
            try:
                name, value = row["name"].strip(), int(row["index"])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise TrainingError(
                    "dataset.bad_table", f"{path}: expected the columns index and name, found {row}"
                ) from error
            if names.setdefault(name, (value,)) != (value,):
                raise TrainingError("dataset.bad_table", f"{path}: {name} is {value}, but {names[name][0]} elsewhere")
    return {name: values for name, values in names.items() if values != (0,)}


def _tables_of(label: Path, root: Path, tables_in: Callable[[Path], list[Path]]) -> Iterator[Path]:
    """Yield the tables of a label map: beside it or above it, but in its own derivative, and without other entities."""
    inside = label.relative_to(root).parts if label.is_relative_to(root) else label.parts[-1:]
    count = len(inside) - (2 if inside[0] == "derivatives" else 0)
    entities = set(stem(label).split("_")[:-1])
    for folder in label.parents[:count]:
        yield from (table for table in tables_in(folder) if set(table.stem.split("_")[:-1]) <= entities)
