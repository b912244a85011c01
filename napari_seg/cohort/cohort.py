"""`Cohort`: many scans in, many segmentations out, for Python; command line and plugin use it, too."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.bundles.digest import model_digest
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.earlier_results import EarlierResults, earlier_results
from napari_seg.cohort.known_names import with_known_names
from napari_seg.cohort.loop import run_cases
from napari_seg.cohort.manifest import Manifest, has_manifest
from napari_seg.cohort.naming import compared
from napari_seg.cohort.outcome import CaseResult
from napari_seg.cohort.outputs import check_folders
from napari_seg.cohort.plan import RunPlan, plan_run, with_estimates
from napari_seg.cohort.report.tables import CASES_JSON
from napari_seg.cohort.report.write import write_report
from napari_seg.cohort.resume import Decision, Redo, Resume, Wanted, settings_content
from napari_seg.cohort.rows import CaseRow
from napari_seg.cohort.run import Excluded, Run, Stop, View
from napari_seg.cohort.scan_files import input_bytes
from napari_seg.cohort.select import SelectedCases, Selection, UnusedScan, select_cases
from napari_seg.cohort.settings import RunSettings
from napari_seg.cohort.used_models import check_models, with_present_digests
from napari_seg.cohort.workers import LocalPool, Pool, worker_count
from napari_seg.errors import CohortError, NapariSegError
from napari_seg.inference.options import option_fields

if TYPE_CHECKING:
    import pandas


class Cohort:
    """Scans, the model that segments them and the folder of the results; iterate over it to run.

    A run can be stopped or killed at any time: the next run with the same output folder goes on where it ended. The
    folder then has the results, `manifest.sqlite`, a report and tables.

        cohort = napari_seg.Cohort("scans", "results", tta="shifts")
        for result in cohort:
            print(result.name, result.status, result.volumes_ml)
        print(cohort.volumes())

    Args:
        inputs: files and folders of scans.
        output: output folder, created if missing; nothing is written outside it.
        model: the bundle, its folder or its name; None: the shipped one, or the models of the selection.
        selection: filters, rules, several models, and the layout of the output folder; its inputs are replaced.
        model_of: returns a model of the selection by its reference, see `select_cases`; None: `read_bundle` does.
        settings: settings of the run.
        workers: number of worker processes; None: as many as keep the machine busy within the memory.
        redo: results of earlier runs to make again: "none"; "changed", those of other options, weights or scans; "all".
        join: share the work with other runs in the same folder, which also join.
        make_pool: makes other workers than those of this machine, given the cases that are left.
        changes: single options of `SegmentOptions` and `RunSettings`, such as `device="cpu"`; they replace those of
            `settings`.

    Attributes:
        output: the output folder.
        settings: settings of the run.
        selection: what is segmented, by which models, and where the results lie.
        stop: request the end of the run with `stop.request()`, from another thread.
        view: shows the run while it goes on; None: nothing does.
        report: page that the last run has written about all cases of the folder; None before it, for a single case that
            is done, and if it could not be written.
        other_results: number of results in the folder of scans that were not among those of the last run.
        results_left_out: number of earlier results that count no longer, because the last run left out or refused their
            scans.
        results_renamed: number of earlier results that count no longer, because the last run had their scans under
            other names.
        report_fault: reason why the report could not be written; None without one.

    Raises:
        BundleError: there is no such model.
        ValueError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        inputs: str | Path | Sequence[str | Path],
        output: str | Path,
        model: Bundle | str | Path | None = None,
        *,
        selection: Selection | None = None,
        model_of: Callable[[str, bool], Bundle] | None = None,
        settings: RunSettings | None = None,
        workers: int | None = None,
        redo: Redo = "none",
        join: bool = False,
        make_pool: Callable[[Sequence[Case]], Pool] | None = None,
        **changes: Any,
    ) -> None:
        paths = tuple(Path(one) for one in ([inputs] if isinstance(inputs, (str, Path)) else inputs))
        self.output = Path(output)
        self.settings = _with_changes(settings or RunSettings(), changes)
        self.stop = Stop()
        self.view: View | None = None
        self.report: Path | None = None
        self.other_results = 0
        self.results_left_out = 0
        self.results_renamed = 0
        self.report_fault: NapariSegError | None = None
        self._known: dict[str, Bundle] = {}
        self._model_of = model_of or _model_of
        self.selection = replace(selection or Selection(), inputs=paths)
        if model is not None:
            bundle = read_bundle(model)
            self._known[bundle.reference] = bundle
            self.selection = replace(self.selection, models=(bundle.reference,))
        if not self.selection.rules:
            for reference in self.selection.models:  # before a long search
                self._model(reference, True)
        self._workers = workers
        self._redo = redo
        self._join = join
        self._make_pool = make_pool or self._local_pool
        self._cases: list[Case] | None = None
        self._excluded: list[Excluded] = []

    @property
    def cases(self) -> list[Case]:
        """The cases below the inputs; they are looked for once."""
        if self._cases is None:
            selected = self.selected
            failed = (*selected.faults, *selected.refused)
            refused = [Excluded(one.key, one.code, one.message, one.source, scan=one.scan) for one in failed]
            skipped = [
                Excluded(one.key, one.code, one.message, one.source, False, one.scan) for one in selected.skipped
            ]
            self._cases, self._excluded = self._with_known_names(selected.cases), [*refused, *skipped]
        return self._cases

    def _with_known_names(self, cases: Sequence[Case]) -> list[Case]:
        """Return cases; those of an earlier run in the folder have the names from then."""
        if not has_manifest(self.output):
            return list(cases)
        with Manifest.open(self.output, read_only=True) as manifest:
            if self.selection.layout != (manifest.meta("layout") or "flat"):  # results lie elsewhere on purpose
                return list(cases)
            models = {model.id: model for model in manifest.models()}
            earlier = [row for row in manifest.rows() if row.has_result or row.is_unfinished]
            return with_known_names(cases, earlier, models, manifest.salt, model_digest)

    @cached_property
    def selected(self) -> SelectedCases:
        """What the selection finds below the inputs; they are searched once."""
        return select_cases(self.selection, self._model)

    def _model(self, reference: str, is_of_user: bool) -> Bundle:
        if reference not in self._known:
            self._known[reference] = self._model_of(reference, is_of_user)
        return self._known[reference]

    @property
    def excluded(self) -> list[Excluded]:
        """Scans that are not run, and inputs that could not be searched, with the reasons."""
        self.cases  # noqa: B018  (looks for them)
        return self._excluded

    def use(self, cases: Sequence[Case], excluded: Sequence[Excluded] = ()) -> None:
        """Run these cases instead of those below the inputs.

        Args:
            cases: the cases; one without a bundle is segmented by the first model of the cohort.
            excluded: scans that are not run.
        """
        bundle = self._model(self.selection.models[0], True)
        self._cases = [case if case.bundle is not None else replace(case, bundle=bundle) for case in cases]
        self._excluded = list(excluded)
        models = {self.selection.models[0] or bundle.name: bundle}
        self.selected = SelectedCases(tuple(self._cases), models=models)

    def __iter__(self) -> Iterator[CaseResult]:
        """Run the cases, and yield the result of each; see `run_cases`."""
        run = Run(
            output=self.output,
            cases=self.cases,
            settings=self.settings,
            make_pool=self._make_pool,
            excluded=self.excluded,
            extra_files=self.selected.extra_files,
            redo=self._redo,
            is_joined=self._join,
            stop=self.stop,
            view=self.view,
            layout=self.selection.layout,
        )
        has_begun = False
        try:
            for result in run_cases(run):
                self.other_results, self.results_left_out, self.results_renamed = run.others, run.left_out, run.renamed
                has_begun = True
                yield result
        except BaseException as error:
            is_of_others = isinstance(error, CohortError) and (error.code != "cohort.changed" or not has_begun)
            if is_of_others:  # the folder belongs to another run
                raise
            self._write_report()
            raise
        self._write_report()

    def _write_report(self) -> None:
        """Write the report of all cases in the folder; a fault does not undo the run."""
        self.report, self.report_fault = None, None
        if self.stop.count > 1 or not has_manifest(self.output):  # it is to end at once, or did not start
            return
        try:
            with Manifest.open(self.output, read_only=True) as manifest:
                counts = manifest.counts()
                # a single case needs none if it is done, unless one tells why it failed before
                if sum(counts.values()) > 1 or counts["failed"] or (self.output / CASES_JSON).is_file():
                    self.report = write_report(manifest)
        except NapariSegError as fault:
            self.report_fault = fault
        except Exception as error:  # an error in the program must not undo the run
            where = traceback.extract_tb(error.__traceback__)[-1]  # the exception text may contain private data
            text = (
                f"this should not have happened: {type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
            )
            self.report_fault = NapariSegError("internal.error", f"{text}; please report it")

    def plan(self, *, with_time: bool = True, report: Callable[[str], None] = lambda text: None) -> RunPlan:
        """Return what the run will do, without doing it.

        Args:
            with_time: estimate the time too, which reads some of the scans and loads the models.
            report: called with a line of text before each of these scans.

        Raises:
            BundleError, EnvironmentFault: the run will be refused, because a model or the machine can't do what the
                options require.
            CohortError: `cohort.changed`, the same, because results were made with other options or weights.
            OutputError: `output.folder`, the same, because a link stands in the place of a folder of results.
        """
        check_models(self.cases, self.settings.options)
        decisions, refusals, earlier = self._decisions()
        done = {case.key for case in self.cases if decisions.get(case.key) == "keep"}
        check_folders(self.output, (case for case in self.cases if decisions.get(case.key, "run") == "run"))
        others = [case for case in self.cases if decisions.get(case.key) == "other scan"]
        refused = [
            UnusedScan(case.key, case.source, case.scan.format, "output.exists", refusals[case.key]) for case in others
        ]
        selected = replace(
            self.selected,
            cases=tuple(case for case in self.cases if decisions.get(case.key) != "other scan"),
            refused=(*self.selected.refused, *refused),
        )
        plan = replace(
            plan_run(selected, self.settings, done),
            results_left_out=earlier.count_left_out,
            results_renamed=earlier.count_renamed,
        )
        return with_estimates(plan, self.settings, report=report) if with_time else plan

    def _decisions(self) -> tuple[dict[str, Decision], dict[str, str], EarlierResults]:
        """Return what the run will do with cases and results that the manifest has.

        Returns:
            Key of a case that has a result -> what the run will do; key of one that it refuses -> reason; and results
            of other scans.

        Raises:
            CohortError: `cohort.changed`.
        """
        if not has_manifest(self.output):
            return {}, {}, EarlierResults()
        decisions: dict[str, Decision] = {}
        settings = settings_content(self.settings)
        with Manifest.open(self.output, read_only=True) as manifest:
            rows = {compared(row.name): row for row in manifest.rows()}
            made = [case for case in self.cases if _has_result(rows.get(compared(case.key)))]
            bundles = {id(case.bundle): case.bundle for case in made if case.bundle is not None}
            digests = {number: model_digest(bundle) for number, bundle in bundles.items()}
            of_digests = {digests[number]: bundle for number, bundle in bundles.items()}
            models = with_present_digests(manifest.models(), of_digests)
            resume, salt = Resume(self.output, manifest, models, self._redo, self.settings.overwrite), manifest.salt
        for case in made:
            if (bundle := case.bundle) is not None:
                wanted = Wanted(settings, bundle.name, digests[id(bundle)])
                decisions[case.key] = resume.decide(case, rows[compared(case.key)], wanted)
        resume.check()
        if self._join:  # other runners may have the scans
            return decisions, resume.refusals, EarlierResults()
        return (
            decisions,
            resume.refusals,
            earlier_results(self.cases, self.excluded, resume.refusals, rows, models, salt),
        )

    def volumes(self) -> pandas.DataFrame:
        """Return a table of the finished cases: a row for each structure of each case.

        Returns:
            Columns name, source, model, structure, volume_ml and confidence (NaN for a structure without voxels).

        Raises:
            CohortError: `cohort.no_manifest`, nothing was run yet.
        """
        import pandas

        with Manifest.open(self.output, read_only=True) as manifest:
            models = {model.id: model.name for model in manifest.models()}
            rows = [
                (row.name, row.source, models.get(row.model or 0, ""), name, ml, row.confidence.get(name))
                for row in manifest.rows(("done",))
                for name, ml in row.volumes_ml.items()
            ]
        return pandas.DataFrame(rows, columns=["name", "source", "model", "structure", "volume_ml", "confidence"])

    def _local_pool(self, cases: Sequence[Case]) -> LocalPool:
        """Return workers of this machine for the cases that are left."""
        options = self.settings.options
        largest = max(input_bytes(case.scan) for case in cases)
        has_gpu = _has_gpu() if options.device == "auto" else options.device.startswith("cuda")
        count = worker_count(len(cases), largest, options.memory_bytes, has_gpu=has_gpu)
        bundles = [case.bundle for case in cases if case.bundle is not None]
        kinds = {one.kind for bundle in bundles for one in bundle.models}
        return LocalPool(self._workers or count, memory_bytes=options.memory_bytes, kinds=kinds)


def _has_result(row: CaseRow | None) -> bool:
    return row is not None and row.has_result


def _model_of(reference: str, is_of_user: bool) -> Bundle:
    return read_bundle(reference or None)


def _with_changes(settings: RunSettings, changes: Mapping[str, Any]) -> RunSettings:
    names = {option.name for option in option_fields()}
    options = {name: value for name, value in changes.items() if name in names}
    others = {name: value for name, value in changes.items() if name not in names}
    return replace(settings, options=replace(settings.options, **options), **others)


def _has_gpu() -> bool:
    """Return whether this machine seems to have a GPU that torch can use, without loading torch."""
    has_device = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()
    return has_device or shutil.which("nvidia-smi") is not None
