"""Find the reference of each result in a data set.

The record next to a result holds the name and the digest of the scan that it was made from, and the data set says which
reference belongs to that scan. So the names of results, which depend on the layout of the run, do not matter, and no
other scan of the same name takes its place. A result without a record has the name of its reference or scan.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from napari_seg.errors import InputError
from napari_seg.evaluation.case_files import (
    case_names,
    case_of_result,
    label_maps,
    name_below,
    normal,
    path_below,
    stem,
)
from napari_seg.evaluation.declared import Declared
from napari_seg.evaluation.partners import Partners
from napari_seg.formats.origin import sha256_of_file
from napari_seg.formats.record import read_record, record_path

LISTS = (".csv", ".tsv", ".json")
"""Endings of lists of cases."""


class ReferenceCase(NamedTuple):
    """A case of a data set.

    Attributes:
        name: its name in the data set, in the form of `normal`.
        reference: path of its label map.
        scans: paths of its image, one for each channel that has its own file.
    """

    name: str
    reference: Path
    scans: tuple[Path, ...]


@dataclass(frozen=True)
class References:
    """References of a data set that training reads.

    Attributes:
        root: folder of the data set, or the list of its cases.
        cases: all of its cases.
        declared: what it says about the values of its references; `labelled` has the names of the cases.
        part: names of the cases to compare; None: all.
        are_converted: whether the scans are copies that a training converted, of which records do not know.
    """

    root: Path
    cases: tuple[ReferenceCase, ...]
    declared: Declared = field(default_factory=Declared)
    part: frozenset[str] | None = None
    are_converted: bool = False

    @property
    def compared(self) -> list[ReferenceCase]:
        """The cases of the part."""
        return [case for case in self.cases if self.part is None or case.name in self.part]

    def of_scan(self, source: str, channels: Collection[str], sha256: str) -> list[ReferenceCase]:
        """Return the cases with the scan of a record; several if it is listed several times.

        Args:
            source: path of the scan, or of its first channel, below the inputs of the run.
            channels: names of the files of its channels, without endings; empty for a single file.
            sha256: digest of the file. "", and with channels: the whole path counts, in place of name and content.
        """
        of_file = _place(PurePosixPath(source))
        places = [of_file, *((*of_file[:-1], normal(name)) for name in channels)]
        candidates = [(place, *one) for place in places for one in self._by_stem.get(place[-1], [])]
        near = [(scan, case) for place, scan, case in candidates if _place(scan)[-len(place) :] == place]
        if channels or not sha256:
            found = near
        else:
            others = ((scan, case) for _, scan, case in candidates)
            found = [one for one in near if _sha256_of(one[0]) == sha256] or [
                one for one in others if _sha256_of(one[0]) == sha256
            ]
        return list({id(case): case for _, case in found}.values())

    def of_name(self, name: str) -> list[ReferenceCase]:
        """Return the cases with a reference or a scan of a name.

        Args:
            name: path of a label map below its folder, see `name_below`. References and scans have the same path below
                the data set or their common folder, or it is joined by "_" on one of the two sides.
        """
        for one in case_names(name):
            joined = one.replace("/", "_")
            found = self._by_name.get(one) or (self._by_name if "/" in one else self._by_joined_name).get(joined, {})
            if found:
                return [*found.values()]
        return []

    @cached_property
    def _by_stem(self) -> Mapping[str, list[tuple[Path, ReferenceCase]]]:
        """Name of a file without ending -> the scans of this name, with their cases."""
        found: dict[str, list[tuple[Path, ReferenceCase]]] = defaultdict(list)
        for case in self.cases:
            for scan in case.scans:
                found[stem(scan)].append((scan, case))
        return found

    @cached_property
    def _by_name(self) -> Mapping[str, dict[int, ReferenceCase]]:
        """Path of a reference or a scan, as for `of_name` -> number and case of those that have it."""
        found: dict[str, dict[int, ReferenceCase]] = defaultdict(dict)
        for of_cases in ([(case.reference,) for case in self.cases], [case.scans for case in self.cases]):
            common = Path(os.path.commonpath([path.parent for paths in of_cases for path in paths]))
            for number, (case, paths) in enumerate(zip(self.cases, of_cases, strict=True)):
                for path in paths:
                    for folder in {common, self.root.resolve()}:
                        if path.is_relative_to(folder):
                            found[name_below(path, folder)][number] = case
        return found

    @cached_property
    def _by_joined_name(self) -> Mapping[str, dict[int, ReferenceCase]]:
        """The same of the paths joined by "_"."""
        found: dict[str, dict[int, ReferenceCase]] = defaultdict(dict)
        for name, cases in self._by_name.items():
            found[name.replace("/", "_")].update(cases)
        return found


def partners_in(data: References, results: Path) -> tuple[list[Partners], list[tuple[str, str]]]:
    """Return the results with their references, and the case and a message for each file without a partner.

    Args:
        data: the data set.
        results: a label map, or a folder of label maps; if it is a label map, the other cases need no result.
    """
    of_case: dict[str, list[tuple[Path, ReferenceCase]]] = defaultdict(list)
    alone: list[tuple[str, str]] = []
    told: set[str] = set()
    top = dict.fromkeys(label_maps(results))
    for path in [*top, *(path for path in label_maps(results, with_folders=True) if path not in top)]:
        record = {} if data.are_converted else read_record(record_path(path)) or {}
        source, sha256 = (str(record.get(key) or "") for key in ("source", "input_sha256"))
        channels = record["channels"].values() if isinstance(record.get("channels"), dict) else ()
        shown = path_below(path, results)
        if source:
            cases = data.of_scan(source, [*map(str, channels)], sha256)
            what = "name and content" if sha256 and not channels else "path"
            text = f"{shown} was made from {source}; no scan of {data.root} with this {what} has a reference"
        elif path in top:
            cases = data.of_name(name_below(path, results))
            text = f"{shown} has no record of its scan, and no reference or scan of {data.root} has this name"
        else:
            continue  # masks of structures, for example
        if len(cases) == 1:
            of_case[cases[0].name].append((path, cases[0]))
        elif cases:
            files = " and ".join(str(case.reference) for case in cases[:2])
            told |= {case.name for case in cases}
            alone.append((cases[0].name, f"{shown} has several references, such as {files}; expected one"))
        else:
            alone.append((case_of_result(name_below(path, results)), text))
    pairs: list[Partners] = []
    for case in data.compared:
        if case.name in told:
            continue
        found = of_case.get(case.name, [])
        found = [one for one in found if one[0] in top] or found  # below may lie an earlier run
        if len(found) == 1:
            ((path, own),) = found
            pairs.append(Partners(case.name, path, own.reference, own.scans[0]))
        elif found:
            names = " and ".join(path_below(path, results) for path, _ in found[:2])
            alone.append((case.name, f"{names} are results of one case; expected one of them; move the other away"))
        elif results.is_dir():
            alone.append((case.name, f"{case.scans[0].name} has no result"))
        told.add(case.name)
    return pairs, alone


@cache
def _sha256_of(path: Path) -> str:
    """Return the digest of a file; "" if it can't be read."""
    with suppress(InputError):
        return sha256_of_file(path)
    return ""


def _place(path: Path | PurePosixPath) -> tuple[str, ...]:
    """Return the folders of a file and its name without ending."""
    return (*map(normal, path.parts[:-1]), stem(Path(path)))
