"""Names of scans that an earlier run finished: they keep them, whatever other files lie next to them now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from napari_seg.cohort.case import Case
from napari_seg.cohort.naming import UniqueNames, compared
from napari_seg.cohort.rows import CaseRow
from napari_seg.cohort.scan_files import fingerprint, input_bytes, scan_sha256


def with_known_names(
    cases: Sequence[Case], done: Iterable[CaseRow], models: Mapping[int, str], layout: str, known_layout: str
) -> list[Case]:
    """Return cases, those of finished scans under the names of their results.

    The name of a scan depends on others of the same name, so that a folder that grew may give it another one. Without
    its former name the scan would be segmented again, and counted twice. A scan is recognised by the name of its file
    or folder and by its content.

    Args:
        cases: cases with the names that they have among the present files.
        done: finished cases of the manifest.
        models: number of a model in the manifest -> its name.
        layout: layout of this run; results of another one lie elsewhere on purpose.
        known_layout: layout of the run that finished the cases.
    """
    if layout != known_layout:
        return list(cases)
    by_key = {compared(row.name): row for row in done}
    kept: set[str] = set()
    strays: list[int] = []
    for number, case in enumerate(cases):
        known = by_key.get(compared(case.key))
        if known is not None and known.fingerprint == fingerprint(case.scan):
            kept.add(compared(known.name))
        else:
            strays.append(number)
    # scans are read only if they have the size of one whose result no scan of that name belongs to any more
    by_size: dict[tuple[int, str], list[CaseRow]] = {}
    for key, row in by_key.items():
        if key not in kept:
            by_size.setdefault((row.input_bytes, models.get(row.model or 0, "")), []).append(row)
    names: dict[int, str] = {}
    for number in strays:
        case = cases[number]
        same_size = by_size.get((input_bytes(case.scan), "" if case.bundle is None else case.bundle.name), [])
        found = next((row for row in same_size if _is_of(case, row)), None)
        if found is not None:
            names[number] = found.name
            same_size.remove(found)
    return _renamed(cases, names)


def _is_of(case: Case, row: CaseRow) -> bool:
    """Return whether a finished case was made from this scan, judged by its own name and the bytes of its files.

    A file that a person renamed gets a result of the new name.
    """
    if PurePosixPath(row.source).name != PurePosixPath(case.source).name:
        return False
    try:
        return bool(row.input_sha256) and scan_sha256(case.scan.files) == row.input_sha256
    except OSError:
        return False


def _renamed(cases: Sequence[Case], names: Mapping[int, str]) -> list[Case]:
    """Return cases with other names; a case whose name one of them takes gets a number.

    Args:
        cases: the cases.
        names: number of a case -> its name with its folder.
    """
    taken = {compared(name) for name in names.values()}
    unique = UniqueNames()
    for number, case in enumerate(cases):
        if number in names or compared(case.key) not in taken:
            place = PurePosixPath(names.get(number, case.key))
            unique.take(place.name, _folder(place))
    answer = []
    for number, case in enumerate(cases):
        if number in names:
            place = PurePosixPath(names[number])
            case = replace(case, name=place.name, folder=place.parent)
        elif compared(case.key) in taken:
            case = replace(case, name=unique.take(case.name, _folder(PurePosixPath(case.key))))
        answer.append(case)
    return answer


def _folder(place: PurePosixPath) -> str:
    return "" if place.parent == PurePosixPath() else str(place.parent)
