"""One run of the Segment tab, executed in a `Job`: from a scan, a bundle and options to new layers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from napari.layers import Layer

from napari_seg.inference.segment import segment
from napari_seg.plugin.job import NETWORK_WORKER, Job
from napari_seg.plugin.layers import confidence_layer, labels_layer, layer_of
from napari_seg.plugin.placement import LayerPlacement
from napari_seg.plugin.segment.channels import input_of
from napari_seg.volume import Segmentation, Volume

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle
    from napari_seg.inference.options import SegmentOptions


class Run:
    """One call of `segment`.

    Args:
        volumes: channel -> volume; one volume, or one for each channel of the model.
        bundle: bundle to run.
        options: options of the run.
        image_name: name of the first layer.
        placement: placement of the first layer, on which the result lies.

    Attributes:
        volume: volume of the first layer.
        job: executes the run; None while the run waits for another one.
        segmentation: the result; None until there is one.
        layers: layers of the result, the labels first.
        warnings: warnings that the inference code logged, such as the fallback to the CPU.
        seconds: duration of the run.
    """

    def __init__(
        self,
        volumes: Mapping[str, Volume],
        bundle: Bundle,
        options: SegmentOptions,
        image_name: str,
        placement: LayerPlacement,
    ) -> None:
        self.volumes = volumes
        self.volume = next(iter(volumes.values()))
        self.bundle = bundle
        self.options = options
        self.image_name = image_name
        self.placement = placement
        self.job: Job | None = None
        self.segmentation: Segmentation | None = None
        self.layers: list[Layer] = []
        self.warnings: list[str] = []
        self.seconds = 0.0

    def execute(self, job: Job) -> None:
        """Segment the scan in the worker process and create the layers; called in the thread of the job.

        Raises:
            Cancelled: the job was stopped.
            NapariSegError: the scan can't be segmented.
        """
        start = time.monotonic()
        with _warnings_in(self.warnings):
            segmentation = job.call(
                NETWORK_WORKER,
                segment,
                input_of(self.volumes),
                self.bundle,
                self.options,
                callbacks={"progress": job.report},
            )
        self.segmentation = segmentation
        self.place(self.placement)
        self.seconds = time.monotonic() - start

    def place(self, placement: LayerPlacement) -> None:
        """Create the layers of the result at a placement; slow, call outside the main thread."""
        segmentation, self.placement = self.segmentation, placement
        assert segmentation is not None
        # counting voxels and reorienting the array are slow, so they run in this thread and not in the main one
        name, bundle = f"{self.image_name} - {self.bundle.name}", self.bundle
        algorithm = (bundle.name, bundle.version)
        labels_data = labels_layer(
            segmentation,
            self.placement,
            name,
            scan=self.volume.source,
            algorithm=algorithm,
            is_result=True,
            notices=self.volume.notices,
        )
        # napari compiles its colour mapping at the first use, which takes seconds
        labels_data[1]["colormap"].map(labels_data[0][:1, :1])
        layers = [layer_of(labels_data)]
        if segmentation.confidence_maps is not None:
            confidence_data = confidence_layer(
                segmentation.confidence_maps.confidence, self.placement, f"{name}, confidence"
            )
            layers.append(layer_of(confidence_data))
        self.layers = layers

    @property
    def warnings_without_notice(self) -> list[str]:
        """Return the logged warnings, each once, without those that a notice of the result repeats."""
        notices = () if self.segmentation is None else self.segmentation.notices
        messages = {notice.message for notice in notices}
        return [text for text in dict.fromkeys(self.warnings) if text not in messages]


class _WarningList(logging.Handler):
    """Append the warnings of one thread to a list."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts = texts
        self.thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Append the text of a warning; warnings of other threads belong to other runs."""
        if record.thread == self.thread:
            self.texts.append(record.getMessage())


@contextmanager
def _warnings_in(texts: list[str]) -> Iterator[None]:
    """Collect the warnings that the inference code logs in this thread.

    The warnings of a worker process are logged again in the thread that called it.
    """
    inference_logger, handler = logging.getLogger("napari_seg.inference"), _WarningList(texts)
    inference_logger.addHandler(handler)
    try:
        yield
    finally:
        inference_logger.removeHandler(handler)
