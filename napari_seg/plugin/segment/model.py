"""State of the Segment tab, without Qt: choose a model, estimate, run scans one after the other, stop, show results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_seg.errors import BundleError, Cancelled, NapariSegError
from napari_seg.inference.estimate import estimate
from napari_seg.inference.options import SegmentOptions
from napari_seg.plugin.foreign_layers import loaded
from napari_seg.plugin.job import NETWORKS, Job
from napari_seg.plugin.layer_info import placement_of, volume_of
from napari_seg.plugin.messages import Message, in_window_words, message_of, words_of
from napari_seg.plugin.segment.run import Run
from napari_seg.plugin.session import Session
from napari_seg.volume import Volume

if TYPE_CHECKING:
    from napari_seg.bundles.precision import Precision
    from napari_seg.bundles.spec import Bundle

logger = logging.getLogger(__name__)

DEVICES = {"auto": "Automatic", "cpu": "Processor (CPU)", "cuda": "Graphics card (CUDA)"}


class SegmentModel:
    """The state of the Segment tab of one viewer.

    Attributes:
        changed: emitted whenever something the tab shows has changed.
        shown: emitted when what a run found was added to the viewer.
        session: gives the scan, and takes what is said.
        bundles: what can be run.
        bundle: the chosen one.
        device: a key of `DEVICES`.
        certainty: whether a layer with the network's confidence is wanted too.
        memory_bytes: what the program may hold at most; None: a safe share of what is free.
        precision: what networks compute in.
        run: the run under way, if any.
        waiting: runs that come after it.
    """

    changed = Signal()
    shown = Signal()

    def __init__(self, session: Session, bundle_folders: Sequence[Path] = ()) -> None:
        self.session = session
        self.bundles: list[Bundle] = []
        self.bundle: Bundle | None = None
        self.device = "auto"
        self.certainty = False
        self.memory_bytes: int | None = None
        self.precision: Precision = "auto"
        self.run: Run | None = None
        self.waiting: list[Run] = []
        self._estimate: tuple[object, str] = (None, "")
        self._is_estimating = False
        self._find_bundles(bundle_folders)
        session.changed.connect(self.changed.emit)

    @property
    def options(self) -> SegmentOptions:
        """How any scan is segmented."""
        return SegmentOptions(device=self.device, memory_bytes=self.memory_bytes, precision=self.precision)

    # choosing

    def choose_bundle(self, bundle: Bundle | None) -> None:
        """Sets what to run."""
        self.bundle = bundle
        self.session.drop_errors()
        self.changed.emit()

    def choose_device(self, device: str) -> None:
        """Sets where to run it, a key of `DEVICES`."""
        self.device = device
        self.session.drop_errors()
        self.changed.emit()

    def choose_certainty(self, wanted: bool) -> None:
        """Sets whether a layer with the network's confidence is wanted too."""
        self.certainty = wanted
        self.changed.emit()

    def add_bundle(self, folder: Path) -> None:
        """Read a bundle's metadata, list and choose it, also when napari is started again; run none of its code."""
        from napari_seg.bundles.spec import read_bundle
        from napari_seg.plugin.preferences import remember_bundle

        try:
            bundle = read_bundle(folder)
        except BundleError as error:
            self.session.say(message_of(error))
            return
        known = next((one for one in self.bundles if one.root == bundle.root), None)
        if known is None:
            self.bundles.append(bundle)
            remember_bundle(bundle.root)
        self.session.say()  # what was said before is about something else
        self.choose_bundle(known or bundle)

    def trust(self) -> None:
        """Lets the code of the chosen bundle run, until napari is closed."""
        from napari_seg.bundles.spec import read_bundle

        assert self.bundle is not None
        trusted = read_bundle(self.bundle, trust=True)
        self.bundles[self.bundles.index(self.bundle)] = trusted
        self.choose_bundle(trusted)

    @property
    def card(self) -> list[tuple[str, str]]:
        """What a person wants to know of the chosen bundle: headings and texts."""
        bundle = self.bundle
        if bundle is None:
            return []
        names = [segment.name for segment in bundle.segments]
        found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        accuracy = ", ".join(f"{name.replace('dice', 'Dice')} {value:.3g}" for name, value in bundle.accuracy)
        rows = [
            ("Finds", found),
            ("Wants", bundle.images or f"{bundle.modality or 'any'} scans"),
            ("Accuracy", accuracy or "not reported"),
            ("Use", bundle.intended_use),
            ("Licence", bundle.licence or "not stated"),
            ("Trust", "its code may run" if bundle.trusted else "not trusted: it brings code of its own"),
        ]
        return [(heading, text) for heading, text in rows if text]

    @property
    def obstacle(self) -> str:
        """Why Run is greyed, for a person; "" when it isn't."""
        viewer = self.session.viewer
        if self.bundle is None:
            return "There is no model to run."
        if self.session.scan is None:
            refused = [self.session.refusals[layer] for layer in viewer.layers if layer in self.session.refusals]
            if refused:
                return f"{refused[-1]}."
            return "Open a scan first: drop a NIfTI file or a DICOM folder into the window."
        if not self.bundle.trusted:
            return "This model brings code of its own. Press Trust if you know where it comes from."
        volume = volume_of(self.session.scan)
        return "" if volume is None else _misfit(volume, self.bundle)

    # estimating

    @property
    def estimate_text(self) -> str:
        """Return what the chosen run is expected to take, for a person; "" while a run is under way."""
        key = self._estimate_key
        if key is None or self.run is not None:
            return ""
        known, text = self._estimate
        return text if known == key else "Estimating time and memory …"

    @property
    def needs_estimate(self) -> bool:
        """Return whether there is no estimate of the chosen run yet."""
        key = self._estimate_key
        return key is not None and key != self._estimate[0] and self.run is None

    def start_estimate(self) -> None:
        """Estimate the chosen run in a job; one estimate at a time."""
        if not self.needs_estimate or self._is_estimating:
            return
        scan, bundle, key = self.session.scan, self.bundle, self._estimate_key
        assert scan is not None
        assert bundle is not None
        volume = volume_of(scan)
        assert volume is not None
        self._is_estimating = True
        work = partial(_estimate, volume, bundle, self.options)
        self.session.jobs.start(work, on_result=partial(self._on_estimated, key), on_end=self._on_estimate_ended)

    @property
    def _estimate_key(self) -> object:
        """Return everything that the estimate depends on; None if nothing can be run."""
        if self.obstacle or self.bundle is None:
            return None
        return self.session.scan, self.bundle.root, self.device, self.memory_bytes, self.precision

    def _on_estimated(self, key: object, text: str) -> None:
        self._estimate = (key, text)

    def _on_estimate_ended(self) -> None:
        self._is_estimating = False
        self.changed.emit()

    # running

    def start(self) -> Run:
        """Run the chosen bundle on the chosen scan in a job; after the run under way, if there is one."""
        layer, bundle = self.session.scan, self.bundle
        assert layer is not None, self.obstacle
        assert bundle is not None, self.obstacle
        volume = volume_of(layer)
        assert volume is not None
        options = replace(self.options, confidence_maps=self.certainty)
        run = Run(volume, bundle, options, layer.name, placement_of(layer).for_new_layer())
        if self.run is None:
            self._execute(run)
            self.session.say()
        else:
            self.waiting.append(run)
            self.changed.emit()
        return run

    def stop(self) -> None:
        """Give up the run under way and those that wait; the viewer stays as it was."""
        if self.run is not None:
            assert self.run.job is not None
            self.run.job.abandon()
            self.run, self.waiting = None, []
            self.session.say(Message("info", "Stopped. Nothing was added."))

    def _execute(self, run: Run) -> None:
        self.run = run
        run.job = self.session.jobs.start(
            run.execute,
            on_result=lambda _: self._show(run),
            on_error=partial(self._fail, run),
            on_end=self._on_run_ended,
        )

    def _on_run_ended(self) -> None:
        self.run = None
        if self.waiting:
            self._execute(self.waiting.pop(0))
        self.session.changed.emit()  # the scan can be chosen again

    def _fail(self, run: Run, error: Exception) -> None:
        message, scan = message_of(error), self.session.scan
        if scan is None or volume_of(scan) is not run.volume:
            message = replace(message, text=f"{run.image_name}: {message.text}")
        self.session.say(*_warnings_of(run), message)

    def _show(self, run: Run) -> None:
        viewer, is_painting = self.session.viewer, self.session.is_painting
        active = viewer.layers.selection.active
        for layer in reversed(run.layers):  # the labels last: on top, and active
            viewer.add_layer(layer)
        if is_painting:  # a stroke must end in the layer where it began
            viewer.layers.selection.active = active
        assert run.segmentation is not None
        self.session.say(
            *(Message("warning", words_of(notice)) for notice in run.segmentation.notices),
            *_warnings_of(run),
            Message("info", f"Done in {run.seconds:.0f} s."),
        )
        self.shown.emit()

    def _find_bundles(self, folders: Sequence[Path]) -> None:
        from napari_seg.bundles.spec import find_bundles

        try:
            self.bundles, faults = find_bundles(folders)
            self.session.messages = [message_of(fault) for fault in faults]
        except NapariSegError as error:
            self.session.messages = [message_of(error)]
        self.bundle = self.bundles[0] if self.bundles else None


def _warnings_of(run: Run) -> list[Message]:
    return [Message("warning", in_window_words(text)) for text in run.unnoted_warnings]


def _estimate(volume: Volume, bundle: Bundle, options: SegmentOptions, job: Job) -> str:
    """Return what a run is expected to take, for a person; "" if that can't be estimated. In the thread of a job."""
    try:
        known = job.call(NETWORKS, estimate, loaded(volume), bundle, options)
    except Cancelled:
        raise
    except NapariSegError as error:
        return words_of(error)
    except Exception as error:  # the run itself will say what is wrong
        logger.debug("nothing could be estimated (%s)", type(error).__name__)
        return ""
    if known is None:
        return ""
    windows = f"{known.windows} window{'s' * (known.windows != 1)}"
    where = " and finding the place" if known.locates else ""
    return f"Will take about {known.time} in all, for {windows}{where}, and {known.memory} of memory."


def _misfit(volume: Volume, bundle: Bundle) -> str:
    """Why a bundle can't be run on a scan, told without loading torch; "" where it can."""
    from napari_seg.inference.settings import check_fit

    try:
        check_fit(volume, bundle)
    except BundleError as error:
        return in_window_words(error.message)
    return ""
