"""Find the reference of each result in a data set.

The record next to a result holds the name and the digest of the scan that it was made from, and the data set says which
reference belongs to that scan. So the names of results, which depend on the layout of the run, do not matter, and no
other scan of the same name takes its place. A result without a record has the name of its reference or scan.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from napari_seg.evaluation.case_files import case_names, case_of_result, label_maps, name_below, normal, path_below
from napari_seg.evaluation.declared import Declared
from napari_seg.evaluation.partners import Partners
from napari_seg.formats.record import read_record, record_path


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

    def of_scan(self, source: str, sha256: str) -> list[ReferenceCase]:
        """Return the cases with the scan of a record; several if it is listed several times.

        Args:
            source: path of the scan, below the inputs of the run.
            sha256: digest of its files; "" if the record has none, so that the whole path counts.
        """
        place = _parts(PurePosixPath(source))
        found = self._by_file.get("".join(place[-1:]), [])
        if sha256:
            found = [one for one in found if sha256 in (_sha256_of((one[0],)), _sha256_of(one[1].scans))]
        at_place = [one for one in found if _parts(one[0])[-len(place) :] == place]
        return list({id(case): case for _, case in at_place or (found if sha256 else [])}.values())

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
    def _by_file(self) -> Mapping[str, list[tuple[Path, ReferenceCase]]]:
        """Name of a file -> the scans of this name, with their cases."""
        found: dict[str, list[tuple[Path, ReferenceCase]]] = defaultdict(list)
        for case in self.cases:
            for scan in case.scans:
                found[normal(scan.name)].append((scan, case))
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
    for path in label_maps(results, with_folders=True):
        record = {} if data.are_converted else read_record(record_path(path)) or {}
        source, sha256 = str(record.get("source", "")), str(record.get("input_sha256", ""))
        cases = data.of_scan(source, sha256) if source else data.of_name(name_below(path, results))
        if len(cases) == 1:
            of_case[cases[0].name].append((path, cases[0]))
            continue
        shown = path_below(path, results)
        if cases:
            files = " and ".join(str(case.reference) for case in cases[:2])
            told |= {case.name for case in cases}
            alone.append((cases[0].name, f"{shown} has several references, such as {files}; expected one"))
        elif source:
            what = "name and content" if sha256 else "path"
            text = f"{shown} was made from {source}; no scan of {data.root} with this {what} has a reference"
            alone.append((case_of_result(name_below(path, results)), text))
        else:
            text = f"{shown} has no record of its scan, and no reference or scan of {data.root} has this name"
            alone.append((case_of_result(name_below(path, results)), text))
    pairs: list[Partners] = []
    for case in data.cases:
        if (data.part is not None and case.name not in data.part) or case.name in told:
            continue
        found = of_case.get(case.name, [])
        if len(found) == 1:
            (path, own), *_ = found
            pairs.append(Partners(case.name, path, own.reference, own.scans[0]))
        elif found:
            names = " and ".join(path_below(path, results) for path, _ in found[:2])
            alone.append((case.name, f"{names} are results of one case; expected one of them; move the other away"))
        elif results.is_dir():
            alone.append((case.name, f"{case.scans[0].name} has no result"))
        told.add(case.name)
    return pairs, alone


@cache
def _sha256_of(files: tuple[Path, ...]) -> str:
    """Return the digest of files, one behind the other; "" if one can't be read."""
    digest = hashlib.sha256()
    try:
        for path in files:
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def _parts(path: Path | PurePosixPath) -> tuple[str, ...]:
    return tuple(map(normal, path.parts))
