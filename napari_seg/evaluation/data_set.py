"""Find the reference of each result in a data set, by the scan that the result was made from.

The record beside a result names its scan, below the inputs of the run; the data set says which reference belongs to
that scan. So the names of results, which depend on the layout of the run, do not matter. A result without a record, or
of a scan that was converted for a training, belongs to the case of its name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

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
    """

    root: Path
    cases: tuple[ReferenceCase, ...]
    declared: Declared = field(default_factory=Declared)
    part: frozenset[str] | None = None

    def case_of(self, result: Path, results: Path) -> ReferenceCase | None:
        """Return the case that a result belongs to; None if there is none, or if several fit.

        Args:
            result: a label map.
            results: folder of the results, or the label map.
        """
        found = self._of_source(str((read_record(record_path(result)) or {}).get("source", "")))
        if not found:
            name = name_below(result, results).replace("/", "_")
            found = next((self._by_name[one] for one in case_names(name) if one in self._by_name), [])
        return found[0] if len(found) == 1 else None

    def _of_source(self, source: str) -> list[ReferenceCase]:
        """Return the cases with a scan whose path ends with that in a record."""
        parts = _parts(PurePosixPath(source))
        ending = self._by_file.get(parts[-1], {}) if parts else {}
        return list({case.name: case for place, case in ending.items() if place[-len(parts) :] == parts}.values())

    @cached_property
    def _by_file(self) -> Mapping[str, dict[tuple[str, ...], ReferenceCase]]:
        """Name of a file -> the path of each scan of this name and its case."""
        found: dict[str, dict[tuple[str, ...], ReferenceCase]] = defaultdict(dict)
        for case in self.cases:
            for scan in case.scans:
                found[normal(scan.name)][_parts(scan)] = case
        return found

    @cached_property
    def _by_name(self) -> Mapping[str, list[ReferenceCase]]:
        """Name of a case, of its reference or of a scan -> the cases that have it."""
        found: dict[str, list[ReferenceCase]] = defaultdict(list)
        for case in self.cases:
            names = [case.name, stem(case.reference), *map(stem, case.scans)]
            for name in dict.fromkeys([*names, *(one.removesuffix("_0000") for one in names)]):
                found[name].append(case)
        return found


def partners_in(data: References, results: Path) -> tuple[list[Partners], list[tuple[str, str]]]:
    """Return the results with their references, and the case and a message for each file without a partner.

    Args:
        data: the data set.
        results: a label map, or a folder of label maps; if it is a label map, the other cases need no result.
    """
    of_case: dict[str, list[Path]] = defaultdict(list)
    alone: list[tuple[str, str]] = []
    for path in label_maps(results):
        if case := data.case_of(path, results):
            of_case[case.name].append(path)
        else:
            text = f"{path_below(path, results)} belongs to no scan with a reference in {data.root}, or to several"
            alone.append((case_of_result(name_below(path, results)), text))
    pairs: list[Partners] = []
    for case in data.cases if data.part is None else [case for case in data.cases if case.name in data.part]:
        found = of_case.get(case.name, [])
        if len(found) == 1:
            pairs.append(Partners(case.name, found[0], case.reference, case.scans[0]))
        elif found:
            names = " and ".join(path_below(path, results) for path in found[:2])
            alone.append((case.name, f"{names} are results of one scan; expected those of one model and run"))
        elif results.is_dir():
            alone.append((case.name, f"{case.scans[0].name} has no result"))
    return pairs, alone


def _parts(path: Path | PurePosixPath) -> tuple[str, ...]:
    return tuple(map(normal, path.parts))
