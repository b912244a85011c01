"""Decide what a run does with each case, from what earlier runs noted in the manifest."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.outcome import OutputFile
from napari_seg.cohort.outputs import are_unchanged, is_damaged
from napari_seg.cohort.rows import CaseRow, ModelRow
from napari_seg.cohort.scan_files import fingerprint_if_same, is_of_headers_alone, place_digest
from napari_seg.cohort.settings import RunSettings, differences
from napari_seg.errors import BundleError, CohortError
from napari_seg.inference.fitness import fitted_options
from napari_seg.inference.options import SegmentOptions
from napari_seg.version import RESULTS

Redo = Literal["none", "changed", "all"]
"""Results of earlier runs to make again: none; those of other options, weights or scans; all."""

Decision = Literal["run", "keep", "busy", "other scan", "changed"]
"""What a run does with a case: segment it; keep the result of an earlier run; leave it to another runner; refuse it,
because the result of that name was made from another scan, or otherwise."""


@dataclass(frozen=True)
class Wanted:
    """How a case is to be segmented.

    Attributes:
        settings: content of the settings; see `settings_content`.
        model_name: name of the model.
        model_digest: digest of the model.
    """

    settings: Mapping[str, Any]
    model_name: str
    model_digest: str


def settings_content(settings: RunSettings) -> dict[str, Any]:
    """Return settings as the manifest stores them."""
    return dict(json.loads(json.dumps(settings.to_record() | {"version of results": RESULTS})))


def with_fitted_names(content: Mapping[str, Any], bundles: Iterable[Bundle]) -> dict[str, Any]:
    """Return content of settings with the required structures as bundles spell them.

    Args:
        content: see `settings_content`.
        bundles: the bundles; the names that one of them does not have stay as they are.
    """
    given, fitted = tuple(content.get("structures") or ()), list[str]()
    for bundle in bundles if given else ():
        try:
            fitted += fitted_options(SegmentOptions(structures=given), bundle).structures
        except BundleError:  # an earlier bundle had them
            fitted += given
    return {**content, "structures": list(dict.fromkeys(fitted))} if fitted else dict(content)


def other_scan(case: Case, row: CaseRow) -> str:
    """Return why a scan is refused whose name the result of another one has, or of files that were not all noted."""
    if is_of_headers_alone(case.scan.files, row.input_sha256):
        return (
            f"an earlier version made the result {case.key} and noted only the header of the scan, not its pixel file, "
            "so that nothing shows whether the scan is the same; choose another folder, or pass --redo to replace it"
        )
    return (
        f"the result {case.key} belongs to another scan, or to this scan before it changed; choose another folder, or "
        "pass --redo to replace it"
    )


class Resume:
    """Compares cases with the results in an output folder.

    Args:
        output: the output folder.
        manifest: its manifest; settings are read at once, so that it need not stay open.
        models: its models, see `with_present_digests`.
        redo: results to make again.
        overwrite: whether results that a person edited are made again, too.

    Attributes:
        changes: number of a case in the manifest -> new values, of results that are kept and whose scans were moved, or
            were left out by an earlier run.
        refusals: key of a case whose name the result of another scan has -> why it is refused.
    """

    def __init__(
        self,
        output: Path,
        manifest: Manifest,
        models: Iterable[ModelRow],
        redo: Redo,
        overwrite: bool,
    ) -> None:
        self._output = output
        self._models = {model.id: model for model in models}
        self._settings = manifest.all_settings()
        self._salt = manifest.salt
        self._redo = redo
        self._overwrite = overwrite
        self.changes: dict[int, dict[str, str]] = {}
        self.refusals: dict[str, str] = {}
        self._changes: Counter[str] = Counter()
        self._changed = 0

    def decide(self, case: Case, row: CaseRow | None, wanted: Wanted) -> Decision:
        """Return what to do with a case; its files are read whole only if their fingerprint differs.

        Args:
            case: the case.
            row: the case in the manifest; None if it is new.
            wanted: how it is to be segmented.
        """
        if row is not None and row.state in ("running", "moving"):
            return "busy"
        if row is None or not row.has_result or self._redo == "all":
            return "run"
        fingerprint = fingerprint_if_same(case.scan, row.fingerprint, row.input_sha256)
        is_of_scan = fingerprint is not None
        changes = self._differences(case, row, wanted)
        if self._redo == "changed" and (changes or not is_of_scan):
            return "run"
        if not is_of_scan:
            self.refusals[case.key] = other_scan(case, row)
            return "other scan"
        if changes:
            self._changed += 1
            self._changes.update(changes)
            return "changed"
        if not self._has_files(row):
            return "run"
        now = {"state": "done", "code": "", "message": "", "source": case.source, "fingerprint": fingerprint or ""}
        now["place"] = place_digest(case.scan, self._salt)
        if any(getattr(row, name) != value for name, value in now.items()):
            self.changes[row.id] = now
        return "keep"

    def check(self) -> None:
        """Refuse to mix results of different options or weights in one folder, after all cases were compared.

        Raises:
            CohortError: `cohort.changed`.
        """
        if self._changed:
            changes = "; ".join(change for change, _ in self._changes.most_common())
            text = (
                f"{self._output} has {self._changed} results of these scans that were made with other settings: "
                f"{changes}; choose another folder, or pass --redo to make them again"
            )
            raise CohortError("cohort.changed", text)

    def _differences(self, case: Case, row: CaseRow, wanted: Wanted) -> list[str]:
        before = self._settings.get(row.settings or 0, {})
        changes = differences(before, wanted.settings)
        if changes and case.bundle is not None:  # perhaps only in the spelling of structures
            fitted = [with_fitted_names(one, [case.bundle]) for one in (before, wanted.settings)]
            changes = differences(*fitted)
        model = self._models.get(row.model or 0)
        if model is not None and model.digest != wanted.model_digest:
            if model.name == wanted.model_name:
                changes.append(f"the weights or code of {model.name!r} changed")
            else:
                changes.append(f"the model was {model.name!r} and is {wanted.model_name!r}")
        return changes

    def _has_files(self, row: CaseRow) -> bool:
        """Return whether the files of a result are there; without `overwrite`, edited ones count, too."""
        if self._overwrite:
            return are_unchanged(self._output, row.outputs)

        def is_there(file: OutputFile) -> bool:
            path = self._output / file.path
            return os.path.isfile(path) and (os.path.getsize(path) == file.bytes or not is_damaged(path))

        return all(map(is_there, row.outputs.values()))
