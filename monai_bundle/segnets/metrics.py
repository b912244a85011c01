"""What `evaluate.yaml` measures beyond MONAI's own handlers."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import CumulativeIterationMetric

logger = logging.getLogger(__name__)


class SurfaceMetric(IgniteMetricHandler):
    """A metric of MONAI's that takes a `spacing`, in mm by the reference's voxel size; MONAI's handlers count voxels.

    Args:
        metric_fn: for example `HausdorffDistanceMetric` or `SurfaceDiceMetric`.
    """

    def __init__(self, metric_fn: CumulativeIterationMetric) -> None:
        super().__init__(metric_fn=metric_fn, output_transform=from_engine(["pred", "label"]))

    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """Adds the cases of one batch, each with its own spacing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of its own call
            for pred, label in zip(*output, strict=True):
                self.metric_fn([pred], [label], spacing=label.pixdim[: label.ndim - 1].tolist())


class Summary:
    """Writes what an evaluation found as one JSON file, structures by name; an ignite handler.

    `{"cases": n, metric: {"mean": x, structure: x, ...}, ...}`. Cases in which a metric is not defined (a structure
    that is missing in the prediction or the reference has no finite Hausdorff distance) are left out of its means;
    null where none is left.

    Args:
        path: of the file.
        classes: number -> name, as in metadata.json's `channel_def`; background is left out.
    """

    def __init__(self, path: str | Path, classes: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.names = [classes[number] for number in sorted(classes, key=int) if int(number)]

    def attach(self, engine: Engine) -> None:
        """Lets it write when the engine has seen all cases."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Writes the file from the metrics' details, (cases, structures) each."""
        summary: dict[str, object] = {"cases": engine.state.epoch_length}
        for metric, values in engine.state.metric_details.items():
            finite = np.ma.masked_invalid(values.cpu().numpy())
            each = finite.mean(axis=0)
            means = {"mean": each.mean(), **dict(zip(self.names, each, strict=True))}
            summary[metric] = {name: None if np.ma.is_masked(m) else round(float(m), 6) for name, m in means.items()}
            logger.info(f"{metric}: " + ", ".join(f"{name} {m:.4f}" for name, m in means.items()))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(summary, indent=2))
