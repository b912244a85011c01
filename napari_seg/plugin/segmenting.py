"""What the Segment panel does, without Qt: choose, run, stop, show the answer, save it."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from napari.layers import Image, Labels
from numpy.typing import NDArray
from psygnal import Signal

from napari_seg.errors import Cancelled, NapariSegError, Notice
from napari_seg.plugin.layers import LayerTuple, adopt_into, labels_layer, volume_of
from napari_seg.plugin.placement import METADATA_KEY, PLANES, Placement
from napari_seg.volume import Segmentation, Volume

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_seg.bundle import Bundle

logger = logging.getLogger(__name__)

DEVICES = {"auto": "Automatic", "cpu": "Processor (CPU)", "cuda": "Graphics card (CUDA)"}

_STAGES = {"locating": "Finding the place", "loading": "Loading the model", "segmenting": "Segmenting"}


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


@dataclass(frozen=True)
class Message:
    """One line of the panel."""

    kind: Literal["info", "warning", "error"]
    text: str


@dataclass(frozen=True)
class Structure:
    """One row of the table.

    Attributes:
        label: its value in the label map.
        name: what a person calls it.
        color: red, green, blue, each 0 to 255.
        ml: its volume when the segmentation was made.
    """

    label: int
    name: str
    color: tuple[int, int, int]
    ml: float


class Run:
    """One call of `segment`, made in a thread of its own; the panel looks at it from the main thread.

    Attributes:
        progress: the latest step.
        segmentation: the answer, once there is one.
        layer_tuple: the answer as a labels layer.
        error: what ended the run instead.
        seconds: how long it took, once it has ended.
    """

    def __init__(self, volume: Volume, bundle: Bundle, device: str, image_name: str, placement: Placement) -> None:
        self.volume = volume
        self.bundle = bundle
        self.device = device
        self.image_name = image_name
        self.placement = placement
        self.progress = Progress("Loading the model")
        self.segmentation: Segmentation | None = None
        self.layer_tuple: LayerTuple | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
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
            # Here and not above: this loads torch, which takes seconds.
            from napari_seg.inference import segment

            self.segmentation = segment(self.volume, self.bundle, device=self.device, progress=self._report)
            # Counting voxels and turning axes takes a while too: not in the main thread.
            name = f"{self.image_name} - {self.bundle.name}"
            self.layer_tuple = data, settings, _ = labels_layer(self.segmentation, self.placement, name)
            # napari compiles its colour mapping at the first use, for seconds.
            settings["colormap"].map(data[:1, :1])
        except Exception as error:
            self.error = error
            if not isinstance(error, NapariSegError):
                logger.exception("the run failed")
        self.seconds = time.monotonic() - began

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
        words = _STAGES.get(stage, stage.capitalize())
        self.progress = Progress(words, done, total, seconds_left) if total > 1 else Progress(words)


class SegmentModel:
    """The state of one Segment panel on one viewer.

    Attributes:
        changed: emitted whenever something the panel shows has changed.
        bundles: what can be run.
        bundle: the chosen one.
        device: a key of `DEVICES`.
        layer: the chosen image layer; follows the viewer's active layer.
        result: the labels layer whose structures are shown; follows the active layer too.
        run: the run under way, if any.
        messages: what there is to say about the last run or save.
    """

    changed = Signal()

    def __init__(self, viewer: ViewerModel) -> None:
        self.viewer = viewer
        self.bundles: list[Bundle] = []
        self.bundle: Bundle | None = None
        self.device = "auto"
        self.layer: Image | None = None
        self.result: Labels | None = None
        self.run: Run | None = None
        self.messages: list[Message] = []
        self._find_bundles()
        viewer.layers.events.inserted.connect(self._on_inserted)
        viewer.layers.events.removed.connect(self._follow)
        viewer.layers.selection.events.active.connect(self._follow)
        for layer in viewer.layers:
            if isinstance(layer, Labels):
                adopt_into(layer, viewer.layers)
        self._follow()

    def close(self) -> None:
        """Ends a run at its next step and lets go of the viewer."""
        if self.run is not None:
            self.run.stop()
        layers = self.viewer.layers
        layers.events.inserted.disconnect(self._on_inserted)
        layers.events.removed.disconnect(self._follow)
        layers.selection.events.active.disconnect(self._follow)

    # choosing

    @property
    def layers(self) -> list[Image]:
        """The image layers that can be segmented: those that know where they lie in the patient."""
        return [layer for layer in self.viewer.layers if isinstance(layer, Image) and volume_of(layer) is not None]

    def choose_layer(self, layer: Image | None) -> None:
        """Sets the scan to segment."""
        self.layer = layer
        self.changed.emit()

    def choose_bundle(self, bundle: Bundle | None) -> None:
        """Sets what to run."""
        self.bundle = bundle
        self.changed.emit()

    def choose_device(self, device: str) -> None:
        """Sets where to run it, a key of `DEVICES`."""
        self.device = device
        self.changed.emit()

    @property
    def obstacle(self) -> str:
        """Why Run is greyed, for a person; "" when it isn't."""
        if self.run is not None:
            return "A segmentation is under way."
        if self.bundle is None:
            return "There is no model to run."
        if not self.bundle.trusted:
            return (
                "This model brings code of its own, which napari-seg runs only from a terminal: napari-seg predict "
                "--trust-bundle."
            )
        if self.layer is None:
            if any(isinstance(layer, Image) for layer in self.viewer.layers):
                return "Open the scan with napari-seg: of this image nobody knows where it lies in the patient."
            return "Open a scan first: drop a NIfTI file or a DICOM folder into the window."
        return ""

    # running

    def start(self) -> Run:
        """A run of the chosen bundle on the chosen scan; call its `execute` in a thread, then `finish`."""
        layer, bundle = self.layer, self.bundle
        assert layer is not None, self.obstacle
        assert bundle is not None, self.obstacle
        volume, placement = volume_of(layer), Placement.from_metadata(layer.metadata)
        assert volume is not None
        assert placement is not None
        self.run = Run(volume, bundle, self.device, layer.name, placement)
        self.messages = []
        self.changed.emit()
        return self.run

    def stop(self) -> None:
        """Asks the run to end at its next step."""
        if self.run is not None:
            self.run.stop()
            self.changed.emit()

    def finish(self, run: Run) -> None:
        """Shows what came of a run that has ended; a stopped one leaves the viewer as it was."""
        self.run = None
        if run.layer_tuple is not None and not run.is_stopping:
            self._show(run, *run.layer_tuple)
        elif run.is_stopping or isinstance(run.error, Cancelled):
            self.messages = [Message("info", "Stopped. Nothing was added.")]
        else:
            self.messages = [_message_of(run.error)]
        self.changed.emit()

    def _show(self, run: Run, data: NDArray, settings: dict[str, Any], _: str) -> None:
        layer = Labels(data, **settings)
        self.viewer.add_layer(layer)
        self.result = layer
        self.messages = [
            *(Message("warning", f"{notice.message} ({notice.code})") for notice in run.notices),
            Message("info", f"Done in {run.seconds:.0f} s."),
        ]
        if found := [structure for structure in self.structures if structure.ml > 0]:
            self.show_structure(max(found, key=lambda structure: structure.ml).label)

    # the answer

    @property
    def structures(self) -> list[Structure]:
        """What `result` names."""
        if self.result is None or "name" not in self.result.features or "index" not in self.result.features:
            return []
        answer = []
        for row in self.result.features.to_dict("records"):
            label = int(row["index"])
            if label > 0:
                red, green, blue = (round(255 * float(c)) for c in np.ravel(self.result.colormap.map(label))[:3])
                answer.append(Structure(label, str(row["name"]), (red, green, blue), float(row.get("ml", np.nan))))
        return answer

    def show_structure(self, label: int) -> None:
        """Moves the viewer to the slices that show most of a structure, and selects its label."""
        layer = self.result
        if layer is None:
            return
        layer.selected_label = label
        mask = np.asarray(layer.data) == label
        if mask.any():
            others = ((1, 2), (0, 2), (0, 1))
            index = [int(np.count_nonzero(mask, axis=axes).argmax()) for axes in others]
            self.viewer.dims.set_point(range(3), layer.data_to_world(index))

    def save(self, path: str | Path) -> Path:
        """The NIfTI file that holds `result` on the scan's own grid.

        Args:
            path: .nii.gz is added where it ends in neither .nii nor .nii.gz.

        Raises:
            NapariSegError: it could not be written.
        """
        from napari_seg.plugin.writer import write_labels

        assert self.result is not None
        path = Path(path)
        if not path.name.lower().endswith((".nii", ".nii.gz")):
            path = path.with_name(f"{path.name}.nii.gz")
        data, settings, _ = self.result.as_layer_data_tuple()
        write_labels(str(path), data, settings)
        return path

    def report_saved(self, outcome: Path | Exception) -> None:
        """Says in the panel what came of `save`."""
        is_path = isinstance(outcome, Path)
        self.messages = [Message("info", f"Saved {outcome}") if is_path else _message_of(outcome)]  # type: ignore[arg-type]
        self.changed.emit()

    def show_plane(self, plane: str) -> None:
        """Turns the viewer to a plane, a key of `PLANES`."""
        self.viewer.dims.ndisplay = 2
        self.viewer.dims.order = PLANES[plane]
        self.viewer.reset_view()

    # following the viewer

    def _find_bundles(self) -> None:
        from napari_seg.bundle import find_bundles

        try:
            self.bundles, faults = find_bundles()
            self.messages = [_message_of(fault) for fault in faults]
        except NapariSegError as error:
            self.messages = [_message_of(error)]
        self.bundle = self.bundles[0] if self.bundles else None

    def _on_inserted(self, event: object) -> None:
        layer = getattr(event, "value", None)
        if isinstance(layer, Labels):
            adopt_into(layer, self.viewer.layers)
        self._follow()

    def _follow(self, event: object = None) -> None:
        """Takes the active layer, if it can be segmented or is an answer; otherwise keeps what is still there."""
        active = self.viewer.layers.selection.active
        choices = self.layers
        if active in choices:
            self.layer = active
        elif self.layer not in choices:
            self.layer = choices[-1] if choices else None
        if isinstance(active, Labels) and METADATA_KEY in active.metadata:
            self.result = active
        elif self.result not in self.viewer.layers:
            self.result = None
        self.changed.emit()


def _message_of(error: Exception | None) -> Message:
    if isinstance(error, NapariSegError):
        return Message("error", f"{error.message} ({error.code})")
    return Message("error", f"This should not have happened: {type(error).__name__}: {error}")
