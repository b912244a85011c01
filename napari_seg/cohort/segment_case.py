"""Segment one case and write its files into a staging folder: the work of a worker process."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.naming import CONFIDENCE_MAPS
from napari_seg.cohort.outcome import Outcome, OutputFile
from napari_seg.cohort.outputs import STATISTICS, result_paths, staged_file, sync
from napari_seg.cohort.scan_files import scan_sha256
from napari_seg.cohort.settings import RunSettings
from napari_seg.errors import InputError, Notice, OutputError
from napari_seg.formats.atomic import atomic_write, not_written
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.kinds import DICOM_FORMATS, FormatName, check_memory_for
from napari_seg.formats.record import result_record, write_record
from napari_seg.memory import limited_to, peak_bytes, resident_bytes
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import LabelOrigin, Segmentation, Volume

if TYPE_CHECKING:
    from napari_seg.formats.scan import ReadOptions

_PROGRESS_SECONDS = 0.2
"""Minimum time between two reports of progress in one stage."""

_INFERENCE = logging.getLogger("napari_seg.inference")


def segment_case(
    case: Case,
    bundle: Bundle,
    staging: Path,
    settings: RunSettings,
    *,
    model_digest: str = "",
    memory_bytes: int | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[str], None] | None = None,
) -> Outcome:
    """Read a scan, segment it and write all its files into a folder.

    Args:
        case: the case.
        bundle: the model that segments it.
        staging: an empty folder that exists; the files get their final names in it.
        settings: settings of the run.
        model_digest: digest of the model, for the record.
        memory_bytes: most memory of this process and its reader; None for that of the settings.
        progress: called with (stage, done, total); besides the stages of `segment`: "reading" and "writing".
        on_plan: called with a line of text on the windows and the memory of the scan.

    Raises:
        NapariSegError: the scan can't be read or segmented, or its files can't be written.
    """
    from napari_seg.inference.fitness import fitted_options
    from napari_seg.inference.segment import segment

    settings = replace(settings, options=fitted_options(settings.options, bundle))
    report = _seldom(progress or ignore_progress)
    limit = memory_bytes if memory_bytes is not None else settings.options.memory_bytes
    _reset_peak()
    times = [time.perf_counter()]
    report("reading", 0, 1)
    is_dicom = case.scan.format == "dicom"
    try:
        within: ReadOptions = {"memory_bytes": limit, **settings.reading, "one_slice": bool(bundle.takes_one_slice)}
        volume = case.scan.read(**within, channels=bundle.in_channels)
        also = [kind for kind in settings.also if is_dicom or kind not in DICOM_FORMATS]
        with limited_to(None if limit is None else limit - resident_bytes()):
            check_memory_for(volume.grid.shape, also)
        input_sha256 = scan_sha256(case.scan.files)
    except OSError as error:
        text = f"the operating system says: {error.strerror or type(error).__name__}"
        raise InputError("file.unreadable", text) from None
    times.append(time.perf_counter())
    with _plans_to(on_plan):
        options = replace(settings.options, memory_bytes=limit)
        found = segment(volume, bundle, options, progress=report)
    if missing := [kind for kind in settings.also if kind not in also]:
        text = f"{case.name} is not a DICOM series, so {' and '.join(missing)} can't be written"
        found = replace(found, notices=(*found.notices, Notice("output.no_dicom", text)))
    times.append(time.perf_counter())
    report("writing", 0, 1)
    try:
        found, outputs = _write_files(case, bundle, volume, found, staging, settings, model_digest, input_sha256, also)
    except OSError as error:
        raise not_written(f"the results of {case.name}", error) from error
    times.append(time.perf_counter())
    volumes = found.volumes_ml()
    return Outcome(
        outputs=outputs,
        volumes_ml={one.name: volumes[one.label] for one in found.segments},
        confidence={one.name: found.confidence[one.label] for one in found.segments if one.label in found.confidence},
        notices=found.notices,
        run=dict(found.run),
        modality=volume.modality,
        input_sha256=input_sha256,
        seconds=times[-1] - times[0],
        read_seconds=times[1] - times[0],
        network_seconds=times[2] - times[1],
        write_seconds=times[3] - times[2],
        peak_bytes=_peak(),
    )


def _write_files(
    case: Case,
    bundle: Bundle,
    volume: Volume,
    found: Segmentation,
    staging: Path,
    settings: RunSettings,
    model_digest: str,
    input_sha256: str,
    also: list[FormatName],
) -> tuple[Segmentation, dict[str, OutputFile]]:
    """Write all files of a case; return the segmentation with notices on files that are left out, and the files.

    Raises:
        OSError: a file could not be written.
        OutputError: `output.not_equal`, a file reads back with other content; `output.disk_full`.
    """
    from napari_seg.evaluation.structure_statistics import structure_statistics
    from napari_seg.formats.nifti import write_map, write_nifti

    targets = result_paths(case)
    outputs: dict[str, OutputFile] = {}

    def path_of(role: str) -> Path:
        return staging / targets[role].name

    write_nifti(found, path_of("labels"))
    outputs["labels"] = staged_file(path_of("labels"), targets["labels"])
    if settings.preview:
        from napari_seg.evaluation.overlay import draw_overlay

        draw_overlay(volume, found, path_of("overlay"), title=case.name)
        outputs["overlay"] = staged_file(path_of("overlay"), targets["overlay"])
    for role in targets:
        path = path_of(role)
        if role in also:
            if notice := _write_other_format(found, role, path, volume, bundle):
                found = replace(found, notices=(*found.notices, notice))
                continue
        elif role in CONFIDENCE_MAPS and found.confidence_maps is not None:
            write_map(getattr(found.confidence_maps, role), found.grid, path)
        elif role == STATISTICS and settings.statistics is not None:
            figures = structure_statistics(volume, found, include_incomplete=settings.statistics == "all")
            if notice := _incomplete(found, figures):
                found = replace(found, notices=(*found.notices, notice))
            atomic_write(path, json.dumps(figures, indent=4))
        else:
            continue
        outputs[role] = staged_file(path, targets[role])
    record = result_record(volume, found, source=case.source, made_by=(bundle.name, bundle.version))
    record["bundle"]["sha256"] = model_digest
    record["input_sha256"] = input_sha256
    if isinstance(case.scan, ChannelSet):
        record["channels"] = {name: scan.name for name, scan in case.scan.channels}
    record["options"] = settings.options.resolved(bundle).to_record()
    record["options"]["tta"] = record["options"].get("tta") or bundle.tta
    beside = {role: file.sha256 for role, file in outputs.items() if role not in ("labels", "overlay")}
    record |= {"sha256": outputs["labels"].sha256, "beside": beside}
    if "overlay" in outputs:
        record["overlay_sha256"] = outputs["overlay"].sha256
    write_record(path_of("record"), record)
    outputs["record"] = staged_file(path_of("record"), targets["record"])
    sync(staging)
    return found, outputs


def _write_other_format(
    found: Segmentation, kind: FormatName, path: Path, volume: Volume, bundle: Bundle
) -> Notice | None:
    """Write the labels in another format than NIfTI; return a notice if the format can't store them."""
    from napari_seg.formats.kinds import write_as

    made_by = LabelOrigin("AUTOMATIC", (bundle.name, bundle.version), is_model=True)
    try:
        write_as(kind, found, path, scan=volume.source, made_by=made_by)
    except OutputError as error:
        if error.code in ("output.disk_full", "output.not_written"):
            raise
        return Notice(error.code, f"{path.name} is left out: {error.message}")
    return None


def _incomplete(found: Segmentation, figures: dict[str, dict[str, float]]) -> Notice | None:
    """Return a notice that names the structures that were found and have zeros in the statistics; None without one."""
    counts = found.voxel_counts()
    names = [one.name for one in found.segments if counts[one.label] and not figures[one.name]["volume"]]
    if not names:
        return None
    shown = ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
    text = (
        f"the statistics have zeros for {len(names)} structures that touch the border of the scan ({shown}), as "
        "TotalSegmentator's do; --statistics-all measures them too"
    )
    return Notice("result.at_border", text)


def _seldom(report: Progress) -> Progress:
    """Return a progress that passes on the first and the last step of a stage, and of the others a few a second."""
    last_stage, last_time = "", 0.0

    def on_step(stage: str, done: int, total: int) -> None:
        nonlocal last_stage, last_time
        now = time.monotonic()
        if stage != last_stage or done >= total or now - last_time > _PROGRESS_SECONDS:
            last_stage, last_time = stage, now
            report(stage, done, total)

    return on_step


class _Handler(logging.Handler):
    """Hand the text of log records to a function."""

    def __init__(self, take: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on the text of a record."""
        self._take(record.getMessage())


@contextmanager
def _plans_to(on_plan: Callable[[str], None] | None) -> Iterator[None]:
    """Hand the lines that inference logs on a scan to a function."""
    if on_plan is None:
        yield
        return

    handler, level = _Handler(on_plan), _INFERENCE.level
    _INFERENCE.addHandler(handler)
    _INFERENCE.setLevel(logging.INFO)
    try:
        yield
    finally:
        _INFERENCE.removeHandler(handler)
        _INFERENCE.setLevel(level)


def _reset_peak() -> None:
    """Let Linux measure the peak of the memory from now on."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Return the highest resident memory since `_reset_peak`; since the start of the process on other systems."""
    if sys.platform == "linux":
        with suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return peak_bytes()
