"""Results of cases: what a worker hands back, and what a user gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from napari_seg.errors import Notice
from napari_seg.volume import rounded_ml


@dataclass(frozen=True)
class OutputFile:
    """A file of a result.

    Attributes:
        path: path relative to the output folder, with "/" on every system.
        sha256: digest of its content.
        bytes: its size.
        mtime_ns: its time of modification in ns since 1970, which a rename keeps.
    """

    path: str
    sha256: str
    bytes: int
    mtime_ns: int

    def to_record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"path": self.path, "sha256": self.sha256, "bytes": self.bytes, "mtime_ns": self.mtime_ns}


@dataclass(frozen=True)
class Outcome:
    """What a worker hands back for a segmented case, whose files lie complete in the staging folder.

    Attributes:
        outputs: role of a file ("labels", "overlay", "record", or another format) -> the file.
        volumes_ml: segment name -> volume in ml.
        confidence: segment name -> mean probability; segments without voxels are absent.
        notices: warnings about the scan or the result.
        run: how the model was run, as in the record.
        modality: DICOM's code of the modality; "" if unknown.
        input_sha256: digest of the files of the scan.
        seconds: time from opening the scan to writing the last file.
        read_seconds: part of it in which the scan was read.
        network_seconds: part of it in which the scan was segmented.
        write_seconds: part of it in which the files were written.
        peak_bytes: highest resident memory of the worker during the case; 0 if unknown.
    """

    outputs: dict[str, OutputFile]
    volumes_ml: dict[str, float] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    run: dict[str, Any] = field(default_factory=dict)
    modality: str = ""
    input_sha256: str = ""
    seconds: float = 0.0
    read_seconds: float = 0.0
    network_seconds: float = 0.0
    write_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class CaseResult:
    """Result of one case.

    Attributes:
        name: name of the case, unique in the run.
        status: "done", "failed" or "skipped".
        code: code of the error, or of the reason to skip the case; "" if done.
        message: the same in words, one line.
        source: file or folder of the scan, relative to the folder of the inputs.
        labels: file of the label map; None unless done.
        overlay: file of the preview; None unless done and requested.
        volumes_ml: segment name -> volume in ml.
        confidence: segment name -> mean probability; segments without voxels are absent.
        notices: warnings about the scan or the result.
        seconds: time from opening the scan to writing the last file.
        model: name of the model.
        is_earlier: whether an earlier run finished the case.
    """

    name: str
    status: Literal["done", "failed", "skipped"]
    code: str = ""
    message: str = ""
    source: str = ""
    labels: Path | None = None
    overlay: Path | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    seconds: float = 0.0
    model: str = ""
    is_earlier: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.name,
            "status": self.status,
            "code": self.code,
            "message": self.message,
            "source": self.source,
            "model": self.model,
            "labels": None if self.labels is None else str(self.labels),
            "overlay": None if self.overlay is None else str(self.overlay),
            "volumes_ml": {name: rounded_ml(ml) for name, ml in self.volumes_ml.items()},
            "confidence": {name: round(mean, 4) for name, mean in self.confidence.items()},
            "notices": [{"code": notice.code, "message": notice.message} for notice in self.notices],
            "seconds": round(self.seconds, 2),
            "is_earlier": self.is_earlier,
        }
