"""Names of scans that an earlier run finished: they keep them, whatever other files lie next to them now."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import PurePath, PurePosixPath

from napari_seg.cohort.case import Case
from napari_seg.cohort.naming import UniqueNames, compared, is_spelled_by
from napari_seg.cohort.rows import CaseRow
from napari_seg.cohort.scan_files import fingerprint, input_bytes, scan_sha256

_NUMBER = re.compile(r"_?\d+$")
"""Number behind a name that occurs more than once."""


def with_known_names(
    cases: Sequence[Case], done: Iterable[CaseRow], models: Mapping[int, str], layout: str, known_layout: str
) -> list[Case]:
    """Return cases, those of finished scans under the names of their results.

    The name of a scan depends on others of the same name, so that a folder that grew may give it another one. Without
    its former name the scan would be segmented again, and counted twice. A scan is recognised by the name of its file
    or folder and by its content. It keeps the name only if this fits the place where the scan lies now: who renamed a
    folder or corrected a list wants the name of a patient to change.

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
    present = {compared(case.key) for case in cases}
    kept = {compared(case.key) for case in cases if case.is_named}
    strays: list[int] = []
    for number, case in enumerate(cases):
        known = by_key.get(compared(case.key))
        if known is not None and known.fingerprint == fingerprint(case.scan):
            kept.add(compared(known.name))
        elif not case.is_named:
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
        found = next((row for row in same_size if _fits(case, row.name, present) and _is_of(case, row)), None)
        if found is not None:
            names[number] = found.name
            same_size.remove(found)
    return _renamed(cases, names)


def _fits(case: Case, known: str, present: Collection[str]) -> bool:
    """Return whether a known name fits the place where a scan lies now.

    But for a number and the name of the model, one of both names is the end of the other, and the folders that only the
    known one has lead to the scan. A name that now belongs to another file is taken only if no folder differs.

    Args:
        case: the case with its present name.
        known: the known name.
        present: present names of all cases, as they are compared.
    """
    for one, other in product(_forms(known, case), _forms(case.key, case)):
        if one == other:
            return True
        if compared(known) in present:
            continue
        if other.endswith((f"_{one}", f"/{one}")):
            return True
        if one.endswith((f"_{other}", f"/{other}")) and is_spelled_by(one[: -len(other) - 1], PurePath(case.place)):
            return True
    return False


def _forms(name: str, case: Case) -> set[str]:
    """Return a name as it is compared, also without a number and without the name of the model at its end."""
    forms = {compared(name)}
    forms |= {one.removesuffix(f"_{compared(case.model_name)}") for one in forms if case.model_name}
    return forms | {_NUMBER.sub("", one) for one in forms}


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
