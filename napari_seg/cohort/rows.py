"""Rows of the manifest: models, runners, cases, and the claim of a runner on a case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from napari_seg.cohort.outcome import OutputFile
from napari_seg.errors import Notice

NOT_PLANNED = "cohort.not_planned"
"""Code of a case that an earlier run left waiting, and that is not among the inputs any more."""

RENAMED = "cohort.renamed"
"""Code of a result whose scan has another name by now."""

State = Literal["waiting", "running", "moving", "done", "failed", "skipped"]


@dataclass(frozen=True)
class ModelRow:
    """A model of the run.

    Attributes:
        id: number in the manifest.
        name: title of the bundle.
        version: version of the bundle.
        kind: format of the bundle.
        digest: digest of weights, and of the config and code that segment; see `model_digest`.
    """

    id: int
    name: str
    version: str
    kind: str
    digest: str


@dataclass(frozen=True)
class RunnerRow:
    """A process that ran, or runs, cases of the cohort.

    Attributes:
        id: number in the manifest.
        host: name of its machine.
        machine: text that two machines of one name, and containers with their own process ids, do not share.
        pid: its process id.
        folder: name of its hidden folder for unfinished files.
        is_joined: whether others may run beside it.
        started: time of its start, in seconds since 1970 UTC.
        ended: time of its orderly end; None while it runs, or if it was killed.
        version: version of this program.
    """

    id: int
    host: str
    machine: str
    pid: int
    folder: str
    is_joined: bool
    started: float
    ended: float | None
    version: str


@dataclass(frozen=True)
class CaseRow:
    """A case of the manifest.

    Attributes:
        id: number in the manifest; cases have the order in which they were planned.
        name: name of the case.
        source: public path of the scan, relative to the folder of the inputs.
        format: format of the scan.
        modality: DICOM's code of the modality, once the scan was read.
        place: digest of the path of the scan; see `scan_files.place_digest`.
        fingerprint: digest of sizes, times and single blocks of the scan's files; see `scan_files.fingerprint`.
        input_sha256: digest of the whole files of the scan, once it was segmented.
        input_bytes: size of the files of the scan.
        model: number of the model; None for a scan that is not run.
        settings: number of the settings; None before the first start.
        state: see the module.
        stage: stage of a running case.
        runner: number of the runner that claimed the case last; None if none did.
        attempts: how often the case was started.
        code: code of an error or of the reason to skip the case; "" otherwise.
        message: the same in words.
        seconds: time from opening the scan to writing the last file.
        read_seconds: part of it in which the scan was read.
        network_seconds: part of it in which the scan was segmented.
        write_seconds: part of it in which the files were written.
        peak_bytes: highest memory of the worker during the case; 0 if unknown.
        outputs: role -> file of the result.
        replaced: role -> file of the earlier result that a result replaces, while its files are moved.
        volumes_ml: segment name -> volume in ml.
        confidence: segment name -> mean probability.
        notices: warnings about the scan or the result.
        run: how the model was run.
        started: time of the last start, in seconds since 1970 UTC; None before it.
        ended: time of the end; None before it.
    """

    id: int
    name: str
    state: State
    source: str = ""
    format: str = ""
    modality: str = ""
    place: str = ""
    fingerprint: str = ""
    input_sha256: str = ""
    input_bytes: int = 0
    model: int | None = None
    settings: int | None = None
    stage: str = ""
    runner: int | None = None
    attempts: int = 0
    code: str = ""
    message: str = ""
    seconds: float = 0.0
    read_seconds: float = 0.0
    network_seconds: float = 0.0
    write_seconds: float = 0.0
    peak_bytes: int = 0
    outputs: dict[str, OutputFile] = field(default_factory=dict)
    replaced: dict[str, OutputFile] = field(default_factory=dict)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    run: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether a run was to make a result, and did not: the case waits, runs, or failed without an earlier one."""
        return self.state in ("waiting", "running", "moving") or (self.state == "failed" and not self.outputs)

    @property
    def has_result(self) -> bool:
        """Whether it has files with the noted values: it is done, or was until a run left out its scan."""
        is_left_out = self.state in ("failed", "skipped") and self.code != NOT_PLANNED
        return bool(self.outputs) and (self.state == "done" or is_left_out)


class Claim(NamedTuple):
    """A case that a runner holds: nobody else changes it, unless the runner seems dead and another one takes over.

    Attributes:
        number: number of the case.
        runner: number of the runner.
        attempt: how often the case was started, this time included.
        before: role -> file of its earlier result.
    """

    number: int
    runner: int
    attempt: int
    before: dict[str, OutputFile]
