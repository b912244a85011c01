"""Run cases: claim them, hand them to workers, commit their results, and note everything in the manifest."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from napari_seg.cohort.case import Case
from napari_seg.cohort.layout import files_to_write
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.naming import compared
from napari_seg.cohort.outcome import CaseResult, Outcome
from napari_seg.cohort.outputs import (
    Unfinished,
    check_folders,
    check_not_taken,
    commit,
    old_preview,
    place_below,
)
from napari_seg.cohort.resume import Resume, Wanted, other_scan, settings_content
from napari_seg.cohort.rows import NOT_PLANNED, RENAMED, CaseRow, Claim
from napari_seg.cohort.run import Excluded, GuardedView, Run
from napari_seg.cohort.runners import Runner
from napari_seg.cohort.scan_files import fingerprint, input_bytes, is_same, place_digest
from napari_seg.cohort.used_models import UsedModel, used_models, with_present_digests
from napari_seg.cohort.workers import Failed, Finished, PlanLine, Pool, Step, Work
from napari_seg.errors import Cancelled, CohortError, EnvironmentFault, NapariSegError, OutputError
from napari_seg.formats.atomic import atomic_write, make_output_folder, not_written
from napari_seg.worker import WorkerDied

CODES_OF_ALL_CASES = (
    "bundle.config",
    "bundle.foreign_expression",
    "bundle.foreign_target",
    "bundle.link",
    "bundle.metadata",
    "bundle.nnunet",
    "bundle.no_postprocessing",
    "bundle.postprocessing",
    "bundle.structures",
    "bundle.task",
    "bundle.too_large",
    "bundle.torchscript",
    "bundle.trust_changed",
    "bundle.unknown",
    "bundle.unreadable",
    "bundle.untrusted",
    "bundle.weights",
    "bundle.weights_unsafe",
    "environment.backend",
    "environment.device",
    "environment.precision",
    "environment.template",
    "output.disk_full",
)
"""Codes of errors that every other case would have too: they end the run."""

_POLL_SECONDS = 0.5

_JOIN_SECONDS = 5.0
"""Seconds between two looks at cases that other runners have."""

_STAGE_SECONDS = 2.0
"""Minimum time between two notes of the stage of a case, because each waits for the disk."""

_MAX_ENDED = 2
"""Starts of a case without a result from which on it is run last: it may be what ended the earlier runs."""

_STUCK_SECONDS = 60.0
"""Time for another runner to move the files of a case into place."""

_MAX_GONE = 3
"""Cases in a row whose files are gone, after which the drive of the inputs counts as gone."""

_MAX_LOST = 3
"""Workers of a cluster that a case may lose before it fails; a machine that is switched off says nothing of a case."""


def run_cases(run: Run) -> Iterator[CaseResult]:
    """Run the cases, and yield the result of each: first those of earlier runs, then others as they come.

    Cases that an earlier run finished are not run again; those that failed are. A case that fails does not stop the
    others.

    Raises:
        CohortError: `cohort.locked`, another runner works in the folder; `cohort.changed`, results there were made
            with other options or weights, or the model changed meanwhile; `cohort.taken_over`; `cohort.manifest`.
        OutputError: `output.folder`, the folder can't be created or written to, or a link stands in the place of one of
            its folders; `output.disk_full`.
        BundleError: a model is untrusted, incomplete or does not fit any scan.
        EnvironmentFault: the device or the template is missing; `cohort.inputs_gone`.
        Cancelled: `run.stop` was requested before all cases had ended.
    """
    models = used_models(run.cases)
    make_output_folder(run.output)
    with (
        Manifest.open(run.output) as manifest,
        Runner(run.output, manifest, is_joined=run.is_joined) as runner,
    ):
        manifest.add_places()
        yield from _Loop(run, manifest, runner, models).results()


@dataclass
class _Planned:
    """A case that is left to run: the case, and how often it was started before."""

    case: Case
    attempts: int = 0


@dataclass
class _Running:
    """A case that a worker has: the claim, its staging folder, what becomes true of it once it is done, and when its
    stage was noted last."""

    claim: Claim
    staging: Path
    values: dict[str, object]
    noted: float = 0.0


class _Loop:
    """The cases of a run, from the plan to the last result."""

    def __init__(self, run: Run, manifest: Manifest, runner: Runner, models: dict[int, UsedModel]) -> None:
        self._run = run
        self._manifest = manifest
        self._runner = runner
        self._models = models
        self._salt = manifest.salt
        self._settings = settings_content(run.settings)
        self._settings_number = 0
        self._view = GuardedView(run.view)
        self._planned: dict[int, _Planned] = {}
        """Number in the manifest -> case, of all that are left."""
        self._refused: list[CaseResult] = []
        self._waiting: deque[int] = deque()
        self._retries: deque[int] = deque()
        self._retried: set[int] = set()
        self._killed: set[int] = set()
        self._keys: set[str] = set()
        self._moving_since: dict[int, float] = {}
        self._lost: Counter[int] = Counter()
        self._running: dict[int, _Running] = {}
        self._elsewhere: set[int] = set()
        """Cases that other runners have."""
        self._looked = time.monotonic()
        self._gone = 0

    def results(self) -> Iterator[CaseResult]:
        """Yield the result of each case; see `run_cases`."""
        earlier = self._plan()
        left = len(self._planned)
        self._view.on_start(left + len(earlier) + len(self._refused), len(earlier))
        for result in self._refused:
            yield self._shown(result)
        for number in earlier:
            row = self._manifest.case(number)
            if row.state == "done":  # unless another runner makes it again
                yield self._shown(self._result_of(row, is_earlier=True))
        if not self._planned:
            return
        waiting = [self._planned[number].case for number in self._waiting]
        pool = self._run.make_pool(waiting) if waiting else None
        is_orderly = False
        try:
            yield from self._run_all(pool)
            is_orderly = True
        finally:
            if pool is not None:
                pool.close(now=not is_orderly)

    # before the run

    def _plan(self) -> list[int]:
        """Compare the cases with the manifest, add new ones, and return the numbers of those that are done already.

        Files are looked at before the transaction, in which other runners wait.
        """
        rows = {compared(row.name): row for row in self._manifest.rows()}
        of_digests = {model.digest: model.bundle for model in self._models.values()}
        models = with_present_digests(self._manifest.models(), of_digests)
        resume = Resume(self._run.output, self._manifest, models, self._run.redo, self._run.settings.overwrite)
        earlier: list[int] = []
        chosen: list[tuple[Case, CaseRow | None]] = []
        others: list[int] = []
        suspects: set[int] = set()
        outdated: dict[str, list[CaseRow]] = {}
        excluded = list(self._run.excluded)
        places = {place_digest(case.scan, self._salt) for case in self._run.cases} - {""}
        for case in self._run.cases:
            if self._run.stop.count:
                raise _stopped()
            row, model = rows.get(compared(case.key)), self._models[id(case.bundle)]
            decision = resume.decide(case, row, Wanted(self._settings, model.bundle.name, model.digest))
            if decision == "run":
                chosen.append((case, row))
            elif decision == "other scan":
                excluded.append(_of_another_scan(case, resume.refusals[case.key]))
                if row is not None and row.place in places:  # the scan of that place has changed, or its name
                    outdated[case.key] = [row]
            elif row is not None and decision == "busy":
                others.append(row.id)
                self._planned[row.id] = _Planned(case, row.attempts)
            elif row is not None and decision == "keep":
                earlier.append(row.id)
        resume.check()
        check_folders(self._run.output, (case for case, _ in chosen))
        for _, row in chosen:
            for file in () if row is None else row.outputs.values():
                place_below(self._run.output, file.path)
        self._keys = {compared(case.key) for case in self._run.cases}
        left_out = {} if self._run.is_joined else {**self._left_out(rows), **outdated}
        renamed = [] if self._run.is_joined else self._under_other_names(rows)
        counted = {row.id for key, row in rows.items() if row.state == "done" and key not in self._keys}
        no_longer = {row.id for some in left_out.values() for row in some} | {row.id for row, _ in renamed}
        self._run.others, self._run.left_out = len(counted - no_longer), len(no_longer)
        remade = {compared(case.key) for case, _ in chosen}
        staying = {row.name for key, row in rows.items() if row.outputs and key not in remade}
        extra_files = files_to_write(self._run.output, self._run.extra_files, staying)
        digests = sorted(model.digest for model in self._models.values())
        wanted = json.dumps([self._settings, digests], sort_keys=True)
        # without one transaction for all, each case would wait for the disk
        with self._manifest.transaction():
            if (other := self._manifest.share(self._runner.id, wanted)) is not None:
                text = (
                    f"process {other.pid} on {other.host} segments scans into {self._run.output} with other options, "
                    "models or another version; start all runs that share a folder with the same ones"
                )
                raise CohortError("cohort.changed", text)
            for known in models:
                self._manifest.set_digest(known)
            for model in self._models.values():
                bundle = model.bundle
                model.number = self._manifest.add_model(bundle.name, bundle.version, bundle.kind, model.digest)
                model.scans = self._manifest.first_count(model.digest, model.scans)
            self._settings_number = self._manifest.add_settings(self._settings)
            self._manifest.set_meta("settings", json.dumps(self._settings))
            self._manifest.set_meta("layout", self._run.layout)
            self._manifest.remove_unused()
            for kept, now in resume.changes.items():
                self._manifest.change_case(kept, now, if_state=("done", "failed", "skipped"))
            for old, name in renamed:
                text = f"the same scan is run under the name {name}; the files of this result stay"
                now = {"state": "skipped", "code": RENAMED, "message": text}
                self._manifest.change_case(old.id, now, if_state=("done", "failed", "skipped"))
            for case, row in chosen:
                self._add(case, row)
                if row is not None and row.state == "waiting" and row.attempts >= _MAX_ENDED:
                    suspects.add(row.id)
            for one in excluded:
                self._refused.append(self._add_excluded(one, left_out.get(one.name, ())))
            if not self._run.is_joined:  # runners that share the folder may have other inputs
                self._set_aside(row for key, row in rows.items() if key not in self._keys)
        for path, text in extra_files.items():
            make_output_folder((self._run.output / path).parent)
            atomic_write(self._run.output / path, text)
        if others and not self._run.is_joined:  # files that an earlier run could not move, and neither could this one
            for number in others:
                text = "its files can't be moved into place; close programs that have them open, and run again"
                name = self._planned.pop(number).case.key
                self._refused.append(CaseResult(name, "failed", "output.not_written", f"{name}: {text}"))
        else:
            self._elsewhere.update(others)
        self._waiting = deque(sorted(self._waiting, key=suspects.__contains__))
        return earlier

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
            values = {"source": case.source, "format": case.scan.format, "model": self._model_of(case).number}
            number = self._manifest.add_case(case.key, values | {"state": "waiting"})
        else:
            number = known.id
        self._planned[number] = _Planned(case, known.attempts if known is not None else 0)
        if known is not row and known is not None and known.state in ("running", "moving", "done"):
            self._elsewhere.add(number)
        else:
            self._waiting.append(number)

    def _left_out(self, rows: Mapping[str, CaseRow]) -> dict[str, list[CaseRow]]:
        """Return name of a scan that this run leaves out -> its results of earlier runs.

        Args:
            rows: name as it is compared -> case of the manifest.
        """
        results = {key: row for key, row in rows.items() if row.has_result and key not in self._keys}
        alike: dict[str, list[CaseRow]] = {}
        for row in results.values():
            for digest in {row.place, row.fingerprint} - {""}:
                alike.setdefault(digest, []).append(row)
        found: dict[str, list[CaseRow]] = {}
        for one in self._run.excluded if results else ():
            place, now = ("", "") if one.scan is None else (place_digest(one.scan, self._salt), fingerprint(one.scan))
            found[one.name] = alike.get(place) or alike.get(now) or []
            named = results.get(compared(one.name))
            if found[one.name] or named is None or named.source != one.source:
                continue
            if one.scan is None or is_same(one.scan, named.fingerprint, named.input_sha256):
                found[one.name] = [named]
        return found

    def _under_other_names(self, rows: Mapping[str, CaseRow]) -> list[tuple[CaseRow, str]]:
        """Return earlier results of scans that have a new name, or their former one again, with these names.

        A copy of a scan that had its own result before is none.

        Args:
            rows: name as it is compared -> case of the manifest.
        """
        titles = {model.id: model.name for model in self._manifest.models()}
        results: dict[tuple[str, str], list[CaseRow]] = {}
        for key, row in rows.items():
            if row.has_result and row.fingerprint and key not in self._keys:
                results.setdefault((row.fingerprint, titles.get(row.model or 0, "")), []).append(row)
        sizes = {row.input_bytes for some in results.values() for row in some}
        found: list[tuple[CaseRow, str]] = []
        for case in self._run.cases if results else ():
            known = rows.get(compared(case.key))
            if known is not None and known.code != RENAMED:
                continue
            if input_bytes(case.scan) in sizes:
                of_scan = results.get((fingerprint(case.scan), self._model_of(case).bundle.name), ())
                found += [(row, case.key) for row in of_scan]
        return found

    def _add_excluded(self, excluded: Excluded, results: Sequence[CaseRow] = ()) -> CaseResult:
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

    def _set_aside(self, rows: Iterable[CaseRow]) -> None:
        """Mark cases that earlier runs left waiting and that are not among the inputs any more."""
        text = "it was left by an earlier run and is not among the inputs of the last one"
        values = {"state": "skipped", "code": NOT_PLANNED, "message": text, "ended": time.time()}
        for row in rows:
            if row.state == "waiting":
                self._manifest.change_case(row.id, values, if_state=("waiting",))

    # the run

    def _run_all(self, pool: Pool | None) -> Iterator[CaseResult]:
        """Run the waiting cases, then once more, one at a time, those whose worker died; yield results.

        Raises:
            Cancelled: the end was requested before all cases had ended.
        """
        while self._planned:
            stop = self._run.stop.count
            if stop > 1 or (stop and not self._running):
                raise _stopped()
            if self._elsewhere and time.monotonic() - self._looked > _JOIN_SECONDS * (not stop):
                for result in self._look_at_others():
                    yield self._shown(result)
            if pool is None:
                if self._waiting:  # another runner left them
                    pool = self._run.make_pool([self._planned[number].case for number in self._waiting])
                else:
                    time.sleep(_POLL_SECONDS)
                    continue
            if stop:
                self._take_back(pool)
            else:
                for result in self._fill(pool):
                    yield self._shown(result)
            event = pool.next_event(_POLL_SECONDS) if self._running else None
            if event is not None and event.number in self._running:
                ended = self._handle(event)
                if ended is not None:
                    yield self._shown(ended)
            elif not self._running and self._elsewhere:
                time.sleep(_POLL_SECONDS)

    def _fill(self, pool: Pool) -> Iterator[CaseResult]:
        """Claim cases until all workers are busy and one case waits for the next free one; yield what fails at once."""
        while self._waiting and len(self._running) <= pool.size:
            yield from self._submit(pool, self._waiting.popleft(), is_alone=False)
        if self._retries and not self._running and not self._waiting:
            yield from self._submit(pool, self._retries.popleft(), is_alone=True)

    def _take_back(self, pool: Pool) -> None:
        """Leave cases that no worker has begun to the next run."""
        for number in pool.take_back():
            running = self._running.pop(number)
            shutil.rmtree(running.staging, ignore_errors=True)
            self._manifest.set_back(running.claim)
            self._waiting.append(number)

    def _submit(self, pool: Pool, number: int, *, is_alone: bool) -> Iterator[CaseResult]:
        planned = self._planned[number]
        case, model = planned.case, self._model_of(planned.case)
        model.check()
        claim = self._manifest.claim(number, self._runner.id, planned.attempts)
        if claim is None:
            self._elsewhere.add(number)
            return
        values = {
            "source": case.source,
            "format": case.scan.format,
            "model": model.number,
            "settings": self._settings_number,
            "place": place_digest(case.scan, self._salt),
            "fingerprint": fingerprint(case.scan),
            "input_bytes": input_bytes(case.scan),
        }
        planned.attempts = claim.attempt
        running = _Running(claim, self._runner.staging(number, claim.attempt), values)
        self._running[number] = running
        fault = model.fault or self._misplaced(case, claim)
        if fault is None and not self._run.settings.overwrite:
            fault = self._taken(case, claim)
        if fault is None:
            settings, was_killed = self._run.settings.for_scans(model.scans), number in self._killed
            pool.submit(Work(number, case, model.bundle, model.digest, running.staging, settings, is_alone, was_killed))
        elif (result := self._handle(Failed(number, fault))) is not None:
            yield result

    def _misplaced(self, case: Case, claim: Claim) -> NapariSegError | None:
        """Return the error for a place of the results outside of the output folder; None without any."""
        try:
            check_folders(self._run.output, [case])
            for file in claim.before.values():
                place_below(self._run.output, file.path)
        except (CohortError, OutputError) as error:
            return error
        return None

    def _taken(self, case: Case, claim: Claim) -> NapariSegError | None:
        """Return the error for files of others in the place of the results; None without any."""
        try:
            check_not_taken(self._run.output, case, claim.before)
        except OutputError as error:
            return error
        except OSError as error:
            return not_written(f"the results of {case.name}", error)
        return None

    def _handle(self, event: Step | PlanLine | Finished | Failed) -> CaseResult | None:
        """Take an event of a running case; return the result if it ended."""
        number = event.number
        case, running = self._planned[number].case, self._running[number]
        if isinstance(event, Step):
            if event.stage == "starting":
                self._view.on_case_start(number, case.key)
            else:
                self._view.on_progress(number, event.stage, event.done, event.total)
            self._note_stage(number, running, event.stage)
            return None
        if isinstance(event, PlanLine):
            self._view.on_plan(number, event.text)
            return None
        del self._running[number]
        error = self._committed(case, running, event.outcome) if isinstance(event, Finished) else event.error
        if isinstance(error, Unfinished):
            del self._planned[number]
            text = f"the files of {case.key} could not all be renamed ({error}); the next run completes them"
            return CaseResult(case.key, "failed", "output.not_written", text, case.source, model=self._name(case))
        if error is not None:
            shutil.rmtree(running.staging, ignore_errors=True)
            if self._is_tried_again(
                number, running.claim, error, is_crash=isinstance(event, Failed) and event.is_crash
            ):
                return None
            del self._planned[number]
            return self._failed(case, running, error)
        del self._planned[number]
        return self._result_of(self._manifest.case(number))

    def _failed(self, case: Case, running: _Running, error: NapariSegError) -> CaseResult:
        """Note that a case failed, and return that; an earlier result of it stays, and counts again."""
        if not running.claim.before:
            self._manifest.change_case(running.claim.number, running.values, if_state=("running",))
            self._manifest.set_failed(running.claim, error.code, error.message)
            return self._result_of(self._manifest.case(running.claim.number))
        self._manifest.set_back(running.claim)
        text = f"{error.message}; the earlier result is kept"
        with self._manifest.transaction():
            return self._add_excluded(Excluded(case.key, error.code, text, case.source))

    def _note_stage(self, number: int, running: _Running, stage: str) -> None:
        """Note the stage of a case for those who read the manifest; a fault of that does not matter."""
        now = time.monotonic()
        if now - running.noted > _STAGE_SECONDS:
            running.noted = now
            with suppress(CohortError, OutputError):
                self._manifest.change_case(number, {"stage": stage}, if_state=("running",))

    def _committed(self, case: Case, running: _Running, outcome: Outcome) -> NapariSegError | Unfinished | None:
        """Move the files of a case into place, and note that it is done; return what went wrong."""
        output, claim = self._run.output, running.claim
        self._manifest.check_holds(claim)
        if not self._run.settings.overwrite and (fault := self._taken(case, claim)) is not None:
            return fault
        try:
            commit(
                output,
                running.staging,
                outcome.outputs,
                {**old_preview(output, case), **claim.before},
                lambda: self._manifest.set_moving(claim, outcome, running.values),
            )
        except Unfinished as error:
            return error
        except OutputError as error:
            return error
        except OSError as error:  # what was moved away could not be moved back; the next run does
            raise not_written(f"the results of {case.name}", error) from error
        self._manifest.set_done(claim)
        self._gone = 0
        return None

    def _is_tried_again(self, number: int, claim: Claim, error: NapariSegError, *, is_crash: bool) -> bool:
        """Return whether a case that failed is tried again later.

        Raises:
            NapariSegError: the error concerns all other cases, too.
        """
        model = self._model_of(self._planned[number].case)
        if error.code in CODES_OF_ALL_CASES:
            if not error.code.startswith("bundle.") or len(self._models) == 1:
                raise error
            model.fault = error
        self._check_folders(number, error)
        if error.code == "cohort.worker_lost" and self._lost[number] < _MAX_LOST:
            self._lost[number] += 1
            self._waiting.appendleft(number)
        elif is_crash and number not in self._retried and not self._run.stop.count:
            self._retried.add(number)  # nothing else will use memory then
            if isinstance(error, WorkerDied):
                self._killed.add(number)
            self._retries.append(number)
        elif is_crash and self._run.stop.count:  # whatever ends the run may have ended the worker
            self._waiting.append(number)
        else:
            return False
        self._manifest.set_back(claim)
        return True

    def _check_folders(self, number: int, error: NapariSegError) -> None:
        """End the run if the output folder, or the drive of the inputs, is gone.

        Raises:
            OutputError: nothing can be written to the output folder any more.
            EnvironmentFault: `cohort.inputs_gone`.
        """
        if error.code.startswith("output.") and error.code != "output.exists":
            self._runner.check_output()
        files = self._planned[number].case.scan.files
        self._gone = self._gone + 1 if not any(os.path.exists(file) for file in files) else 0
        if self._gone >= _MAX_GONE:
            text = f"the files of {_MAX_GONE} scans in a row are gone; check the drive of the scans, and run again"
            raise EnvironmentFault("cohort.inputs_gone", text)

    def _look_at_others(self) -> Iterator[CaseResult]:
        """Yield the results of cases that other runners have finished, and take over those of runners that died."""
        self._looked = time.monotonic()
        self._runner.recover_dead()
        for number in sorted(self._elsewhere):
            row, case = self._manifest.case(number), self._planned[number].case
            if row.state == "waiting":
                self._waiting.append(number)
            elif row.state == "moving" and self._is_stuck(number):
                del self._planned[number]
                text = f"the files of {case.key} can't be moved into place by the run that has them; run again later"
                yield CaseResult(case.key, "failed", "output.not_written", text, case.source, model=self._name(case))
            elif row.state == "done" and not is_same(case.scan, row.fingerprint, row.input_sha256):
                # the inputs of the other runner have another scan of this name
                del self._planned[number]
                with self._manifest.transaction():
                    refused = self._add_excluded(_of_another_scan(case, other_scan(case, row)))
                yield refused
            elif row.state in ("failed", "skipped") and fingerprint(case.scan) not in ("", row.fingerprint):
                self._planned[number].attempts = row.attempts
                self._waiting.append(number)
            elif row.state in ("done", "failed", "skipped"):
                del self._planned[number]
                yield self._result_of(row, is_earlier=True)
            else:
                continue
            self._elsewhere.discard(number)

    def _is_stuck(self, number: int) -> bool:
        """Return whether another runner has not moved the files of a case for a while: it may wait for this one."""
        since = self._moving_since.setdefault(number, time.monotonic())
        return time.monotonic() - since > _STUCK_SECONDS

    # results

    def _shown(self, result: CaseResult) -> CaseResult:
        self._view.on_result(result)
        return result

    def _model_of(self, case: Case) -> UsedModel:
        return self._models[id(case.bundle)]

    def _name(self, case: Case) -> str:
        return self._model_of(case).bundle.name

    def _result_of(self, row: CaseRow, *, is_earlier: bool = False) -> CaseResult:
        names = {model.number: model.bundle.name for model in self._models.values()}
        return result_of(self._run.output, row, names.get(row.model or 0, ""), is_earlier=is_earlier)


def _of_another_scan(case: Case, reason: str) -> Excluded:
    """Return the refusal of a scan whose name the result of another one has."""
    return Excluded(case.key, "output.exists", reason, case.source)


def _stopped() -> Cancelled:
    text = "stopped before the end; finished results are kept, and the same command goes on with the rest"
    return Cancelled("run.cancelled", text)


def result_of(output: Path, row: CaseRow, model: str, *, is_earlier: bool = False) -> CaseResult:
    """Return the result of a case that ended.

    Args:
        output: the output folder.
        row: the case in the manifest.
        model: name of its model.
        is_earlier: whether an earlier run finished it.
    """
    assert row.state in ("done", "failed", "skipped")
    files = {role: output / file.path for role, file in row.outputs.items()} if row.state == "done" else {}
    return CaseResult(
        row.name,
        row.state,
        row.code,
        row.message,
        row.source,
        files.get("labels"),
        files.get("overlay"),
        row.volumes_ml if files else {},
        row.confidence if files else {},
        row.notices if files else (),
        row.seconds,
        model,
        is_earlier,
    )
