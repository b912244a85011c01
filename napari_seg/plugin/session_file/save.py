"""Save what a viewer showed as a session file, in the thread of a job."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, NapariSegError, one_line
from napari_seg.formats.record import PROGRAM
from napari_seg.geometry import resample
from napari_seg.plugin.labels_state import EditAction, Snapshot
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.layers import layer_names, title_of
from napari_seg.plugin.placement import LayerPlacement
from napari_seg.plugin.session_file.archive import write_session
from napari_seg.plugin.session_file.chosen_model import saved_model
from napari_seg.plugin.session_file.content import (
    AnyLayer,
    ImageLayer,
    LabelsLayer,
    SavedAction,
    SavedGrid,
    SavedName,
    SavedPanel,
    SavedScan,
    SavedSegment,
    ScanLayer,
    SessionContent,
    format_of,
)
from napari_seg.plugin.session_file.names import PrivateWords, opened_name, saved_name
from napari_seg.plugin.session_file.scans import saved_scan
from napari_seg.plugin.session_file.take import TakenLayer, TakenSession, plain
from napari_seg.version import __version__
from napari_seg.volume import Volume

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle
    from napari_seg.plugin.session_file.restore import OpenedSession


@dataclass(frozen=True)
class SaveResult:
    """Result of saving.

    Attributes:
        saved: layers that are in the file.
        left_out: names of the layers that are not.
        copied: names of the scans whose voxels are in the file, because no file holds them.
    """

    saved: tuple[TakenLayer, ...]
    left_out: tuple[str, ...]
    copied: tuple[str, ...] = ()

    def mark_saved(self) -> None:
        """Note that labels and prompts were saved; later edits are still unsaved."""
        for taken in self.saved:
            if taken.snapshot is not None:
                taken.snapshot.mark_saved()


def save(
    taken: TakenSession,
    panel: SavedPanel,
    bundle: Bundle | None,
    path: Path,
    check: Callable[[], object] = lambda: None,
    opened: OpenedSession | None = None,
) -> SaveResult:
    """Write a session file; slow, call outside the main thread.

    A layer that cannot be saved, such as labels without a place in the patient, is left out. References to scans that
    were not found when the session was opened are kept.

    Args:
        taken: what the viewer showed.
        panel: state of the panel.
        bundle: the chosen model; None if there is none.
        path: file to write.
        check: called between steps; may raise an error to stop.
        opened: session that layers of the viewer were opened from; None without one.

    Raises:
        InputError: `file.unreadable`, the files of a scan can't be read now, so that nothing can refer to them.
        OutputError: as `write_session`.
    """
    from napari_seg.formats.nifti import write_map
    from napari_seg.formats.temporary import TemporaryFolder

    writer = _LayerWriter(taken.layers, opened)
    with TemporaryFolder() as folder:
        files: list[Path] = []
        layers: list[ScanLayer | ImageLayer | LabelsLayer] = writer.kept_layers()
        kept = len(layers)
        saved: list[TakenLayer] = []
        copied: list[str] = []
        left_out = [*taken.left_out, *(() if opened is None else opened.unread_names)]
        for one in taken.layers:
            check()
            try:
                layer, arrays = writer.content_of(one)
            except NapariSegError:
                left_out.append(one.name)
                continue
            if not isinstance(layer, ScanLayer):
                for array in arrays:
                    files.append(folder / f"{len(files)}.nii")
                    write_map(array, layer.grid.grid(), files[-1])
            layers.append(layer)
            saved.append(one)
            if isinstance(layer, ImageLayer) and layer.is_scan:
                copied.append(one.name)
        active = None if taken.active is None else taken.layers[taken.active]
        content = SessionContent(
            program=f"{PROGRAM} {__version__}",
            salt=writer.salt,
            frame=None if taken.frame is None else _rows(taken.frame),
            scans=tuple(writer.scans),
            layers=tuple(layers),
            format=format_of(layers),
            active=next((n for n, one in enumerate(saved, kept) if one is active), None),
            view=taken.view,
            panel=panel.model_copy(update={"model": saved_model(bundle, writer.salt)}),
        )
        check()
        write_session(content, dict(zip(content.stored(), files, strict=True)), path)
    return SaveResult(tuple(saved), tuple(left_out), tuple(copied))


class _LayerWriter:
    """Content of the layers of one session.

    Args:
        layers: layers of the viewer.
        opened: session that some of them were opened from. Its scans that were not found keep their references, and
            with them its salt, because references can't be made again without the files.

    Attributes:
        salt: salt of the session file.
        scans: scans that are kept by reference.

    Raises:
        InputError: `file.unreadable`, the files of a scan can't be read now.
    """

    def __init__(self, layers: Sequence[TakenLayer], opened: OpenedSession | None) -> None:
        self._opened, unread = opened, [] if opened is None else opened.unread_scans
        self.salt = opened.content.salt if opened is not None and unread else secrets.token_hex(16)
        self.scans: list[SavedScan] = [] if opened is None else [opened.content.scans[number] for number in unread]
        self._unread = {number: new for new, number in enumerate(unread)}
        self._names = [""] * len(unread)
        self._scan_numbers: dict[int, int] = {}  # by id of the volume
        volumes = {id(one.info.volume): one.info.volume for one in layers if _is_by_reference(one)}
        for key, volume in volumes.items():
            assert volume is not None
            try:
                saved = saved_scan(volume, self.salt)
            except OSError as error:  # copied voxels may show a face, and lose the link to the series
                reason = error.strerror or type(error).__name__
                text = f"the files of {title_of(volume)!r} can't be read now ({reason}); expected them where they "
                text += "were when it was opened, because a session refers to scans; connect their drive and save "
                text += "again, or save the labels by themselves (Save as)"
                raise InputError("file.unreadable", text) from None  # its path may hold a name
            if saved in self.scans[: len(unread)]:  # it was opened by itself since
                self._scan_numbers[key] = self.scans.index(saved)
                self._names[self._scan_numbers[key]] = title_of(volume)
                continue
            self._scan_numbers[key] = len(self._names)
            self.scans.append(saved)
            self._names.append(title_of(volume))
        self._volumes = volumes
        files = [file for one in layers for file in (*one.info.scan.files, *_files_of(one.info))]
        self._private = PrivateWords(files, [one.info.algorithm[0] for one in layers if one.info.algorithm is not None])

    def content_of(self, one: TakenLayer) -> tuple[ScanLayer | ImageLayer | LabelsLayer, Sequence[NDArray]]:
        """Return the content of a layer, and its arrays; a scan that is kept by reference leaves them in its files.

        Raises:
            NapariSegError: the layer cannot be saved.
        """
        name = self._name_of(one)
        if one.snapshot is not None:
            return self._labels(one, one.snapshot, name)
        volume = one.info.volume
        if volume is not None and id(volume) in self._scan_numbers:
            number, channel = self._scan_numbers[id(volume)], _channel_of(one, volume)
            if channel is not None:
                if one.name == _usual_name(volume, channel):
                    name = SavedName()  # the reader gives it again
                layer = ScanLayer(
                    name=name,
                    settings=one.settings,
                    scan=number,
                    channel=channel,
                    colormap=one.colormap,
                    window=one.window,
                )
                return layer, ()
        return self._image(one, name)

    def kept_layers(self) -> list[ScanLayer | ImageLayer | LabelsLayer]:
        """Return the layers of scans that were not found and are not open now."""
        if self._opened is None:
            return []
        shown = set(self._scan_numbers.values())
        return [
            saved.model_copy(update={"scan": self._unread[saved.scan], "name": self._renumbered(saved.name)})
            for saved in self._opened.content.layers
            if isinstance(saved, ScanLayer) and saved.scan in self._unread and self._unread[saved.scan] not in shown
        ]

    def _saved_before(self, one: TakenLayer) -> AnyLayer | None:
        """Return the content of a layer in the session that it was opened from; None if it is from none."""
        if self._opened is None:
            return None
        layers = self._opened.layers
        return next((saved for n, saved in enumerate(self._opened.content.layers) if layers.get(n) is one.layer), None)

    def _name_of(self, one: TakenLayer) -> SavedName:
        """Return the name to save: the same as before if it is unchanged and names a scan that was not found."""
        before = self._saved_before(one)
        if self._opened is not None and before is not None and self._unread.keys() & set(before.name.parts):
            is_unchanged = one.name == opened_name(before.name, self._opened.scan_names, one.name)
            if is_unchanged:
                return self._renumbered(before.name)
        return saved_name(one_line(one.name, 500), self._names, self._private)

    def _renumbered(self, name: SavedName) -> SavedName:
        """Return a name of the opened session with the present numbers of the scans."""
        assert self._opened is not None
        numbers = {old: self._scan_numbers.get(id(volume)) for old, volume in self._opened.volumes.items()}
        numbers |= self._unread
        parts = (part if isinstance(part, str) else numbers.get(part) for part in name.parts)
        return SavedName(parts=tuple("scan" if part is None else part for part in parts))

    def _image(self, one: TakenLayer, name: SavedName) -> tuple[ImageLayer, Sequence[NDArray]]:
        array, info = np.asarray(one.voxels), one.info
        grid = info.placement.shown
        if info.volume is not None and (channel := _channel_of(one, info.volume)) is not None:
            array, grid = np.asarray(info.volume.array[channel]), info.placement.native
        if array.dtype.kind == "f" and not np.isfinite([array.min(), array.max()]).all():
            raise InputError("data.nonfinite", f"{one.name!r} has voxels that are NaN or infinite")
        if array.dtype.kind == "b" or array.dtype == np.float16:
            array = array.astype(np.uint8 if array.dtype.kind == "b" else np.float32)
        layer = ImageLayer(
            name=name,
            settings=one.settings,
            grid=SavedGrid.of(grid),
            modality="" if info.volume is None else re.sub(r"\W", "", info.volume.modality)[:16],
            is_oriented=info.is_oriented,
            colormap=one.colormap,
            is_scan=info.volume is not None,
        )
        return layer, [array]

    def _labels(self, one: TakenLayer, snapshot: Snapshot, name: SavedName) -> tuple[LabelsLayer, Sequence[NDArray]]:
        segmentation, info = snapshot.segmentation(), one.info
        made, confidence = (
            None if packed is None or packed.shape != segmentation.grid.shape else packed.unpack()
            for packed in (info.model_labels, info.model_confidence)
        )
        maker, version = info.algorithm or ("", "")
        segments = (
            SavedSegment.of(one, one_line(self._private.public_structure(one.name, one.label), 500))
            for one in segmentation.segments
        )
        layer = LabelsLayer(
            name=name,
            settings=one.settings,
            grid=SavedGrid.of(segmentation.grid),
            scan=self._scan_of(one),
            segments=tuple(segments),
            confidence={int(label): float(value) for label, value in info.confidence.items()},
            algorithm=None if info.algorithm is None else (one_line(maker, 500), one_line(version, 500)),
            is_painted=one.is_painted,
            is_oriented=info.is_oriented,
            hidden=one.hidden,
            actions=tuple(self._action(action) for action in snapshot.actions),
            kept=self._public(_plain_json(snapshot.kept)),
            looked_for=tuple(sorted(map(int, info.looked_for))),
            has_model_labels=made is not None,
            has_model_confidence=confidence is not None,
        )
        return layer, [array for array in (segmentation.array, made, confidence) if array is not None]

    def _action(self, action: EditAction) -> SavedAction:
        structure = one_line(self._private.public_structure(action.structure, action.label), 500)
        return SavedAction.model_validate({**asdict(action), "structure": structure})

    def _public(self, data: Any) -> Any:
        """Return plain data with texts without private words."""
        if isinstance(data, str):
            return one_line(self._private.public_text(data), 1000)
        if isinstance(data, list):
            return [self._public(one) for one in data]
        return {key: self._public(one) for key, one in data.items()} if isinstance(data, dict) else data

    def _scan_of(self, one: TakenLayer) -> int | None:
        """Return the number of the scan that labels belong to."""
        before, info = self._saved_before(one), one.info
        for key, number in self._scan_numbers.items():
            volume = self._volumes[key]
            if volume is not None and info.scan.files and volume.source == info.scan:
                return number
        return self._unread.get(before.scan) if isinstance(before, LabelsLayer) and before.scan is not None else None


def _is_by_reference(one: TakenLayer) -> bool:
    """Return whether an image shows a scan that was read from files by this program."""
    volume = one.info.volume
    return volume is not None and bool(volume.source.files) and volume.source.format != "" and one.info.adopted is None


def _files_of(info: LayerInfo) -> tuple[Path, ...]:
    return () if info.source is None else (info.source,)


def _channel_of(one: TakenLayer, volume: Volume) -> int | None:
    """Return the number of the channel of a volume that a layer shows; None if its array was replaced."""
    placement = one.info.placement
    if not placement.is_view:  # a resampled copy
        return next((n for n, array in enumerate(volume.array) if _is_resampled(array, placement, one.voxels)), None)
    data = one.voxels
    for number, array in enumerate(volume.array):
        shown = placement.show(array)
        if isinstance(data, np.ndarray) and (shown.ctypes.data, shown.strides) == (data.ctypes.data, data.strides):
            return number
    return None


def _is_resampled(array: NDArray, placement: LayerPlacement, shown: Any) -> bool:
    """Return whether a layer shows an array (I, J, K), resampled for display; three planes are compared."""
    planes = placement.shown.shape[0]
    for index in {planes // 4, planes // 2, 3 * planes // 4}:
        start, stop = (index, 0, 0), (index + 1, *placement.shown.shape[1:])
        plane = resample(array, placement.native, placement.shown.box(start, stop), order=1, outside=float(array.min()))
        if not np.allclose(plane[0], np.asarray(shown[index]), atol=1e-3 * (1 + np.ptp(plane))):
            return False
    return True


def _usual_name(volume: Volume, channel: int) -> str:
    return layer_names(volume)[channel]


def _rows(frame: NDArray) -> Any:
    return tuple(tuple(map(float, row)) for row in frame)


def _plain_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data as JSON gives it back: lists for tuples, texts for keys."""
    answer: dict[str, Any] = json.loads(json.dumps(data, default=plain, allow_nan=False))
    return answer
