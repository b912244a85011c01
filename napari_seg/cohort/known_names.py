"""Names of scans that an earlier run finished: they keep them, whatever other files lie next to them now."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import NamedTuple

from napari_seg.cohort.case import Case
from napari_seg.cohort.layout import folder_name
from napari_seg.cohort.naming import UniqueNames, compared, possible_stems, short, with_folders_above
from napari_seg.cohort.rows import CaseRow
from napari_seg.cohort.scan_files import fingerprint, input_bytes, scan_sha256

_NUMBER = re.compile(r"_\d+$")
_NUMBER_IN_BIDS = re.compile(r"\d+$")
"""Number at the end of a name that several scans of a folder would have."""


class _Look(NamedTuple):
    """What a scan and its result have in common, known without reading the scan."""

    size: int
    model: str
    file: str


def with_known_names(
    cases: Sequence[Case], done: Iterable[CaseRow], models: Mapping[int, str], layout: str, known_layout: str
) -> list[Case]:
    """Return cases, those of finished scans under the names of their results.

    The name of a scan depends on others of the same name, so that a folder that grew may give it another one. Without
    its former name the scan would be segmented again, and counted twice. A scan is recognised by the name of its file
    or folder and by its content. It keeps the name only if the folders in which it lies now can give it this name: who
    renamed a folder or corrected a list wants the name of a patient to change.

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
    # scans are read only if they look like one whose result no scan of that name belongs to any more
    endings = {f"_{compared(case.model_name)}" for case in cases if case.model_name}
    results: dict[_Look, dict[str, list[CaseRow]]] = {}
    for key, row in by_key.items():
        if key not in kept:
            look = _Look(row.input_bytes, models.get(row.model or 0, ""), PurePosixPath(row.source).name)
            for form in _forms(key, endings, layout):
                results.setdefault(look, {}).setdefault(form, []).append(row)
    names: dict[int, str] = {}
    taken: set[str] = set()
    for number in strays:
        case = cases[number]
        model = "" if case.bundle is None else case.bundle.name
        alike = results.get(_Look(input_bytes(case.scan), model, PurePosixPath(case.source).name))
        if alike is None:
            continue
        fitting = [
            row
            for name in _possible_names(case, layout)
            for row in alike.get(name, ())
            if row.name not in taken and _fits(row, name, case, endings, present)
        ]
        if fitting and (digest := _sha256(case)):
            found = next((row for row in fitting if row.input_sha256 == digest), None)
            if found is not None:
                names[number] = found.name
                taken.add(found.name)
    return _renamed(cases, names)


def _forms(key: str, endings: Collection[str], layout: str) -> set[str]:
    """Return the name of a result, also without the name of the model at its end, and without a number.

    Args:
        key: the name, as it is compared.
        endings: ends of names that are names of models.
        layout: layout of the run.
    """
    forms = _without_model(key, endings)
    number = _NUMBER_IN_BIDS if layout == "bids" else _NUMBER
    return forms | {number.sub("", form) for form in forms}


def _without_model(key: str, endings: Collection[str]) -> set[str]:
    return {key, *(key.removesuffix(ending) for ending in endings)}


def _possible_names(case: Case, layout: str) -> Iterator[str]:
    """Yield the names, as they are compared, that a scan can have where it lies, whatever other files there are.

    They have neither a number nor the name of the model, except for the present name of the case.
    """
    yield compared(case.key)
    if layout == "bids":  # there, other files change only the number
        yield _NUMBER_IN_BIDS.sub("", compared(case.key))
        return
    for stem in possible_stems(case.scan, case.levels):
        for name in with_folders_above(stem, case.levels) if layout == "flat" else ():
            yield compared(short(name))
        if layout == "mirror":
            folders = [folder_name(level) for level in case.levels]
            for number in range(len(folders) + 1):
                yield compared("/".join([*folders[number:], short(stem)]))


def _fits(row: CaseRow, name: str, case: Case, endings: Collection[str], present: Collection[str]) -> bool:
    """Return whether a scan may take the name of a result, of which it can have a form.

    A number, and a name that another file has now, are kept only by a scan that was not moved.

    Args:
        row: the result.
        name: a form of its name that the scan can have.
        case: the case with its present name.
        endings: ends of names that are names of models.
        present: present names of all cases, as they are compared.
    """
    key = compared(row.name)
    if key != compared(case.key) and key in present:
        return row.source == case.source
    if name in _without_model(key, endings):
        return True
    one, other = f"/{row.source}", f"/{case.source}"
    return one.endswith(other) or other.endswith(one)


def _sha256(case: Case) -> str:
    """Return the digest of the files of a scan; "" if they can't be read."""
    try:
        return scan_sha256(case.scan.files)
    except OSError:
        return ""


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
