"""`napari_seg.segment` on a synthetic scan in this process: what the engine estimated, and what it measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

BLOB_MM = 12.0
"""Size of the bright and dark blobs in a synthetic scan."""


@dataclass(frozen=True)
class Segmented:
    """Time and memory of one call of `segment`.

    Attributes:
        plan: plan of the engine, `napari_seg.inference.plan.Plan`.
        estimated_seconds: estimate of the engine before it ran the windows.
        region_seconds: measured seconds of the same part.
        peak_bytes: highest resident memory of the process during that part.
        seconds: seconds of the whole call.
        start_seconds: seconds of starting the backend: reading or compiling the network.
        network_seconds: seconds of the windows in the network.
    """

    plan: Any
    estimated_seconds: float
    region_seconds: float
    peak_bytes: int
    seconds: float
    start_seconds: float
    network_seconds: float


def segmented(bundle: Path, shape: tuple[int, int, int], spacing_mm: float, backend: Any) -> Segmented:
    """Segments a scan of soft blobs, so that labels hang together as structures do.

    Args:
        bundle: a bundle's folder, of windows that are run one by one.
        shape: of the scan, (I, J, K).
        spacing_mm: of its voxels.
        backend: "torch" or "openvino".
    """
    import numpy as np

    from napari_seg import Grid, Volume
    from napari_seg.bundles.load import load_model
    from napari_seg.bundles.read import read_bundle
    from napari_seg.geometry import resample
    from napari_seg.inference.segment import segment

    grid = Grid(shape, np.diag([spacing_mm] * 3 + [1.0]))
    i, j, k = (2 + int(length // BLOB_MM) for length in grid.size_mm)
    coarse = Grid((i, j, k), np.diag([BLOB_MM] * 3 + [1.0]))
    values = np.random.default_rng(0).uniform(0, 1000, (1, i, j, k))
    volume = Volume(resample(values, coarse, grid).astype(np.int16), grid)
    known = read_bundle(bundle, trust=True)
    load_model(known, "cpu")  # imports of a fresh process do not count
    with logged_by_engine() as regions, timed_backends() as times:
        start = time.perf_counter()
        segment(volume, known, device="cpu", backend=backend)
        seconds = time.perf_counter() - start
    (region,) = regions
    return Segmented(
        plan=region.plan,
        estimated_seconds=region.estimated_seconds,
        region_seconds=region.measured.seconds,
        peak_bytes=region.measured.peak_bytes,
        seconds=seconds,
        start_seconds=times.start,
        network_seconds=sum(times.calls),
    )


@contextmanager
def logged_by_engine() -> Iterator[list[Any]]:
    """Yield a list that collects the log records of regions, with `plan`, `estimated_seconds` and `measured`."""
    log = logging.getLogger("napari_seg.inference.engine")
    regions: list[Any] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "measured"):
                regions.append(record)

    handler, level = Noting(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield regions
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@dataclass
class Times:
    """Seconds in which backends were made, and of each batch that they ran."""

    start: float = 0.0
    calls: list[float] = field(default_factory=list)


@contextmanager
def timed_backends() -> Iterator[Times]:
    """Times all backends that the engine makes within."""
    from napari_seg.inference.backends import choose
    from napari_seg.inference.backends.base import Backend

    make_backend, times = choose.make_backend, Times()

    class Timed:
        def __init__(self, backend: Backend) -> None:
            self.backend = backend

        def __getattr__(self, name: str) -> Any:
            return getattr(self.backend, name)

        def __call__(self, windows: Any) -> Any:
            start = time.perf_counter()
            logits = self.backend(windows)
            times.calls.append(time.perf_counter() - start)
            return logits

    def made(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        backend = Timed(make_backend(*args, **kwargs))
        times.start += time.perf_counter() - start
        return backend

    with patch.object(choose, "make_backend", made):
        yield times
