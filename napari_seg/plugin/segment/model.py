"""State of the Segment tab, without Qt: choose a model, estimate, queue runs, stop, show results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import ref

import numpy as np
from psygnal import Signal

from napari_seg.errors import BundleError, Cancelled, NapariSegError, counted
from napari_seg.formats.image2d import in_colours
from napari_seg.inference.estimate import estimate
from napari_seg.inference.options import MatchMode, SegmentOptions
from napari_seg.plugin.job import NETWORK_WORKER, Job
from napari_seg.plugin.layer_info import frame_of, placement_of, share_frame, volume_of
from napari_seg.plugin.messages import Message, as_gui_text, gui_text_of, message_of
from napari_seg.plugin.models.permission import Permission, give_consent, permission_of
from napari_seg.plugin.placement import place
from napari_seg.plugin.segment.channels import ChannelLayers, input_of
from napari_seg.plugin.segment.choice import remember_names, remembered_names
from napari_seg.plugin.segment.run import Run
from napari_seg.plugin.session import Session
from napari_seg.volume import Volume

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_seg.bundles.spec import Bundle

logger = logging.getLogger(__name__)

DEVICES = {"auto": "Automatic", "cpu": "Processor (CPU)", "cuda": "Graphics card (CUDA)"}
"""Values of `SegmentOptions.device` that the tab offers, with their titles."""

MATCHES = {"auto": "Automatic", "exact": "Exact: the labels of its own program", "fast": "Fast: fewer windows"}
"""Values of `SegmentOptions.match` that the tab offers, with their titles."""

_MAX_NAMES = 8

_TRUST = {
    "not needed": "runs at once",
    "given": "consent given",
    "needed": "needs your consent: it contains its own program code",
    "changed": "needs your consent: its files changed since you trusted it, or were not all checked then",
    "refused": "",
}


class SegmentModel:
    """State of the Segment tab of one viewer.

    Args:
        session: source of the current scan; receives messages.
        bundle_folders: MONAI bundles, and folders whose subfolders are bundles.
        options: options of every run until the user changes them.

    Attributes:
        changed: emitted after every change that the tab shows.
        result_added: emitted after the layers of a result were added to the viewer.
        session: source of the current scan; receives messages.
        bundles: available bundles.
        bundle: the selected bundle; None if there is none.
        folders: bundles outside the store that the user lists, and folders of such.
        options: options of every run.
        adds_confidence: whether a run also adds a layer with the confidence of the network.
        run: the current run; None if there is none.
        waiting: queued runs.
        channel_layers: layers of a model with several channels.
    """

    changed = Signal()
    result_added = Signal()

    def __init__(
        self, session: Session, bundle_folders: Sequence[Path] = (), options: SegmentOptions | None = None
    ) -> None:
        self.session = session
        self.bundles: list[Bundle] = []
        self.bundle: Bundle | None = None
        self.folders = list(bundle_folders)
        self._permissions: dict[str, Permission] = {}
        self.options = options or SegmentOptions()
        self.adds_confidence = False
        self.run: Run | None = None
        self.waiting: list[Run] = []
        self._estimate: tuple[object, str] = (None, "")
        self._is_estimating = False
        self._structures: dict[str, tuple[str, ...]] = {}
        self.channel_layers = ChannelLayers(session)
        self._find_bundles()
        session.changed.connect(self.changed.emit)

    # choosing

    def choose_bundle(self, bundle: Bundle | None) -> None:
        """Select a bundle, and find out in a background job whether it may run."""
        self.bundle = bundle
        self._find_permission()
        self.session.drop_errors()
        self.changed.emit()

    def choose_device(self, device: str) -> None:
        """Select a device, a key of `DEVICES`."""
        self.options = replace(self.options, device=device)
        self.session.drop_errors()
        self.changed.emit()

    def choose_match(self, match: MatchMode) -> None:
        """Set whether a model gives the labels of its own program, a key of `MATCHES`."""
        self.options = replace(self.options, match=match)
        self.session.drop_errors()
        self.changed.emit()

    @property
    def offers_match(self) -> bool:
        """True if the selected bundle has a program of its own, whose labels it may give exactly."""
        return self.bundle is not None and any(model.kind != "monai" for model in self.bundle.models)

    @property
    def offers_structures(self) -> bool:
        """True if the selected bundle has structures to choose from."""
        return self.bundle is not None and len(self.bundle.segments) > 1

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures that the selected bundle looks for, remembered for each bundle; empty: all."""
        if self.bundle is None:
            return ()
        if self.bundle.reference not in self._structures:
            self._structures[self.bundle.reference] = remembered_names(self.bundle)
        return self._structures[self.bundle.reference]

    def choose_structures(self, names: Sequence[str]) -> None:
        """Set the names of the structures that the selected bundle looks for; none: all."""
        assert self.bundle is not None
        self._structures[self.bundle.reference] = tuple(names)
        remember_names(self.bundle, names)
        self.session.drop_errors()
        self.changed.emit()

    @property
    def run_options(self) -> SegmentOptions:
        """Options of a run of the selected bundle."""
        match: MatchMode = self.options.match if self.offers_match else "auto"
        return replace(self.options, match=match, structures=self.structures)

    def choose_confidence(self, adds_confidence: bool) -> None:
        """Set whether a run also adds a layer with the confidence of the network."""
        self.adds_confidence = adds_confidence
        self.changed.emit()

    def choose_channel(self, channel: str, layer: Image) -> None:
        """Set the layer of a channel of the selected bundle."""
        self.channel_layers.choose(channel, layer)
        self.session.drop_errors()
        self.changed.emit()

    @property
    def channels(self) -> dict[str, Image | None]:
        """Channel of the selected bundle -> its layer; empty if the bundle runs on the current scan alone."""
        bundle, scan = self.bundle, self.session.scan
        volume = None if scan is None else volume_of(scan)
        if bundle is None or bundle.in_channels == 1:
            return {}
        is_image2d = volume is not None and volume.source.format == "image2d"
        if volume is not None and (is_image2d or len(volume.array) == bundle.in_channels):
            return {}
        return self.channel_layers.layers(bundle.channel_names)

    @property
    def _inputs(self) -> dict[str, Image]:
        """Channel -> layer that a run reads, the first of which it lies on; empty if one is missing."""
        layers = self.channels or {"": self.session.scan}
        found = {name: layer for name, layer in layers.items() if layer is not None}
        return found if len(found) == len(layers) else {}

    def add_bundle(self, folder: Path) -> None:
        """Add a bundle to the list, select it, and remember it for later sessions; none of its code is run."""
        from napari_seg.bundles.read import read_bundle
        from napari_seg.plugin.preferences import remember_bundle

        try:
            bundle = read_bundle(folder)
        except BundleError as error:
            self.session.show_messages(message_of(error))
            return
        listed = next((one for one in self.bundles if one.root == bundle.root), None)
        if listed is None:
            self.bundles.append(bundle)
            self.folders.append(bundle.root)
            remember_bundle(bundle.root)
        self.session.show_messages()  # earlier messages no longer apply
        self.choose_bundle(listed or bundle)

    def reload_bundles(self, choose: str | None = None) -> None:
        """Read the list of bundles again, after one was installed or removed.

        Args:
            choose: reference of the bundle to select; None keeps the selected one, or else selects the first.
        """
        from napari_seg.bundles.read import find_bundles, read_bundle
        from napari_seg.bundles.totalsegmentator.table import is_task_name

        trusted = {bundle.reference for bundle in self.bundles if bundle.trusted}
        found, _ = find_bundles(self.folders)  # faults were shown at the start, and are shown in *Models…*
        wanted = choose or (self.bundle.reference if self.bundle else None)
        if wanted is not None and is_task_name(wanted) and wanted not in [one.reference for one in found]:
            with suppress(BundleError):  # another choice of a task's improved models than is listed by itself
                found.append(read_bundle(wanted))
        self.bundles = [replace(one, trusted=one.trusted or one.reference in trusted) for one in found]
        chosen = next((one for one in self.bundles if one.reference == wanted), None)
        self.choose_bundle(chosen or (self.bundles[0] if self.bundles else None))

    @property
    def permission(self) -> Permission | None:
        """Permission of the selected bundle; None if it is not known yet."""
        if self.bundle is None or self.bundle.trusted:
            return Permission("not needed")
        return self._permissions.get(self.bundle.reference)

    @property
    def runnable_bundle(self) -> Bundle | None:
        """The selected bundle if it may run, else None."""
        return self.bundle if self.permission is not None and self.permission.may_run else None

    def trust(self, bundle: Bundle, shown: Permission) -> None:
        """Remember, in a background job, the consent to the content of a bundle that was shown to the user."""
        self.session.jobs.start(
            lambda _: give_consent(bundle, shown),
            on_result=partial(self._on_permission, bundle),
            on_error=partial(self._on_consent_not_remembered, bundle),
        )

    def _find_permission(self) -> None:
        bundle = self.bundle
        if bundle is not None and not bundle.trusted:
            self.session.jobs.start(lambda _: permission_of(bundle), on_result=partial(self._on_permission, bundle))

    def _on_permission(self, bundle: Bundle, permission: Permission) -> None:
        self._permissions[bundle.reference] = permission
        self.changed.emit()

    def _on_consent_not_remembered(self, bundle: Bundle, error: Exception) -> None:
        """Trust a bundle until napari is closed, if the store can't be written."""
        if not isinstance(error, OSError) or bundle not in self.bundles:
            self.session.show_messages(message_of(error))
            return
        trusted = replace(bundle, trusted=True)
        self.bundles[self.bundles.index(bundle)] = trusted
        self.choose_bundle(trusted)
        text = f"Your consent holds until napari is closed, because it can't be saved ({error.strerror})."
        self.session.show_messages(Message("warning", text))

    @property
    def card(self) -> list[tuple[str, str]]:
        """Return headings and texts that describe the selected bundle."""
        bundle = self.bundle
        if bundle is None:
            return []
        names = list(self.structures) or [segment.name for segment in bundle.segments]
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        accuracy = ", ".join(f"{name.replace('dice', 'Dice')} {value:.3g}" for name, value in bundle.accuracy)
        rows = [
            ("Structures", ", ".join(names[:_MAX_NAMES]) + more),
            ("Input", bundle.images or f"{bundle.modality or 'any'} scans"),
            ("Accuracy", accuracy or "not reported"),
            ("Use", bundle.intended_use),
            ("Licence", bundle.licence or "not stated"),
            ("Trust", _TRUST[self.permission.kind] if self.permission else ""),
            ("Runs", "by MONAI, exactly as written" if self.permission and self.permission.runs_as_written else ""),
        ]
        return [(heading, text) for heading, text in rows if text]

    @property
    def obstacle(self) -> str:
        """Return the reason why Run is disabled, as text for the user; "" if it is enabled."""
        viewer = self.session.viewer
        if self.bundle is None:
            return "There is no model to run."
        if self.permission is not None and self.permission.kind == "refused":
            return self.permission.sentence
        if self.session.scan is None:
            refused = [self.session.refusals[layer] for layer in viewer.layers if layer in self.session.refusals]
            if refused:
                return f"{refused[-1]}."
            return "Open a scan first: drop a NIfTI file or a DICOM folder into the window."
        if self.permission is None:
            return "Checking what this model contains …"
        if self.permission.kind == "changed":
            text = "Files of this model changed since you trusted it, or were not all checked then."
            return f"{text} Press “Trust this model…” to see its code."
        if self.permission.asks:
            return "This model contains its own program code. Press “Trust this model…” if you know its source."
        if missing := [name for name, layer in self.channels.items() if layer is None]:
            return f"This model needs several images of the patient. Open and choose {', '.join(missing)}."
        return _misfit([one for layer in self._inputs.values() if (one := volume_of(layer)) is not None], self.bundle)

    # estimating

    @property
    def estimate_text(self) -> str:
        """Return the estimated cost of a run with the current choices, as text for the user; "" during a run."""
        key = self._estimate_key
        if key is None or self.run is not None:
            return ""
        estimated_key, text = self._estimate
        return text if estimated_key == key else "Estimating time and memory …"

    @property
    def needs_estimate(self) -> bool:
        """Return whether the current choices have no estimate yet."""
        key = self._estimate_key
        return key is not None and key != self._estimate[0] and self.run is None

    def start_estimate(self) -> None:
        """Estimate, in a background job, a run with the current choices; one estimate at a time."""
        if not self.needs_estimate or self._is_estimating:
            return
        bundle, key = self.bundle, self._estimate_key
        assert bundle is not None
        self._is_estimating = True
        work = partial(_estimate, _volumes_of(self._inputs), bundle, self.run_options)
        self.session.jobs.start(work, on_result=partial(self._on_estimated, key), on_end=self._on_estimate_ended)

    @property
    def _estimate_key(self) -> object:
        """Return everything that the estimate depends on; None if nothing can run."""
        if self.obstacle or self.bundle is None:
            return None
        inputs = tuple(map(ref, self._inputs.values()))  # a removed scan does not stay in memory
        return inputs, self.bundle.reference, self.run_options

    def _on_estimated(self, key: object, text: str) -> None:
        self._estimate = (key, text)

    def _on_estimate_ended(self) -> None:
        self._is_estimating = False
        self.changed.emit()

    # running

    def start(self) -> Run:
        """Run, in a background job, the selected bundle on the current scan; queue it if another run is current."""
        inputs, bundle = self._inputs, self.bundle
        assert inputs, self.obstacle
        assert bundle is not None, self.obstacle
        layer = next(iter(inputs.values()))
        options = replace(self.run_options, confidence_maps=self.adds_confidence)
        run = Run(_volumes_of(inputs), bundle, options, layer.name, placement_of(layer).for_new_layer())
        if self.run is None:
            self._execute(run)
            self.session.show_messages()
        else:
            self.waiting.append(run)
            self.changed.emit()
        return run

    def stop(self) -> None:
        """Stop the current run and drop the queued ones; no layer is added."""
        if self.run is not None:
            assert self.run.job is not None
            self.run.job.abandon()
            self.run, self.waiting = None, []
            self.session.show_messages(Message("info", "Stopped. Nothing was added."))

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
        self.session.changed.emit()  # the panel enables its list of scans again

    def _fail(self, run: Run, error: Exception) -> None:
        message, scan = message_of(error), self.session.scan
        if scan is None or volume_of(scan) is not run.volume:
            message = replace(message, text=f"{run.image_name}: {message.text}")
        self.session.show_messages(*_warnings_of(run), message)
        if isinstance(error, BundleError):
            self._find_permission()  # its files may have changed

    def _show(self, run: Run) -> None:
        viewer, is_painting = self.session.viewer, self.session.is_painting
        if not share_frame(run.layers, viewer.layers):
            placement = place(run.volume.grid, frame_of(viewer.layers))
            self.session.jobs.start(lambda _: run.place(placement), on_result=lambda _: self._show(run))
            return
        active = viewer.layers.selection.active
        for layer in reversed(run.layers):  # add the labels last, so that they are on top and active
            viewer.add_layer(layer)
        if is_painting:  # a stroke must end in the layer where it began
            viewer.layers.selection.active = active
        assert run.segmentation is not None
        self.session.show_messages(
            *(Message("warning", gui_text_of(notice)) for notice in run.segmentation.notices),
            *_warnings_of(run),
            Message("info", f"Done in {run.seconds:.0f} s."),
        )
        self.result_added.emit()

    def _find_bundles(self) -> None:
        from napari_seg.bundles.read import find_bundles

        try:
            self.bundles, faults = find_bundles(self.folders)
            self.session.messages = [message_of(fault) for fault in faults]
        except NapariSegError as error:
            self.session.messages = [message_of(error)]
        self.bundle = self.bundles[0] if self.bundles else None


def _warnings_of(run: Run) -> list[Message]:
    return [Message("warning", as_gui_text(text)) for text in run.warnings_without_notice]


def _volumes_of(layers: dict[str, Image]) -> dict[str, Volume]:
    volumes = {name: volume_of(layer) for name, layer in layers.items()}
    return {name: volume for name, volume in volumes.items() if volume is not None}


def _estimate(volumes: dict[str, Volume], bundle: Bundle, options: SegmentOptions, job: Job) -> str:
    """Return the estimated cost of a run, as text for the user; "" if there is none. Runs in the thread of a job."""
    try:
        cost = job.call(NETWORK_WORKER, estimate, input_of(volumes), bundle, options)
    except Cancelled:
        raise
    except NapariSegError as error:
        return gui_text_of(error)
    except Exception as error:  # the estimate is optional; the run will report the error
        logger.debug("no estimate (%s)", type(error).__name__)
        return ""
    if cost is None:
        return ""
    windows = counted(cost.windows, "window")
    locating = ", including locating the region" if cost.locates else ""
    doubts = "".join(f"\n{gui_text_of(notice)}." for notice in cost.doubts)
    return f"Estimate: {cost.time} in total for {windows}{locating}; {cost.memory} of memory.{doubts}"


def _misfit(volumes: Sequence[Volume], bundle: Bundle) -> str:
    """Return the reason why a bundle can't run on a scan, as text for the user; "" if it can. Does not load torch.

    Args:
        volumes: the scan, or one volume for each channel.
        bundle: the bundle.
    """
    from napari_seg.inference.fitness import check_fit

    count = len(volumes) if len(volumes) > 1 else len(volumes[0].array)
    first = volumes[0]
    shape = np.broadcast_to(np.uint8(0), (count, *first.grid.shape))  # voxels may not be loaded yet
    try:
        check_fit(in_colours(replace(first, array=shape, channel_names=()), bundle.in_channels), bundle)
    except BundleError as error:
        return as_gui_text(error.message)
    return ""
