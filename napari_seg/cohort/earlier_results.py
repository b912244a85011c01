"""Results of earlier runs in an output folder that are not those of the cases of a run: which of them still count."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from napari_seg.cohort.case import Case
from napari_seg.cohort.naming import compared
from napari_seg.cohort.rows import RENAMED, CaseRow, ModelRow
from napari_seg.cohort.run import Excluded
from napari_seg.cohort.scan_files import fingerprint, input_bytes, is_same, place_digest


@dataclass(frozen=True)
class EarlierResults:
    """Results of earlier runs that are not those of the cases of a run.

    Attributes:
        done: numbers of those that are finished.
        left_out: name of a scan that the run leaves out or refuses -> its results, which count no longer.
        renamed: results whose scans the run has under other names, and these names; they count no longer.
    """

    done: frozenset[int] = frozenset()
    left_out: Mapping[str, Sequence[CaseRow]] = field(default_factory=dict)
    renamed: Sequence[tuple[CaseRow, str]] = ()

    @property
    def count_left_out(self) -> int:
        """Number of results of scans that the run leaves out or refuses."""
        return len(self._left_out)

    @property
    def count_renamed(self) -> int:
        """Number of results whose scans the run only has under other names."""
        return len(self._renamed - self._left_out)

    @property
    def count_others(self) -> int:
        """Number of results that still count: their scans are not among those of the run."""
        return len(self.done - self._left_out - self._renamed)

    @property
    def _left_out(self) -> set[int]:
        return {row.id for rows in self.left_out.values() for row in rows}

    @property
    def _renamed(self) -> set[int]:
        return {row.id for row, _ in self.renamed}


def earlier_results(
    cases: Sequence[Case],
    excluded: Iterable[Excluded],
    refused: Collection[str],
    rows: Mapping[str, CaseRow],
    models: Iterable[ModelRow],
    salt: str,
) -> EarlierResults:
    """Return the results of earlier runs that are not those of the cases of a run.

    Args:
        cases: cases of the run.
        excluded: scans that it leaves out.
        refused: keys of cases that are not run, because the result of that name belongs to another scan.
        rows: name as it is compared -> case of the manifest.
        models: models of the manifest.
        salt: salt of the manifest.
    """
    keys = {compared(case.key) for case in cases}
    places = {place_digest(case.scan, salt) for case in cases} - {""}
    outdated = {}
    for key in refused:
        row = rows.get(compared(key))
        if row is not None and row.place in places:  # the scan of that place has changed, or its name
            outdated[key] = [row]
    others = {key: row for key, row in rows.items() if key not in keys}
    return EarlierResults(
        frozenset(row.id for row in others.values() if row.state == "done"),
        {**_left_out(excluded, {key: row for key, row in others.items() if row.has_result}, salt), **outdated},
        _renamed(cases, rows, others.values(), {model.id: model.name for model in models}),
    )


def _left_out(excluded: Iterable[Excluded], results: Mapping[str, CaseRow], salt: str) -> dict[str, list[CaseRow]]:
    """Return name of a scan that a run leaves out -> its results of earlier runs.

    Args:
        excluded: scans that the run leaves out.
        results: name as it is compared -> result of a scan that is no case of the run.
        salt: salt of the manifest.
    """
    alike: dict[str, list[CaseRow]] = {}
    for row in results.values():
        for digest in {row.place, row.fingerprint} - {""}:
            alike.setdefault(digest, []).append(row)
    found: dict[str, list[CaseRow]] = {}
    for one in excluded if results else ():
        place, now = ("", "") if one.scan is None else (place_digest(one.scan, salt), fingerprint(one.scan))
        found[one.name] = alike.get(place) or alike.get(now) or []
        named = results.get(compared(one.name))
        if found[one.name] or named is None or named.source != one.source:
            continue
        if one.scan is None or is_same(one.scan, named.fingerprint, named.input_sha256):
            found[one.name] = [named]
    return found


def _renamed(
    cases: Iterable[Case], rows: Mapping[str, CaseRow], others: Iterable[CaseRow], titles: Mapping[int, str]
) -> list[tuple[CaseRow, str]]:
    """Return earlier results of scans that have a new name, or their former one again, with these names.

    A copy of a scan that had its own result before is none.

    Args:
        cases: cases of the run.
        rows: name as it is compared -> case of the manifest.
        others: those of the manifest that are no cases of the run.
        titles: number of a model in the manifest -> its name.
    """
    results: dict[tuple[str, str], list[CaseRow]] = {}
    for row in others:
        if row.has_result and row.fingerprint:
            results.setdefault((row.fingerprint, titles.get(row.model or 0, "")), []).append(row)
    sizes = {row.input_bytes for some in results.values() for row in some}
    found: list[tuple[CaseRow, str]] = []
    for case in cases if results else ():
        known = rows.get(compared(case.key))
        if known is not None and known.code != RENAMED:
            continue
        if input_bytes(case.scan) in sizes:
            assert case.bundle is not None
            found += [(row, case.key) for row in results.get((fingerprint(case.scan), case.bundle.name), ())]
    return found
