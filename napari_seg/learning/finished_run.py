"""A finished run and second looks at its scans: what the manifest knows, and which scans are new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from napari_seg.bundles.digest import has_digest, model_digest
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.trust import check_runnable
from napari_seg.cohort.case import Case
from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.rows import CaseRow, ModelRow
from napari_seg.cohort.scan_files import fingerprint, is_same, scan_sha256
from napari_seg.errors import BundleError, Cancelled, InputError, NapariSegError, OutputError
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.find import find_scans
from napari_seg.formats.scan import ReadOptions, Scan
from napari_seg.inference.options import SegmentOptions, option_fields
from napari_seg.inference.second_look import SecondLook, second_look
from napari_seg.learning.second_looks import SecondLooks
from napari_seg.learning.training_set import INDEX, read_training_set
from napari_seg.progress import Progress
from napari_seg.training.gather.referenced import ENDING, referenced_scan, voxel_digest
from napari_seg.volume import Volume

AnyScan = Scan | ChannelSet

_READING = ("volume", "resample_tilt")
_OWN = ("device", "backend", "precision", "memory_bytes", "tta", "postprocess", "confidence_maps")
"""Options that a second look has of its own: those of the machine decide rounding alone."""


@dataclass(frozen=True)
class AcceptedScan:
    """A scan that was accepted.

    Attributes:
        name: name of its case in the training set.
        digest: of its voxels, or of its files if the set is of another program.
        scan: the scan; None if this machine does not find it, so that only its digest is known.
        is_trained: whether models learn from it; the validation part only tells which scans are accepted.
        input_sha256: of its files, as the run knows them; "" if it is unknown.
    """

    name: str
    digest: str
    scan: AnyScan | None
    is_trained: bool = True
    input_sha256: str = ""


@dataclass(frozen=True)
class FinishedRun:
    """A run as its manifest knows it: folder, finished cases, models, and the settings of the last start."""

    folder: Path
    rows: tuple[CaseRow, ...]
    models: tuple[ModelRow, ...]
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        with Manifest.open(folder, read_only=True) as manifest:
            rows = tuple(manifest.rows(("done",), "name"))
            if not rows:
                text = f"no case of the run in {folder} is finished; run 'napari-seg predict' first"
                raise InputError("queue.empty", text)
            return cls(folder, rows, tuple(manifest.models()), manifest.settings())

    def digest(self, chosen: Bundle | None) -> str:
        """Return the digest of the chosen model, or of the one that made the results."""
        if chosen is not None:
            return model_digest(chosen)
        return self._made_by().digest

    def bundle(self, digest: str) -> Bundle:
        """Return the model that made the results."""
        made_by = self._made_by()
        advice = "name the model with --model; the cases are then ranked by what it finds now"
        try:
            found = read_bundle(made_by.name)
        except BundleError as error:
            text = f"the model {made_by.name!r} of the run was not found by its name; {advice}"
            raise InputError("queue.model", text) from error
        if not has_digest(found, digest):
            raise InputError("queue.model", f"the model {made_by.name!r} has changed since the run; {advice}")
        return found

    def finished(self, digest: str) -> list[CaseRow]:
        """Return the finished cases: those of a model if it made any, all otherwise, each scan once."""
        own = {model.id for model in self.models if model.digest == digest}
        rows = [row for row in self.rows if row.model in own] or self.rows
        return list({row.input_sha256 or row.name: row for row in reversed(rows)}.values())[::-1]

    @property
    def kept_options(self) -> dict[str, Any]:
        """What decides a second look, of the settings of the run."""
        names = {option.name for option in option_fields() if option.name not in _OWN} | set(_READING)
        return {name: value for name, value in sorted(self.settings.items()) if name in names}

    def _made_by(self) -> ModelRow:
        used = {row.model for row in self.rows}
        models = [model for model in self.models if model.id in used]
        if len(models) != 1:
            names = ", ".join(model.name for model in models) or "none"
            raise InputError("queue.model", f"found the models {names}; expected one; name the one to improve, --model")
        return models[0]


@dataclass
class Looker:
    """Looks at scans that were not looked at before, and keeps what it finds."""

    run: FinishedRun
    looks: SecondLooks
    options: SegmentOptions
    report: Progress

    def look(
        self,
        bundle: Bundle,
        pool: Sequence[tuple[str, str, AnyScan]],
        corrected: Sequence[tuple[str, str, AnyScan]],
    ) -> dict[str, NapariSegError]:
        """Look at the scans that are new, and return name -> error of those that can't be looked at.

        Args:
            bundle: the model.
            pool: name, digest and scan of each case of the run.
            corrected: the same of the accepted cases, of which only the embedding matters.
        """
        kept = {digest: self.looks.get(digest) for _, digest, _ in (*pool, *corrected)}
        new = [(*one, True) for one in pool if (before := kept[one[1]]) is None or not before.is_complete]
        in_pool = {digest for _, digest, _ in pool}
        new += [(*one, False) for one in corrected if kept[one[1]] is None and one[1] not in in_pool]
        if not new:
            return {}
        check_runnable(bundle)
        choices = {name: value for name, value in self.run.kept_options.items() if name not in _READING}
        options = replace(self.options, **choices)
        faults: dict[str, NapariSegError] = {}
        has_members = True
        for done, (name, digest, scan, is_of_pool) in enumerate(new):

            def on_step(stage: str, step: int, steps: int, done: int = done) -> None:
                self.report("looking", done, len(new))

            on_step("", 0, 1)
            try:
                volume = self._read(scan, digest, bundle)
                look, has_members = _look_at(volume, bundle, options, is_of_pool and has_members, has_members, on_step)
            except (Cancelled, OutputError):
                raise
            except NapariSegError as error:
                faults[name] = error
            else:
                self.looks.put(digest, look, is_complete=is_of_pool)
        self.report("looking", len(new), len(new))
        return faults

    def read_voxels(self, bundle: Bundle, pool: Sequence[tuple[str, str, AnyScan]]) -> None:
        """Read the scans whose voxels are not known, so that accepted ones are recognised; faults are left to `look`.

        Args:
            bundle: the model.
            pool: see `look`.
        """
        new = [one for one in pool if not self.looks.voxels(one[1])]
        for done, (_, digest, scan) in enumerate(new):
            self.report("looking", done, len(new))
            with suppress(InputError):
                self._read(scan, digest, bundle)

    def _read(self, scan: AnyScan, digest: str, bundle: Bundle) -> Volume:
        """Return a scan as the model takes it, and keep the digest of its voxels.

        Raises:
            InputError: it can't be read.
        """
        kept = self.run.kept_options
        within: ReadOptions = {
            "volume": kept.get("volume"),
            "resample_tilt": bool(kept.get("resample_tilt")),
            "memory_bytes": self.options.memory_bytes,
            "one_slice": bool(bundle.takes_one_slice),
        }
        try:
            volume = scan.read(**within, channels=bundle.in_channels)
        except OSError as error:
            text = f"the operating system says: {error.strerror or type(error).__name__}"
            raise InputError("file.unreadable", text) from None
        self.looks.put_voxels(digest, voxel_digest(volume))
        return volume


def _look_at(
    volume: Volume,
    bundle: Bundle,
    options: SegmentOptions,
    with_disagreement: bool,
    has_members: bool,
    report: Progress,
) -> tuple[SecondLook, bool]:
    """Return the look at a scan, and whether the model has members that can disagree.

    Raises:
        NapariSegError: the model can't be run on it.
    """
    if with_disagreement:
        try:
            return second_look(volume, bundle, options, progress=report), True
        except BundleError as error:
            if error.code != "bundle.no_members":
                raise
            has_members = False
    return second_look(volume, bundle, options, with_disagreement=False, progress=report), has_members


def scans_of(
    rows: Sequence[CaseRow], folder: Path, bundle: Bundle
) -> tuple[dict[str, Case], dict[str, NapariSegError]]:
    """Return name -> scan of the cases of a run, and name -> error of those whose scan is absent or another one.

    A scan is found by the name of its case, by its path below the folder, or by the fingerprint of its files.

    Raises:
        InputError: `input.missing`, there is no such folder.
    """
    found, unsearched = find_cases([folder], bundle.channel_names)
    if not found and unsearched:
        raise unsearched[0][1]
    by_key, by_source = {case.key: case for case in found}, {case.source: case for case in found}
    by_files = {fingerprint(case.scan): case for case in found}
    cases: dict[str, Case] = {}
    faults: dict[str, NapariSegError] = {}
    for row in rows:
        named = [by_key.get(row.name), by_source.get(row.source), by_files.get(row.fingerprint or "-")]
        candidates = [case for case in named if case is not None]
        same = next((case for case in candidates if is_same(case.scan, row.fingerprint, row.input_sha256)), None)
        if same is not None:
            cases[row.name] = same
        elif candidates:
            text = (
                "the scan is another one than when it was segmented; run 'napari-seg predict' again with --redo changed"
            )
            faults[row.name] = InputError("queue.changed", text)
        else:
            text = "found no scan of this case; expected it in the folder of --scans, as predict was given it"
            faults[row.name] = InputError("queue.no_scan", text)
    return cases, faults


def accepted_scans(folder: Path, bundle: Bundle | None) -> tuple[list[AcceptedScan], dict[str, NapariSegError]]:
    """Return the accepted scans, and name -> error of those that this machine does not find.

    Args:
        folder: a training set of corrections, or any folder or list of scans.
        bundle: the model, for the names of its channels; None if it is not known.

    Raises:
        InputError: `input.missing`, there is no such folder; `accept.not_a_set`, the index of the set is damaged.
    """
    if not _is_training_set(folder):
        found, unsearched = find_cases([folder], () if bundle is None else bundle.channel_names)
        for _, fault in unsearched:
            if fault.code != "input.none":  # nothing is accepted yet
                raise fault
        return [AcceptedScan(case.key, scan_sha256(case.scan.files), case.scan) for case in found], {}
    scans: list[AcceptedScan] = []
    faults: dict[str, NapariSegError] = {}
    for case in read_training_set(folder).cases:
        path, scan = folder / case.image, None
        try:
            scan = referenced_scan(path) if path.name.endswith(ENDING) else find_scans(path)[0]
        except NapariSegError as error:
            faults[case.name] = error
        scans.append(AcceptedScan(case.name, case.scan, scan, case.part == "training", case.input_sha256))
    return scans, faults


def _is_training_set(folder: Path) -> bool:
    """Return whether a folder has the index of a training set of corrections, damaged or not."""
    try:
        return b"napari_seg" in (folder / INDEX).read_bytes()
    except OSError:
        return False
