"""What the Segment tab does, without Qt: choose a model, foresee, run one after the other, stop, show the answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari.layers import Layer
from psygnal import Signal

from napari_seg.errors import BundleError, Cancelled, NapariSegError, Notice
from napari_seg.inference import segment
from napari_seg.inference.estimate import foresee
from napari_seg.plugin.foreign_layers import loaded
from napari_seg.plugin.job import NETWORKS
from napari_seg.plugin.layer_info import placement_of, volume_of
from napari_seg.plugin.layers import confidence_layer, labels_layer, layer_of
from napari_seg.plugin.messages import in_window_words, words_of
from napari_seg.plugin.placement import LayerPlacement
from napari_seg.plugin.session import Message, Session, message_of
from napari_seg.volume import Segmentation, Volume

if TYPE_CHECKING:
    from napari_seg.bundles.precision import Precision
    from napari_seg.bundles.spec import Bundle
    from napari_seg.inference.segment import Options

logger = logging.getLogger(__name__)

DEVICES = {"auto": "Automatic", "cpu": "Processor (CPU)", "cuda": "Graphics card (CUDA)"}

STAGES = {"locating": "Finding the place", "loading": "Loading the model", "segmenting": "Segmenting"}


_busy = threading.Lock()
"""Held while a network runs: two at once would take twice the memory that was planned for one."""


@contextmanager
def alone(is_stopping: Callable[[], bool]) -> Iterator[None]:
    """Waits until no other run is under way, a stopped one that is busy with its last window among them.

    Args:
        is_stopping: whether to give up waiting.

    Raises:
        Cancelled: it was.
    """
    while not _busy.acquire(timeout=0.1):
        if is_stopping():
            raise Cancelled()
    try:
        yield
    finally:
        _busy.release()


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: in words for a person.
        done: steps of this stage that are done.
        total: steps of this stage; 0 while that is not known or there is but one.
        seconds_left: of this stage; None while that can't be told.
    """

    stage: str
    done: int = 0
    total: int = 0
    seconds_left: float | None = None

    def __str__(self) -> str:
        text = f"{self.stage}: {self.done} of {self.total}" if self.total else f"{self.stage} …"
        if self.seconds_left is None or self.done >= self.total:
            return text
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return f"{text}, {f'{minutes} min ' if minutes else ''}{seconds} s left"


class _Collecting(logging.Handler):
    """Collect warnings in a list."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        """Add the text of a warning."""
        self.texts.append(record.getMessage())


@contextmanager
def _warnings_in(texts: list[str]) -> Iterator[None]:
    """Collect what the engine warns of meanwhile; one network runs at a time, so that it is this run's."""
    engine, collecting = logging.getLogger("napari_seg.inference"), _Collecting(texts)
    engine.addHandler(collecting)
    try:
        yield
    finally:
        engine.removeHandler(collecting)


def _warnings_of(run: Run) -> list[Message]:
    """Return what the engine warned of and no notice says."""
    noted = {notice.message for notice in run.notices}
    return [Message("warning", in_window_words(text)) for text in dict.fromkeys(run.warnings) if text not in noted]


class Run:
    """One call of `segment`, made in a thread of its own; the panel looks at it from the main thread.

    Attributes:
        progress: the latest step.
        segmentation: the answer, once there is one.
        layers: the answer, the labels first.
        error: what ended the run instead.
        warnings: what the engine warned of on the way, such as the hand-over to the processor.
        seconds: how long it took, once it has ended.
        has_ended: whether it has, in whatever way.
    """

    def __init__(
        self,
        volume: Volume,
        bundle: Bundle,
        options: Options,
        image_name: str,
        placement: LayerPlacement,
    ) -> None:
        self.volume = volume
        self.bundle = bundle
        self.options = options
        self.warnings: list[str] = []
        self.image_name = image_name
        self.placement = placement
        self.progress = Progress("Waiting for another run to end")
        self.segmentation: Segmentation | None = None
        self.layers: list[Layer] = []
        self.error: Exception | None = None
        self.seconds = 0.0
        self.has_ended = threading.Event()
        self._stop = threading.Event()
        self._stage_began: tuple[str, float, int] = ("", 0.0, 0)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Doubts about the scan or the answer."""
        return () if self.segmentation is None else self.segmentation.notices

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks it to end at the next step."""
        self._stop.set()

    def execute(self) -> None:
        """Does the work; never raises, so that nothing gets lost between threads."""
        began = time.monotonic()
        try:
            with alone(lambda: self.is_stopping):
                self._segment()
        except Exception as error:
            self.error = error
        self.seconds = time.monotonic() - began
        self.has_ended.set()

    def begin(self) -> None:
        """Does the work in a thread of its own: Qt's few threads are for what takes seconds."""
        threading.Thread(target=self.execute, name="napari-seg run").start()

    def _segment(self) -> None:
        if self.is_stopping:  # before it began
            raise Cancelled()
        self.progress = Progress(STAGES["loading"])
        told, is_stopping = {"progress": self._report}, self._stop.is_set
        with _warnings_in(self.warnings):
            found = NETWORKS.run(
                segment, loaded(self.volume), self.bundle, told=told, is_stopping=is_stopping, **self.options
            )
        # Counting voxels and turning axes takes a while too: not in the main thread.
        name, bundle = f"{self.image_name} - {self.bundle.name}", self.bundle
        algorithm = (bundle.name, bundle.version)
        labels = labels_layer(found, self.placement, name, scan=self.volume.source, algorithm=algorithm)
        # napari compiles its colour mapping at the first use, for seconds.
        labels[1]["colormap"].map(labels[0][:1, :1])
        layers = [layer_of(labels)]
        if found.certainty is not None:
            sure = confidence_layer(found.certainty.confidence, self.placement, f"{name}, confidence")
            layers.append(layer_of(sure))
        self.segmentation, self.layers = found, layers

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Cancelled()
        now = time.monotonic()
        if stage != self._stage_began[0]:
            self._stage_began = (stage, now, done)
        _, began, first = self._stage_began
        # The first second says little: caches are cold.
        is_known = done > first and now - began > 1
        seconds_left = (now - began) / (done - first) * (total - done) if is_known else None
        words = STAGES.get(stage, stage.capitalize())
        self.progress = Progress(words, done, total, seconds_left) if total > 1 else Progress(words)


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
        self._find_bundles(bundle_folders)
        session.changed.connect(self.changed.emit)

    def close(self) -> None:
        """Ends a run at its next step, and drops those that wait."""
        self.waiting = []
        if self.run is not None:
            self.run.stop()

    @property
    def options(self) -> Options:
        """How any scan is segmented."""
        return {"device": self.device, "memory_bytes": self.memory_bytes, "precision": self.precision}

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

    # foreseeing

    def foresee(self) -> str | None:
        """What the chosen run will take, for a person; takes a while, so not in the main thread.

        Returns:
            None while another run is under way.
        """
        scan, bundle = self.session.scan, self.bundle
        if scan is None or bundle is None or self.obstacle:
            return ""
        volume = volume_of(scan)
        assert volume is not None
        if not _busy.acquire(blocking=False):  # a run says itself what it takes
            return None
        try:
            known = NETWORKS.run(
                foresee,
                loaded(volume),
                bundle,
                is_stopping=self.session.is_closed.is_set,
                **self.options,
            )
        except NapariSegError as error:
            return words_of(error)
        except Exception as error:  # what is foreseen is a courtesy; the run itself will say what is wrong
            logger.debug("nothing could be foreseen (%s)", type(error).__name__)
            return ""
        finally:
            _busy.release()
        if known is None:
            return ""
        windows = f"{known.windows} window{'s' * (known.windows != 1)}"
        where = " and finding the place" if known.locates else ""
        return f"Will take about {known.time} in all, for {windows}{where}, and {known.memory} of memory."

    # running

    def start(self) -> Run:
        """A run of the chosen bundle on the chosen scan; waits where one is under way.

        Whoever calls it runs `execute` of `run` in a thread, then calls `finish`.
        """
        layer, bundle = self.session.scan, self.bundle
        assert layer is not None, self.obstacle
        assert bundle is not None, self.obstacle
        volume = volume_of(layer)
        assert volume is not None
        options: Options = {**self.options, "certainty": self.certainty}
        run = Run(volume, bundle, options, layer.name, placement_of(layer).for_new_layer())
        if self.run is None:
            self.run = run
            self.session.say()
        else:
            self.waiting.append(run)
            self.changed.emit()
        return run

    def stop(self) -> None:
        """Gives up the run under way and those that wait; the viewer stays as it was."""
        if self.run is not None:
            self.run.stop()
            self.run, self.waiting = None, []
            self.session.say(Message("info", "Stopped. Nothing was added."))

    def finish(self, run: Run) -> Run | None:
        """Shows what came of a run that has ended; returns the next one, if one waits."""
        if run is not self.run:  # it was stopped
            return None
        self.run = self.waiting.pop(0) if self.waiting else None
        if run.layers:
            self._show(run)
        else:
            message, scan = message_of(run.error), self.session.scan
            if scan is None or volume_of(scan) is not run.volume:
                message = replace(message, text=f"{run.image_name}: {message.text}")
            self.session.say(*_warnings_of(run), message)
        return self.run

    def _show(self, run: Run) -> None:
        viewer, is_painting = self.session.viewer, self.session.is_painting
        active = viewer.layers.selection.active
        for layer in reversed(run.layers):  # the labels last: on top, and active
            viewer.add_layer(layer)
        if is_painting:  # a stroke must end in the layer where it began
            viewer.layers.selection.active = active
        self.session.say(
            *(Message("warning", words_of(notice)) for notice in run.notices),
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


def _misfit(volume: Volume, bundle: Bundle) -> str:
    """Why a bundle can't be run on a scan, told without loading torch; "" where it can."""
    from napari_seg.inference.segment import check_fit

    try:
        check_fit(volume, bundle)
    except BundleError as error:
        return in_window_words(error.message)
    return ""
