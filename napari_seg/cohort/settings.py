"""Settings of a run over a cohort, defined once: command line, plugin, manifest and workers derive from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from napari_seg.formats.kinds import FormatName
from napari_seg.formats.scan import ReadOptions
from napari_seg.inference.options import SegmentOptions

Measured = Literal["complete", "all"]
"""Structures that statistics are written of: those that do not touch the border of the scan, or all."""


@dataclass(frozen=True)
class RunSettings:
    """How the cases of a run are read, segmented and written.

    Attributes:
        options: options of `segment`; `memory_bytes` limits all workers of this machine together.
        reading: keyword arguments of `Scan.read`.
        also: formats that are written in addition to NIfTI; DICOM formats apply to DICOM scans only.
        statistics: structures whose volume and mean intensity are written to `<name>_seg_statistics.json`.
        preview: also write a preview of each result, `<name>_seg.png`.
        timeout_seconds: time limit of one case; None: none.
        overwrite: replace files that this run did not write.
    """

    options: SegmentOptions = field(default_factory=SegmentOptions)
    reading: ReadOptions = field(default_factory=ReadOptions)
    also: tuple[FormatName, ...] = ()
    statistics: Measured | None = None
    preview: bool = True
    timeout_seconds: float | None = None
    overwrite: bool = False

    def for_scans(self, count: int) -> RunSettings:
        """Return these settings for a model that segments a number of scans of the run."""
        return replace(self, options=replace(self.options, scans=count))

    def to_record(self) -> dict[str, Any]:
        """Return what decides the content of the results, as plain values for JSON; memory and time limits do not."""
        options = self.options.to_record()
        del options["memory_bytes"]
        return {
            **options,
            "confidence_maps": self.options.confidence_maps,
            "also": sorted(self.also),
            "statistics": self.statistics,
            "preview": "written" if self.preview else "left out",
            "volume": self.reading.get("volume"),
            "resample_tilt": bool(self.reading.get("resample_tilt", False)),
        }


def with_defaults(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of settings as this version writes it, also if an earlier version wrote it.

    An option that the record lacks did not exist then, and counts as its default; `RESULTS` is raised if that gives
    other labels. The version of the program, which earlier records have, does not count. An empty record stays empty,
    because the settings are unknown.
    """
    if not record:
        return {}
    complete = {**RunSettings().to_record(), "version of results": 1, **record}
    complete.pop("version", None)
    return complete


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what changed between two records of settings, such as "tta was none and is shifts"."""
    before, now = with_defaults(before), with_defaults(now)
    changed = sorted(key for key in before.keys() | now.keys() if _plain(before.get(key)) != _plain(now.get(key)))
    return [f"{key} was {_words(before.get(key))} and is {_words(now.get(key))}" for key in changed]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "not set" if value is None else str(value)
