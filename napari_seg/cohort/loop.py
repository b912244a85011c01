"""Run cases: claim them, hand them to workers, commit their results, and note everything in the manifest."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from napari_seg.cohort.case import Case
from napari_seg.cohort.manifest import Manifest, has_manifest
from napari_seg.cohort.outcome import CaseResult, Outcome
from napari_seg.cohort.outputs import (
    Unfinished,
    check_folders,
    check_not_taken,
    commit,
    old_preview,
    place_below,
)
from napari_seg.cohort.resume import other_scan
from napari_seg.cohort.rows import CaseRow, Claim
from napari_seg.cohort.run import Excluded, GuardedView, Run
from napari_seg.cohort.runners import Runner
from napari_seg.cohort.scan_files import fingerprint, input_bytes, is_same, place_digest
from napari_seg.cohort.used_models import CODES_OF_ALL_CASES, UsedModel, ends_run, used_models
from napari_seg.cohort.work_list import WorkList, of_another_scan, stopped
from napari_seg.cohort.workers import Failed, Finished, PlanLine, Pool, Step, Work
from napari_seg.errors import CohortError, EnvironmentFault, NapariSegError, OutputError
from napari_seg.formats.atomic import make_output_folder, not_written
from napari_seg.worker import WorkerDied

_POLL_SECONDS = 0.5

_JOIN_SECONDS = 5.0
"""Seconds between two looks at cases that other runners have."""

_STAGE_SECONDS = 2.0
"""Minimum time between two notes of the stage of a case, because each waits for the disk."""

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
    models = used_models(run.cases, run.settings.options)
    with (
        _undone_if_refused(run),
        Manifest.open(run.output) as manifest,
        Runner(run.output, manifest, is_joined=run.is_joined) as runner,
    ):
        manifest.add_places()
        listed = WorkList(run, manifest, models)
        listed.plan(runner.id)
        yield from _Loop(run, manifest, runner, models, listed).results()


@contextmanager
def _undone_if_refused(run: Run) -> Iterator[None]:
    """Create the output folder; remove what is new if the run ends with an error of all cases before the first result.

    That is the manifest, the files of the layout, and their folders.
    """
    is_new = not has_manifest(run.output)
    paths = {run.output, *(run.output / path for file in run.extra_files for path in (file, *file.parents))}
    made = sorted((path for path in paths if not os.path.lexists(path)), reverse=True)  # files before their folders
    make_output_folder(run.output)
    try:
        yield
    except NapariSegError as error:
        if error.code in CODES_OF_ALL_CASES and is_new and not run.is_joined:
            with Manifest.open(run.output, read_only=True) as manifest:
                has_results = any(row.attempts for row in manifest.rows(("done", "failed")))
            if not has_results:
                with suppress(OSError):  # another program reads the file, or a folder has files of others
                    manifest.path.unlink()
                    for path in made:
                        if path.is_dir():
                            path.rmdir()
                        else:
                            path.unlink(missing_ok=True)
        raise


@dataclass
class _Running:
    """A case that a worker has: the claim, its staging folder, what becomes true of it once it is done, and when its
    stage was noted last."""

    claim: Claim
    staging: Path
    values: dict[str, object]
    noted: float = 0.0


class _Loop:
    """The cases of a work list, until the last result."""

    def __init__(
        self, run: Run, manifest: Manifest, runner: Runner, models: dict[int, UsedModel], listed: WorkList
    ) -> None:
        self._run = run
        self._manifest = manifest
        self._runner = runner
        self._models = models
        self._list = listed
        self._salt = manifest.salt
        self._view = GuardedView(run.view)
        self._retries: deque[int] = deque()
        self._retried: set[int] = set()
        self._killed: set[int] = set()
        self._moving_since: dict[int, float] = {}
        self._lost: Counter[int] = Counter()
        self._running: dict[int, _Running] = {}
        self._looked = time.monotonic()
        self._gone = 0

    def results(self) -> Iterator[CaseResult]:
        """Yield the result of each case; see `run_cases`."""
        earlier = self._list.done
        left = len(self._list.left)
        self._view.on_start(left + len(earlier) + len(self._list.refused), len(earlier))
        for result in self._list.refused:
            yield self._shown(result)
        for number in earlier:
            row = self._manifest.case(number)
            if row.state == "done":  # unless another runner makes it again
                yield self._shown(self._result_of(row, is_earlier=True))
        if not self._list.left:
            return
        waiting = [self._list.left[number].case for number in self._list.waiting]
        pool = self._run.make_pool(waiting) if waiting else None
        is_orderly = False
        try:
            yield from self._run_all(pool)
            is_orderly = True
        finally:
            if pool is not None:
                pool.close(now=not is_orderly)

    def _run_all(self, pool: Pool | None) -> Iterator[CaseResult]:
        """Run the waiting cases, then once more, one at a time, those whose worker died; yield results.

        Raises:
            Cancelled: the end was requested before all cases had ended.
        """
        while self._list.left:
            stop = self._run.stop.count
            if stop > 1 or (stop and not self._running):
                raise stopped()
            if self._list.elsewhere and time.monotonic() - self._looked > _JOIN_SECONDS * (not stop):
                for result in self._look_at_others():
                    yield self._shown(result)
            if pool is None:
                if self._list.waiting:  # another runner left them
                    pool = self._run.make_pool([self._list.left[number].case for number in self._list.waiting])
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
            elif not self._running and self._list.elsewhere:
                time.sleep(_POLL_SECONDS)

    def _fill(self, pool: Pool) -> Iterator[CaseResult]:
        """Claim cases until all workers are busy and one case waits for the next free one; yield what fails at once."""
        while self._list.waiting and len(self._running) <= pool.size:
            yield from self._submit(pool, self._list.waiting.popleft(), is_alone=False)
        if self._retries and not self._running and not self._list.waiting:
            yield from self._submit(pool, self._retries.popleft(), is_alone=True)

    def _take_back(self, pool: Pool) -> None:
        """Leave cases that no worker has begun to the next run."""
        for number in pool.take_back():
            running = self._running.pop(number)
            shutil.rmtree(running.staging, ignore_errors=True)
            self._manifest.set_back(running.claim)
            self._list.waiting.append(number)

    def _submit(self, pool: Pool, number: int, *, is_alone: bool) -> Iterator[CaseResult]:
        planned = self._list.left[number]
        case, model = planned.case, self._model_of(planned.case)
        model.check()
        claim = self._manifest.claim(number, self._runner.id, planned.attempts)
        if claim is None:
            self._list.elsewhere.add(number)
            return
        values = {
            "source": case.source,
            "format": case.scan.format,
            "model": model.number,
            "settings": self._list.settings,
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
        case, running = self._list.left[number].case, self._running[number]
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
            del self._list.left[number]
            text = f"the files of {case.key} could not all be renamed ({error}); the next run completes them"
            return CaseResult(case.key, "failed", "output.not_written", text, case.source, model=self._name(case))
        if error is not None:
            shutil.rmtree(running.staging, ignore_errors=True)
            if self._is_tried_again(
                number, running.claim, error, is_crash=isinstance(event, Failed) and event.is_crash
            ):
                return None
            del self._list.left[number]
            return self._failed(case, running, error)
        del self._list.left[number]
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
            return self._list.exclude(Excluded(case.key, error.code, text, case.source))

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
        model = self._model_of(self._list.left[number].case)
        if error.code in CODES_OF_ALL_CASES:
            if ends_run(error, len(self._models)):
                raise error
            model.fault = error
        self._check_folders(number, error)
        if error.code == "cohort.worker_lost" and self._lost[number] < _MAX_LOST:
            self._lost[number] += 1
            self._list.waiting.appendleft(number)
        elif is_crash and number not in self._retried and not self._run.stop.count:
            self._retried.add(number)  # nothing else will use memory then
            if isinstance(error, WorkerDied):
                self._killed.add(number)
            self._retries.append(number)
        elif is_crash and self._run.stop.count:  # whatever ends the run may have ended the worker
            self._list.waiting.append(number)
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
        files = self._list.left[number].case.scan.files
        self._gone = self._gone + 1 if not any(os.path.exists(file) for file in files) else 0
        if self._gone >= _MAX_GONE:
            text = f"the files of {_MAX_GONE} scans in a row are gone; check the drive of the scans, and run again"
            raise EnvironmentFault("cohort.inputs_gone", text)

    def _look_at_others(self) -> Iterator[CaseResult]:
        """Yield the results of cases that other runners have finished, and take over those of runners that died."""
        self._looked = time.monotonic()
        self._runner.recover_dead()
        for number in sorted(self._list.elsewhere):
            row, case = self._manifest.case(number), self._list.left[number].case
            if row.state == "waiting":
                self._list.waiting.append(number)
            elif row.state == "moving" and self._is_stuck(number):
                del self._list.left[number]
                text = f"the files of {case.key} can't be moved into place by the run that has them; run again later"
                yield CaseResult(case.key, "failed", "output.not_written", text, case.source, model=self._name(case))
            elif row.state == "done" and not is_same(case.scan, row.fingerprint, row.input_sha256):
                # the inputs of the other runner have another scan of this name
                del self._list.left[number]
                with self._manifest.transaction():
                    refused = self._list.exclude(of_another_scan(case, other_scan(case, row)))
                yield refused
            elif row.state in ("failed", "skipped") and fingerprint(case.scan) not in ("", row.fingerprint):
                self._list.left[number].attempts = row.attempts
                self._list.waiting.append(number)
            elif row.state in ("done", "failed", "skipped"):
                del self._list.left[number]
                yield self._result_of(row, is_earlier=True)
            else:
                continue
            self._list.elsewhere.discard(number)

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
