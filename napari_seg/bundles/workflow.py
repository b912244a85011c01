"""Run a bundle exactly as its inference config is written: MONAI's `ConfigWorkflow`, in a process of its own.

This way is for bundles that the engine can't express, after the user's consent: the bundle's code may do anything that
the user may do. napari-seg writes the scan as NIfTI into a private temporary folder, tells the config where it is
(`overrides`), and reads the saved label map back. It resamples nothing: a result on another grid is refused.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.causes import cause_of
from napari_seg.bundles.config.read import inference_config
from napari_seg.bundles.content import consent_hash
from napari_seg.bundles.spec import METADATA, Bundle
from napari_seg.bundles.workflow_plan import RUN_IDS, WorkflowPlan, plan_workflow
from napari_seg.errors import BundleError, ChoiceNeeded, InputError, Notice, one_line
from napari_seg.evaluation.metrics import on_grid
from napari_seg.formats.endings import nifti_ending
from napari_seg.formats.nifti import read_nifti, write_map
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.geometry import Grid
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import (
    MAX_LABEL,
    Segment,
    Segmentation,
    Volume,
    distinct_color,
    labels_in,
    smallest_label_type,
)
from napari_seg.worker import WorkerError, WorkerProcess

log = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 0.5
_MAX_LOG_BYTES = 2**18
_MAX_LINE = 300
_ROUNDING = 1e-3
"""Distance from a whole number that comes from float32 alone."""


def run_workflow(
    volume: Volume, bundle: Bundle, device: str = "cpu", progress: Progress | None = None, digest: str = ""
) -> Segmentation:
    """Return the label map that a bundle's own workflow saves for a scan.

    Args:
        volume: the scan.
        bundle: a bundle whose code may run.
        device: torch's name of a device.
        progress: called with the stages "loading" and "segmenting" twice a second; if it raises, the process is killed.
        digest: consent hash that the user trusted; "" if it need not be compared.

    Returns:
        Labels on the scan's grid, without confidence; the scan's notices and those on the labels.

    Raises:
        BundleError: `bundle.workflow`, the config can't be run here, or it failed; `bundle.workflow_output`, it saved
            no label map, or one on another grid; `bundle.channels`, it reads another number of images;
            `bundle.dimensions`, the scan is a 2D image;
            `bundle.trust_changed`, its files changed while it was started.
        EnvironmentFault: `environment.memory` or `environment.ended`, the process died.
        Cancelled: `progress` raised it.
    """
    if volume.grid.shape[2] == 1:
        raise BundleError(
            "bundle.dimensions",
            f"bundle {bundle.root.name!r} runs its own workflow, which napari-seg gives volumes only; found a 2D image",
        )
    report = progress or ignore_progress
    report("loading", 0, 1)
    plan = plan_workflow(bundle)
    with TemporaryFolder() as folder:
        case, notices = _write_case(volume, plan, bundle, folder)
        worker = WorkerProcess()
        try:
            worker.run(
                run_config,
                bundle,
                plan,
                case,
                folder,
                device=device,
                digest=digest,
                callbacks={"progress": report},
            )
        except WorkerError as error:
            log.debug("a workflow failed: %s\n%s", error.kind, error.places)
            raise _failed(bundle, error.kind) from None
        finally:
            worker.close()
            _log_output(bundle, folder / "printed.txt")
        result = _only_result(bundle, folder / "result")
        labels, label_notices = _read_labels(bundle, result, volume.grid)
    return Segmentation(
        labels, volume.grid, _segments(bundle, labels), notices=(*volume.notices, *notices, *label_notices)
    )


def run_config(
    bundle: Bundle,
    plan: WorkflowPlan,
    case: dict[str, Any],
    folder: Path,
    *,
    device: str,
    digest: str,
    progress: Progress,
) -> None:
    """Run a bundle's config in this process, which is used for nothing else; what it prints goes to a file.

    Args:
        bundle: a bundle whose code may run.
        plan: its plan.
        case: key -> file or files of the case.
        folder: folder of this run; the result lies in `result`.
        device: torch's name of a device.
        digest: consent hash that the user trusted; "" if it need not be compared.
        progress: called while it runs.

    Raises:
        BundleError: `bundle.workflow`, the config or the bundle's code failed; `bundle.trust_changed`.
    """
    _redirect_output(folder / "printed.txt")
    root, stage = bundle.root, "loading"
    if digest and consent_hash(bundle) != digest:
        text = f"a file of bundle {root.name!r} changed while it was started; check it and start again"
        raise BundleError("bundle.trust_changed", text)
    stop = _heartbeat(lambda: progress(stage, 0, 1))
    try:
        import torch
        from monai.bundle import ConfigWorkflow

        from napari_seg.bundles.modules import import_from_source

        sys.dont_write_bytecode = True
        import_from_source(root)
        sys.path.insert(1, str(root))  # MONAI does so too, but only after `initialize`
        # a config without bundle_root is written for the bundle's folder as working directory
        os.chdir(folder if "bundle_root" in plan.ids else root)
        workflow = ConfigWorkflow(
            config_file=str(inference_config(root)),
            meta_file=str(root / METADATA),
            logging_file=False,
            run_id=plan.run_id or RUN_IDS[0],
            workflow_type="inference",
            **plan.overrides(case, root, folder, torch.device(device)),
        )
        workflow.initialize()
        progress(stage, 1, 1)
        stage = "segmenting"
        workflow.run()
        workflow.finalize()
        progress(stage, 1, 1)
    except (Exception, SystemExit) as error:  # foreign code can raise anything
        if isinstance(error, MemoryError):
            raise
        raise _failed(bundle, cause_of(error, root)) from None
    finally:
        stop()


def _failed(bundle: Bundle, cause: str) -> BundleError:
    return BundleError(
        "bundle.workflow",
        f"bundle {bundle.root.name!r} failed as MONAI ran its own workflow: {cause}; check that the scan is of the "
        "kind that the bundle expects",
    )


def _write_case(
    volume: Volume, plan: WorkflowPlan, bundle: Bundle, folder: Path
) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """Write a scan as the config reads it, and return key -> file or files, and notices.

    One key takes all channels, as a list of files if there are several; as many keys as channels take one each.
    """
    for name in ("images", "result", "other"):
        (folder / name).mkdir()
    channels, keys = len(volume.array), plan.image_keys
    if len(keys) not in (1, channels):
        raise BundleError(
            "bundle.channels",
            f"the scan has {channels} channel(s); bundle {bundle.root.name!r} reads {len(keys)} images "
            f"({one_line(', '.join(keys), _MAX_LINE)})",
        )
    files = []
    for number, channel in enumerate(volume.array):
        files.append(folder / "images" / f"image_{number}.nii")
        write_map(_storable(channel), volume.grid, files[-1])
    names = [str(file) for file in files]
    case: dict[str, Any] = dict(zip(keys, names, strict=True)) if len(keys) == channels else {keys[0]: names}
    notices: tuple[Notice, ...] = ()
    if plan.label_keys:
        empty = folder / "images" / "empty.nii"
        write_map(np.zeros(volume.grid.shape, np.uint8), volume.grid, empty)
        case |= dict.fromkeys(plan.label_keys, str(empty))
        text = (
            f"bundle {bundle.root.name!r} reads reference labels too, which a scan does not have; they were left empty"
        )
        notices = (Notice("bundle.empty_labels", text),)
    return case, notices


def _storable(channel: NDArray) -> NDArray:
    """Return a channel in a type that NIfTI and MONAI's readers have."""
    is_common = channel.dtype.kind in "iu" or channel.dtype in (np.float32, np.float64)
    return channel if is_common else channel.astype(np.float32)


def _only_result(bundle: Bundle, folder: Path) -> Path:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(found) != 1 or not nifti_ending(found[0]):
        names = ", ".join(one_line(path.name, 60) for path in found[:4]) or "no file"
        raise _unusable(bundle, f"saved {names}{', …' * (len(found) > 4)}", "one NIfTI file with the labels")
    return found[0]


def _read_labels(bundle: Bundle, path: Path, grid: Grid) -> tuple[NDArray[np.unsignedinteger], tuple[Notice, ...]]:
    """Return the saved labels in the voxel order of a grid, and notices.

    Several channels become labels if the metadata declares a threshold for each; of several structures in a voxel, the
    last one wins, as in the engine.
    """
    try:
        saved = read_nifti(path)
        labels, notices = _as_whole_numbers(bundle, saved.array[0])
    except ChoiceNeeded as several:
        if several.count != len(bundle.thresholds):
            found = f"saved {several.count} channels"
            raise _unusable(bundle, found, "one label for each voxel, or thresholds in its metadata") from several
        saved, notices = read_nifti(path, 0), ()
        labels = np.zeros(saved.grid.shape, smallest_label_type(several.count))
        for channel, threshold in enumerate(bundle.thresholds):
            labels[read_nifti(path, channel).array[0] > threshold] = channel + 1
    except InputError as error:
        raise _unusable(bundle, f"saved a file that is no label map ({error})", "one label for each voxel") from error
    segmentation = Segmentation(labels, saved.grid, ())
    try:
        return on_grid(segmentation, grid), notices
    except InputError as error:
        found = f"saved labels on another grid than the scan's ({error.message})"
        raise _unusable(bundle, found, "the scan's") from error


def _as_whole_numbers(bundle: Bundle, array: NDArray) -> tuple[NDArray[np.unsignedinteger], tuple[Notice, ...]]:
    low, high = float(array.min()), float(array.max())
    if low < -_ROUNDING or high > MAX_LABEL:
        raise _unusable(bundle, f"saved values from {low:g} to {high:g}", f"labels from 0 to {MAX_LABEL}")
    labels = np.empty(array.shape, smallest_label_type(max(round(high), 0)))
    between = 0
    for plane, values in zip(labels, array, strict=True):  # one plane at a time, because rint copies
        whole = np.rint(values)
        between += int(np.count_nonzero(np.abs(values - whole) > _ROUNDING))
        plane[...] = whole
    if not between:
        return labels, ()
    text = (
        f"{between} of {labels.size} voxels lay between two labels, because bundle {bundle.root.name!r} interpolates "
        "labels; they were rounded"
    )
    return labels, (Notice("result.rounded", text),)


def _unusable(bundle: Bundle, found: str, expected: str) -> BundleError:
    return BundleError(
        "bundle.workflow_output", f"the workflow of bundle {bundle.root.name!r} {found}; expected {expected}"
    )


def _segments(bundle: Bundle, labels: NDArray[np.unsignedinteger]) -> tuple[Segment, ...]:
    """Return the segments of the metadata, and one for each other label in the result."""
    by_label = {segment.label: segment for segment in bundle.segments}
    for label in labels_in(labels):
        if label and label not in by_label:
            by_label[label] = Segment(label, f"segment {label}", distinct_color(label))
    return tuple(by_label[label] for label in sorted(by_label))


def _redirect_output(path: Path) -> None:
    """Send all that this process prints from now on to a file."""
    with path.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _log_output(bundle: Bundle, path: Path) -> None:
    """Log the end of what a bundle printed."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _MAX_LOG_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:  # it never started
        return
    for line in text.splitlines():
        if line.strip():
            log.info("%s: %s", bundle.root.name, one_line(line, _MAX_LINE))


def _heartbeat(beat: Callable[[], None]) -> Callable[[], None]:
    """Call a function in a thread twice a second; return the function that ends this."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(_HEARTBEAT_SECONDS):
            beat()

    thread = threading.Thread(target=run, name="napari-seg heartbeat", daemon=True)
    thread.start()

    def stop() -> None:
        done.set()
        thread.join()

    return stop
