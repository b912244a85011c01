"""The work list of a run: its cases are compared with the manifest, which then knows what is left and what is not."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from napari_seg.cohort.case import Case
from napari_seg.cohort.earlier_results import EarlierResults, earlier_results
from napari_seg.cohort.layout import files_to_write
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.naming import compared
from napari_seg.cohort.outcome import CaseResult
from napari_seg.cohort.outputs import check_folders, place_below
from napari_seg.cohort.resume import Resume, Wanted, settings_content, with_fitted_names
from napari_seg.cohort.rows import NOT_PLANNED, RENAMED, CaseRow
from napari_seg.cohort.run import Excluded, Run
from napari_seg.cohort.scan_files import place_digest
from napari_seg.cohort.used_models import UsedModel, with_present_digests
from napari_seg.errors import Cancelled, CohortError
from napari_seg.formats.atomic import atomic_write, make_output_folder

_MAX_ENDED = 2
"""Starts of a case without a result from which on it is run last: it may be what ended the earlier runs."""


@dataclass
class LeftCase:
    """A case that is left to run, and how often it was started before."""

    case: Case
    attempts: int = 0


class WorkList:
    """The cases of a run: what is left, what is done, and what is not run.

    Args:
        run: the run.
        manifest: manifest of the output folder.
        models: identity of a bundle -> model of the run.

    Attributes:
        left: number in the manifest -> case, of all that are left.
        waiting: numbers of the cases to run, in their order.
        elsewhere: numbers of the cases that other runners have.
        done: numbers of the cases that an earlier run finished.
        refused: results of the scans that are not run.
        settings: number of the settings in the manifest.
    """

    def __init__(self, run: Run, manifest: Manifest, models: Mapping[int, UsedModel]) -> None:
        self._run = run
        self._manifest = manifest
        self._models = models
        self._salt = manifest.salt
        self._keys = {compared(case.key) for case in run.cases}
        self.left: dict[int, LeftCase] = {}
        self.waiting: deque[int] = deque()
        self.elsewhere: set[int] = set()
        self.done: list[int] = []
        self.refused: list[CaseResult] = []
        self.settings = 0

    def plan(self, runner: int) -> None:
        """Compare the cases with the manifest, and add new ones.

        Files are looked at before the transaction, in which other runners wait.

        Args:
            runner: number of the runner in the manifest.

        Raises:
            CohortError: `cohort.changed`, results or runs in the folder were made otherwise.
            OutputError: a folder of the results can't be written to.
            Cancelled: the end of the run was requested.
        """
        run, manifest = self._run, self._manifest
        rows = {compared(row.name): row for row in manifest.rows()}
        models = with_present_digests(manifest.models(), {one.digest: one.bundle for one in self._models.values()})
        resume = Resume(run.output, manifest, models, run.redo, run.settings.overwrite)
        bundles = [one.bundle for one in sorted(self._models.values(), key=lambda model: model.digest)]
        settings = with_fitted_names(settings_content(run.settings), bundles)
        chosen: list[tuple[Case, CaseRow | None]] = []
        others: list[int] = []
        excluded = list(run.excluded)
        for case in run.cases:
            if run.stop.count:
                raise stopped()
            row, model = rows.get(compared(case.key)), self._models[id(case.bundle)]
            decision = resume.decide(case, row, Wanted(settings, model.bundle.name, model.digest))
            if decision == "run":
                chosen.append((case, row))
            elif decision == "other scan":
                excluded.append(of_another_scan(case, resume.refusals[case.key]))
            elif row is not None and decision == "busy":
                others.append(row.id)
                self.left[row.id] = LeftCase(case, row.attempts)
            elif row is not None and decision == "keep":
                self.done.append(row.id)
        resume.check()
        self._check_places(chosen)
        earlier = earlier_results(run.cases, run.excluded, resume.refusals, rows, models, manifest.salt)
        if run.is_joined:  # runners that share the folder may have other inputs
            earlier = EarlierResults(earlier.done)
        run.others, run.left_out, run.renamed = earlier.count_others, earlier.count_left_out, earlier.count_renamed
        remade = {compared(case.key) for case, _ in chosen}
        staying = {row.name for key, row in rows.items() if row.outputs and key not in remade}
        extra_files = {}
        if chosen or staying:
            extra_files = files_to_write(run.output, run.extra_files, staying, has_new=bool(chosen))
        # without one transaction for all, each case would wait for the disk
        with manifest.transaction():
            self._share(runner, settings)
            for known in models:
                manifest.set_digest(known)
            self._note_models(settings)
            manifest.remove_unused()
            for kept, now in resume.changes.items():
                manifest.change_case(kept, now, if_state=("done", "failed", "skipped"))
            for old, name in earlier.renamed:
                text = f"the same scan is run under the name {name}; the files of this result stay"
                now = {"state": "skipped", "code": RENAMED, "message": text}
                manifest.change_case(old.id, now, if_state=("done", "failed", "skipped"))
            for case, row in chosen:
                self._add(case, row)
            for one in excluded:
                self.refused.append(self.exclude(one, earlier.left_out.get(one.name, ())))
            if not run.is_joined:
                self._set_aside(row for key, row in rows.items() if key not in self._keys)
        for path, text in extra_files.items():
            make_output_folder((run.output / path).parent)
            atomic_write(run.output / path, text)
        if others and not run.is_joined:  # files that an earlier run could not move, and neither could this one
            for number in others:
                text = "its files can't be moved into place; close programs that have them open, and run again"
                name = self.left.pop(number).case.key
                self.refused.append(CaseResult(name, "failed", "output.not_written", f"{name}: {text}"))
        else:
            self.elsewhere.update(others)
        suspects = {row.id for _, row in chosen if row and row.state == "waiting" and row.attempts >= _MAX_ENDED}
        self.waiting = deque(sorted(self.waiting, key=suspects.__contains__))

    def exclude(self, excluded: Excluded, results: Sequence[CaseRow] = ()) -> CaseResult:
        """Add a scan that is not run, under a name that no case of the run has, and return its result.

        Args:
            excluded: the scan.
            results: its results of earlier runs, which stay on the disk and count no longer.
        """
        name, number = excluded.name, 2
        status: Literal["failed", "skipped"] = "failed" if excluded.is_failure else "skipped"
        values = {
            "source": excluded.source,
            "state": status,
            "code": excluded.code,
            "message": excluded.message,
            "ended": time.time(),
        }
        for result in results:
            now = {key: values[key] for key in ("state", "code", "message")}
            self._manifest.change_case(result.id, now, if_state=("done", "failed", "skipped"))
        if results:
            return CaseResult(name, status, excluded.code, excluded.message, excluded.source)
        while compared(name) in self._keys:
            name, number = f"{excluded.name} ({number})", number + 1
        self._keys.add(compared(name))
        row = self._manifest.row(name)
        if row is None:
            self._manifest.add_case(name, values)
        elif row.state == "waiting" and row.outputs:
            self._set_aside([row])
        elif row.state not in ("done", "running", "moving") and not row.has_result:
            self._manifest.change_case(row.id, values)
        return CaseResult(name, status, excluded.code, excluded.message, excluded.source)

    def _check_places(self, chosen: Sequence[tuple[Case, CaseRow | None]]) -> None:
        """Check that results go, and that those that they replace lie, inside of the output folder."""
        check_folders(self._run.output, (case for case, _ in chosen))
        for _, row in chosen:
            for file in () if row is None else row.outputs.values():
                place_below(self._run.output, file.path)

    def _share(self, runner: int, settings: Mapping[str, Any]) -> None:
        """Refuse to share the folder with a runner that segments otherwise.

        Raises:
            CohortError: `cohort.changed`.
        """
        digests = sorted(model.digest for model in self._models.values())
        other = self._manifest.share(runner, json.dumps([settings, digests], sort_keys=True))
        if other is not None:
            text = (
                f"process {other.pid} on {other.host} segments scans into {self._run.output} with other options, "
                "models or another version; start all runs that share a folder with the same ones"
            )
            raise CohortError("cohort.changed", text)

    def _note_models(self, settings: Mapping[str, Any]) -> None:
        for model in self._models.values():
            bundle = model.bundle
            model.number = self._manifest.add_model(bundle.name, bundle.version, bundle.kind, model.digest)
            model.scans = self._manifest.first_count(model.digest, model.scans)
        self.settings = self._manifest.add_settings(settings)
        self._manifest.set_meta("settings", json.dumps(settings))
        self._manifest.set_meta("layout", self._run.layout)

    def _add(self, case: Case, row: CaseRow | None) -> None:
        """Plan a case, and add it to the manifest if it is new.

        Args:
            case: the case.
            row: the case as it was before the transaction; the row of a scan that was left out has been removed since.
        """
        known = row
        if row is None or row.model is None:
            known = self._manifest.row(case.key)  # another runner may have added it
        if known is None:
            model = self._models[id(case.bundle)]
            values = {
                "source": case.source,
                "format": case.scan.format,
                "place": place_digest(case.scan, self._salt),
                "model": model.number,
                "state": "waiting",
            }
            number = self._manifest.add_case(case.key, values)
        else:
            number = known.id
        self.left[number] = LeftCase(case, known.attempts if known is not None else 0)
        if known is not row and known is not None and known.state in ("running", "moving", "done"):
            self.elsewhere.add(number)
        else:
            self.waiting.append(number)

    def _set_aside(self, rows: Iterable[CaseRow]) -> None:
        """Mark cases that earlier runs left waiting and that are not among the inputs any more."""
        text = "it was left by an earlier run and is not among the inputs of the last one"
        values = {"state": "skipped", "code": NOT_PLANNED, "message": text, "ended": time.time()}
        for row in rows:
            if row.state == "waiting":
                self._manifest.change_case(row.id, values, if_state=("waiting",))


def of_another_scan(case: Case, reason: str) -> Excluded:
    """Return the refusal of a scan whose name the result of another one has."""
    return Excluded(case.key, "output.exists", reason, case.source)


def stopped() -> Cancelled:
    """Return the error of a run that was ended."""
    text = "stopped before the end; finished results are kept, and the same command goes on with the rest"
    return Cancelled("run.cancelled", text)
