"""Run a cohort: claim cases, hand them to workers, commit their results, and note everything in the manifest."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from napari_seg.bundles.digest import model_digest
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.trust import check_runnable
from napari_seg.cohort.case import Case
from napari_seg.cohort.fingerprint import fingerprint, input_bytes
from napari_seg.cohort.fit import check_fit
from napari_seg.cohort.manifest import CaseRow, Manifest
from napari_seg.cohort.outcome import CaseResult, Outcome, OutputFile
from napari_seg.cohort.outputs import are_unchanged, check_not_taken, commit
from napari_seg.cohort.runners import Runner
from napari_seg.cohort.settings import RunSettings, differences
from napari_seg.cohort.workers import Failed, Finished, PlanLine, Pool, Step, Work
from napari_seg.errors import Cancelled, CohortError, NapariSegError, OutputError
from napari_seg.formats.atomic import atomic_write, make_output_folder

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

_NOTE_SECONDS = 1.0

_MAX_LOST = 3
"""Workers of a cluster that a case may lose before it fails; a machine that is switched off says nothing of a case."""


@dataclass(frozen=True)
class Excluded:
    """A scan that is not run.

    Attributes:
        name: name of the case, or of the input.
        code: code of the error, or of the reason to skip it.
        message: the same in words.
        source: path of the scan, in public names.
        is_failure: whether it is an error; otherwise it was skipped on purpose.
    """

    name: str
    code: str
    message: str
    source: str = ""
    is_failure: bool = True


class Stop:
    """Request to end a run: the first lets running cases finish, the second ends them at once."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def count(self) -> int:
        """Requests so far."""
        return self._count

    def request(self) -> None:
        """Ask to end; may be called by a signal handler or another thread."""
        self._count += 1


class View(Protocol):
    """What shows a run while it goes on; all methods are called in the thread of the run."""

    def on_start(self, total: int, done_before: int) -> None:
        """Show how many cases there are, and how many of them an earlier run finished."""

    def on_case_start(self, number: int, name: str) -> None:
        """Show that a worker starts a case."""

    def on_progress(self, number: int, stage: str, done: int, total: int) -> None:
        """Show the progress of a case."""

    def on_plan(self, number: int, text: str) -> None:
        """Show a line on the windows and the memory of a case."""

    def on_result(self, result: CaseResult) -> None:
        """Show the result of a case."""


@dataclass
class Run:
    """A run over cases.

    Attributes:
        output: output folder, created if missing; nothing is written outside it.
        cases: cases with names that are unique; each has a bundle.
        settings: settings of the run.
        make_pool: makes the workers, given the cases that are left to run.
        excluded: scans that are not run, for the manifest.
        extra_files: path relative to the output folder -> text of files that are written unless they exist.
        redo: segment cases again that an earlier run finished.
        is_joined: share the work with other runners in the same folder.
        stop: takes requests to end.
        view: shows the run; None: nothing does.
    """

    output: Path
    cases: Sequence[Case]
    settings: RunSettings
    make_pool: Callable[[Sequence[Case]], Pool]
    excluded: Sequence[Excluded] = ()
    extra_files: Mapping[PurePosixPath, str] = field(default_factory=dict)
    redo: bool = False
    is_joined: bool = False
    stop: Stop = field(default_factory=Stop)
    view: View | None = None

    def results(self) -> Iterator[CaseResult]:
        """Run the cases, and yield the result of each: first those of earlier runs, then others as they come.

        Cases that an earlier run finished are not run again; those that failed are. A case that fails does not stop the
        others.

        Raises:
            CohortError: `cohort.locked`, another runner works in the folder; `cohort.changed`, results there were made
                with other options or weights; `cohort.manifest`.
            OutputError: `output.folder`, the folder can't be created or written to; `output.disk_full`.
            BundleError: a model is untrusted, incomplete or does not fit any scan.
            EnvironmentFault: the device or the template is missing.
            Cancelled: `stop` was requested.
        """
        models = _models(self.cases)
        make_output_folder(self.output)
        with (
            Manifest.open(self.output, is_joined=self.is_joined) as manifest,
            Runner(self.output, manifest, is_joined=self.is_joined) as runner,
        ):
            for path, text in self.extra_files.items():
                if not (self.output / path).exists():
                    make_output_folder((self.output / path).parent)
                    atomic_write(self.output / path, text)
            yield from _Loop(self, manifest, runner, models).results()


@dataclass
class _Model:
    """A model of the run: its bundle, its digest and its number in the manifest."""

    bundle: Bundle
    digest: str
    number: int = 0


def _models(cases: Iterable[Case]) -> dict[int, _Model]:
    """Return the models of the cases by the identity of their bundles, after checking that each may run."""
    of_each: dict[int, list[Case]] = {}
    for case in cases:
        of_each.setdefault(id(case.bundle), []).append(case)
    found: dict[int, _Model] = {}
    for number, its_cases in of_each.items():
        bundle = its_cases[0].bundle
        assert bundle is not None
        check_runnable(bundle)
        check_fit(bundle, its_cases)
        found[number] = _Model(bundle, model_digest(bundle))
    return found


class _Loop:
    """The cases of a run, from the plan to the last result."""

    def __init__(self, run: Run, manifest: Manifest, runner: Runner, models: dict[int, _Model]) -> None:
        self._run = run
        self._manifest = manifest
        self._runner = runner
        self._models = models
        self._cases: dict[int, Case] = {}
        """Number in the manifest -> case, of those that this runner may claim or has claimed."""
        self._before: dict[int, dict[str, OutputFile]] = {}
        """Number -> files of an earlier result, which the new ones replace."""
        self._waiting: deque[int] = deque()
        self._refused: list[CaseResult] = []
        self._retries: deque[int] = deque()
        self._retried: set[int] = set()
        self._lost: Counter[int] = Counter()
        self._stages: dict[int, str] = {}
        """Number -> stage that is not noted yet."""
        self._noted = 0.0
        self._running: dict[int, Path] = {}
        """Number -> staging folder."""

    def results(self) -> Iterator[CaseResult]:
        """Yield the result of each case; see `Run.results`."""
        earlier = self._plan()
        if self._run.view is not None:
            self._run.view.on_start(len(self._run.cases) + len(self._run.excluded), len(earlier))
        for excluded in self._run.excluded:
            yield self._shown(_excluded_result(excluded))
        for result in self._refused:
            yield self._shown(result)
        for name in earlier:
            row = self._manifest.row(name)
            assert row is not None
            yield self._shown(self._result_of(row, is_earlier=True))
        if not self._waiting:
            return
        pool = self._run.make_pool([self._cases[number] for number in self._waiting])
        is_orderly = False
        try:
            yield from self._run_all(pool)
            is_orderly = True
        finally:
            pool.close(now=not is_orderly)
        if self._run.stop.count:
            raise Cancelled()

    # before the run

    def _plan(self) -> list[str]:
        """Add the cases to the manifest, and return the names of those that an earlier run finished."""
        rows = {row.name: row for row in self._manifest.rows()}
        self._check_same(rows)
        earlier: list[str] = []
        # without one transaction for all, each case would wait for the disk
        with self._manifest.transaction():
            for model in self._models.values():
                bundle = model.bundle
                model.number = self._manifest.add_model(bundle.name, bundle.version, bundle.kind, model.digest)
            for case in self._run.cases:
                row = rows.get(case.key)
                if row is not None and row.state in ("running", "moving"):  # another runner has it
                    continue
                if row is not None and row.state == "done" and not self._run.redo:
                    if not self._is_of(case, row):
                        self._refused.append(self._refusal(case))
                        continue
                    if self._is_current(row):
                        earlier.append(case.key)
                        continue
                number = self._add(case, row)
                self._cases[number] = case
                self._waiting.append(number)
                if row is not None:
                    self._before[number] = row.outputs
            for excluded in self._run.excluded:
                self._add_excluded(excluded, rows.get(excluded.name))
            self._manifest.set_meta("settings", json.dumps(self._run.settings.to_record()))
        return earlier

    def _check_same(self, rows: dict[str, CaseRow]) -> None:
        """Refuse to mix results of different options or weights in one folder.

        Raises:
            CohortError: `cohort.changed`.
        """
        done = [row for row in rows.values() if row.state == "done"]
        if not done or self._run.redo:
            return
        changes = differences(self._manifest.settings(), json.loads(json.dumps(self._run.settings.to_record())))
        known = {model.id: model for model in self._manifest.models()}
        for case in self._run.cases:
            row, model = rows.get(case.key), self._models[id(case.bundle)]
            if row is not None and row.state == "done" and row.model is not None:
                before = known[row.model]
                if before.digest != model.digest:
                    same = before.name == model.bundle.name
                    what = f"the weights or code of {before.name!r} changed" if same else ""
                    changes.append(what or f"the model was {before.name!r} and is {model.bundle.name!r}")
                    break
        if changes:
            text = (
                f"{self._run.output} has {len(done)} results that were made otherwise: {'; '.join(changes)}; choose "
                "another folder, or pass --redo to make them again"
            )
            raise CohortError("cohort.changed", text)

    @staticmethod
    def _is_of(case: Case, row: CaseRow) -> bool:
        """Return whether a result was made from the scan as it is now."""
        return fingerprint(case.scan) in (row.fingerprint, "")

    def _refusal(self, case: Case) -> CaseResult:
        text = (
            f"the result {case.key} belongs to another scan, or to this scan before it changed; choose another "
            "folder, or pass --redo to replace it"
        )
        return CaseResult(case.key, "failed", "output.exists", text, case.source)

    def _is_current(self, row: CaseRow) -> bool:
        """Return whether the files of a result are there; without `overwrite`, edited ones stay, too."""
        if self._run.settings.overwrite:
            return are_unchanged(self._run.output, row.outputs)
        return all((self._run.output / file.path).is_file() for file in row.outputs.values())

    def _add(self, case: Case, row: CaseRow | None) -> int:
        """Add a case that waits to the manifest, or return one to those that wait; return its number."""
        values = {
            "source": case.source,
            "format": case.scan.format,
            "model": self._models[id(case.bundle)].number,
            "state": "waiting",
            "stage": "",
        }
        if row is None:
            return self._manifest.add_case(case.key, values)
        self._manifest.change_case(row.id, values)
        return row.id

    def _add_excluded(self, excluded: Excluded, row: CaseRow | None) -> None:
        if row is not None and row.state in ("done", "running", "moving"):
            return
        values = {
            "source": excluded.source,
            "state": "failed" if excluded.is_failure else "skipped",
            "code": excluded.code,
            "message": excluded.message,
        }
        if row is None:
            self._manifest.add_case(excluded.name, values)
        else:
            self._manifest.change_case(row.id, values)

    # the run

    def _run_all(self, pool: Pool) -> Iterator[CaseResult]:
        """Run the waiting cases, then once more, one at a time, those whose worker died; yield results."""
        while True:
            stop = self._run.stop.count
            if stop > 1:
                raise Cancelled()
            if stop:
                self._take_back(pool)
            else:
                self._fill(pool)
            if not self._running:
                return
            event = pool.next_event(_POLL_SECONDS)
            self._runner.beat()
            if event is not None and event.number in self._running:
                result = self._handle(event)
                if result is not None:
                    yield self._shown(result)
            self._note_stages()

    def _note_stages(self) -> None:
        """Note now and then which stages the running cases have reached; each note waits for the disk."""
        now = time.monotonic()
        if self._stages and now - self._noted > _NOTE_SECONDS:
            with self._manifest.transaction():
                for number in self._stages.keys() & self._running.keys():
                    self._manifest.change_case(number, {"stage": self._stages[number]})
            self._stages.clear()
            self._noted = now

    def _fill(self, pool: Pool) -> None:
        """Claim cases until all workers are busy and one case waits for the next free one."""
        while self._waiting and len(self._running) <= pool.size:
            self._submit(pool, self._waiting.popleft(), is_alone=False)
        if self._retries and not self._running:
            self._submit(pool, self._retries.popleft(), is_alone=True)

    def _take_back(self, pool: Pool) -> None:
        """Leave cases that no worker has begun to the next run."""
        for number in pool.take_back():
            shutil.rmtree(self._running.pop(number), ignore_errors=True)
            self._manifest.set_waiting(number)

    def _submit(self, pool: Pool, number: int, *, is_alone: bool) -> None:
        case = self._cases[number]
        values = {"fingerprint": fingerprint(case.scan), "input_bytes": input_bytes(case.scan)}
        with self._manifest.transaction():  # a short one: other runners wait for it
            attempt = self._manifest.claim(number, self._runner.id)
            if not attempt:  # another runner has it
                return
            self._manifest.change_case(number, values)
        model = self._models[id(case.bundle)]
        staging = self._runner.staging(number, attempt)
        self._running[number] = staging
        pool.submit(Work(number, case, model.bundle, model.digest, staging, self._run.settings, is_alone))

    def _handle(self, event: Step | PlanLine | Finished | Failed) -> CaseResult | None:
        """Take an event of a running case; return the result if it ended."""
        view, number = self._run.view, event.number
        case = self._cases[number]
        if isinstance(event, Step):
            if event.stage == "starting":
                if view is not None:
                    view.on_case_start(number, case.key)
            elif view is not None:
                view.on_progress(number, event.stage, event.done, event.total)
            if event.done == 0 or event.stage == "starting":
                self._stages[number] = event.stage
            return None
        if isinstance(event, PlanLine):
            if view is not None:
                view.on_plan(number, event.text)
            return None
        staging = self._running.pop(number)
        if isinstance(event, Finished):
            try:
                self._commit(number, case, staging, event.outcome)
            except OutputError as error:
                event = Failed(number, error)
        if isinstance(event, Failed):
            shutil.rmtree(staging, ignore_errors=True)
            if event.error.code in CODES_OF_ALL_CASES or self._is_output_gone(event.error):
                raise event.error
            if event.error.code == "cohort.worker_lost" and self._lost[number] < _MAX_LOST:
                self._lost[number] += 1
                self._waiting.appendleft(number)
                self._manifest.set_waiting(number)
                return None
            if event.is_crash and number not in self._retried:  # nothing else will use memory next time
                self._retried.add(number)
                self._retries.append(number)
                self._manifest.set_waiting(number)
                return None
            self._manifest.set_failed(number, event.error.code, event.error.message)
        row = self._manifest.row(case.key)
        assert row is not None
        return self._result_of(row)

    def _commit(self, number: int, case: Case, staging: Path, outcome: Outcome) -> None:
        """Move the files of a case into place, and note that it is done."""
        output, before = self._run.output, self._before.get(number, {})
        if not self._run.settings.overwrite:
            check_not_taken(output, case, before)
        old = [PurePosixPath(file.path) for file in (*before.values(), *outcome.outputs.values())]
        commit(output, staging, outcome.outputs, old, lambda: self._manifest.set_moving(number, outcome))
        self._manifest.set_done(number)

    def _is_output_gone(self, error: NapariSegError) -> bool:
        """Return whether nothing can be written to the output folder any more; raise the reason."""
        if error.code.startswith("output."):
            self._runner.check_output()
        return False

    # results

    def _shown(self, result: CaseResult) -> CaseResult:
        if self._run.view is not None:
            self._run.view.on_result(result)
        return result

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


def _excluded_result(excluded: Excluded) -> CaseResult:
    status = "failed" if excluded.is_failure else "skipped"
    return CaseResult(excluded.name, status, excluded.code, excluded.message, excluded.source)  # type: ignore[arg-type]
