"""Names of scans of an earlier run: they keep them, whatever other files lie next to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.naming import UniqueNames, compared
from napari_seg.cohort.rows import CaseRow, ModelRow
from napari_seg.cohort.scan_files import is_same, place_digest
from napari_seg.formats.dicom.private_words import without_uids


def with_known_names(
    cases: Sequence[Case],
    earlier: Iterable[CaseRow],
    models: Mapping[int, ModelRow],
    salt: str,
    digest: Callable[[Bundle], str],
) -> list[Case]:
    """Return cases, those of scans of an earlier run under the names that they had.

    The name of a scan depends on others of the same name, so that a folder that grew may give it another one. Without
    its former name the scan would be segmented again. A scan in the same place and with the same content keeps its
    name, and so does one with the same path below the inputs, whose data set was moved as a whole or is seen under
    another mount; any other gets a new one, since who renames a folder wants another name. The content of a scan
    without a result does not matter, since a failed one may have been repaired; in another place, it keeps a name only
    if that differs from the new one by UIDs alone, which earlier versions left in names. A name that a list gives
    stays.

    Args:
        cases: cases with the names that they have among the present files.
        earlier: cases of the manifest that have a result, or are unfinished.
        models: number in the manifest -> model.
        salt: salt of the manifest.
        digest: returns the digest of a model; called only if a title does not tell which of several it is.
    """
    of_place: dict[str, list[CaseRow]] = {}
    of_source: dict[str, list[CaseRow]] = {}
    for row in earlier:
        of_place.setdefault(row.place, []).append(row)
        of_source.setdefault(without_uids(row.source), []).append(row)
    places = [place_digest(case.scan, salt) for case in cases]
    present = {*places} - {""}
    bundles = {id(case.bundle): case.bundle for case in cases if case.bundle is not None}.values()
    taken = {compared(case.key) for case in cases if case.is_named}
    names: dict[int, str] = {}
    known: set[int] = set()

    def keep(number: int, rows: Iterable[CaseRow]) -> None:
        """Give a case the name of the first of some rows that is its own: first its present name, then results."""
        case = cases[number]
        for row in sorted(rows, key=lambda row: (compared(row.name) != compared(case.key), row.is_unfinished)):
            if (
                compared(row.name) not in taken
                and (row.is_unfinished or is_same(case.scan, row.fingerprint, row.input_sha256))
                and _is_of_model(models.get(row.model or 0), case.bundle, bundles, digest)
            ):
                known.add(number)
                taken.add(compared(row.name))
                if compared(row.name) != compared(case.key):
                    names[number] = row.name
                return

    free = [number for number, case in enumerate(cases) if not case.is_named]
    for number in free:
        keep(number, of_place.get(places[number], ()) if places[number] else ())
    for number in free:
        if number not in known:  # results of scans that are in their places are not those of others
            keep(number, _of_source(cases[number], of_source, present))
    return _renamed(cases, names)


def _of_source(case: Case, of_source: Mapping[str, Sequence[CaseRow]], present: Collection[str]) -> list[CaseRow]:
    """Return rows with the path of a case below the inputs; unfinished ones only with its name, UIDs left aside.

    Args:
        case: the case.
        of_source: path below the inputs, without UIDs -> rows.
        present: digests of the places of all cases.
    """
    name = compared(without_uids(case.key))
    return [
        row
        for row in of_source.get(without_uids(case.source), ())
        if row.place not in present and (not row.is_unfinished or compared(without_uids(row.name)) == name)
    ]


def _is_of_model(
    model: ModelRow | None, bundle: Bundle | None, bundles: Iterable[Bundle], digest: Callable[[Bundle], str]
) -> bool:
    """Return whether a model of the manifest is a bundle, or is what the bundle was before it changed.

    Args:
        model: the model.
        bundle: the bundle.
        bundles: all bundles of the run.
        digest: returns the digest of a bundle.
    """
    if model is None or bundle is None or model.name != bundle.name:
        return False
    alike = [one for one in bundles if one.name == model.name]
    return len(alike) == 1 or model.digest == digest(bundle) or model.digest not in map(digest, alike)


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
