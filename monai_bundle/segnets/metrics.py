"""Compute MONAI's metrics in validation and `evaluate.yaml`, with one rule for missing structures.

If neither label map contains the structure, the metric is nan and the case does not count. If only one of them does,
the structure was missed or is a false positive: Dice and surface Dice are 0, and the Hausdorff distance is the diagonal
of the field of view, the largest possible distance. So a missed structure or a false positive never improves a mean.

The mean of a metric is always the mean over structures of the mean over the cases that count for each (`mean_of`): a
structure that occurs in few cases has the same weight as one in all cases. It is nan if no case counts.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from math import dist
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import CumulativeIterationMetric, DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric

from segnets.files import replacing

logger = logging.getLogger(__name__)


class Dice(DiceMetric):
    """Compute MONAI's `DiceMetric` without background, and 0 for a structure in only one of the label maps."""

    def __init__(self) -> None:
        super().__init__(include_background=False)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: object = None) -> torch.Tensor:
        return _set_missing(super()._compute_tensor(y_pred, y), y_pred, y, 0.0)


class HausdorffDistance(HausdorffDistanceMetric):
    """Compute MONAI's `HausdorffDistanceMetric` without background.

    A structure in only one of the label maps has the diagonal of the field of view as its distance.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
        diagonal = dist([0.0] * len(spacing), [n * mm for n, mm in zip(y.shape[2:], spacing, strict=True)])
        return _set_missing(super()._compute_tensor(y_pred, y, spacing=spacing), y_pred, y, diagonal)


class SurfaceDice(SurfaceDiceMetric):
    """Compute MONAI's `SurfaceDiceMetric` without background, and 0 for a structure in only one of the label maps.

    Args:
        class_thresholds: tolerated distance of each structure, in mm.
    """

    def __init__(self, class_thresholds: Sequence[float]) -> None:
        # a voxel of 1 mm must be within 1 mm although a header's float32 may be 1.0000001 or 0.9999999
        super().__init__([threshold * (1 + 1e-5) for threshold in class_thresholds])

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
        return _set_missing(super()._compute_tensor(y_pred, y, spacing=spacing), y_pred, y, 0.0)


def _set_missing(values: torch.Tensor, pred: torch.Tensor, label: torch.Tensor, worst: float) -> torch.Tensor:
    """Return values (N, K - 1) with nan where pred and label (N, K, *spatial) are empty, `worst` where only one is."""
    found, expected = (x[:, 1:].flatten(2).any(dim=2).to(values.device) for x in (pred, label))
    values = torch.where(found ^ expected, worst, values)
    return torch.where(found | expected, values, torch.nan)


def mean_of(values: torch.Tensor) -> tuple[float, list[float]]:
    """Return the mean over structures and the mean of each, of values (cases, structures); nan if no case counts."""
    each = values.cpu().double().nanmean(dim=0)
    return each.nanmean().item(), each.tolist()


class CaseMetric(IgniteMetricHandler):
    """Compute a metric of this module case by case, in mm by the reference's voxel size; MONAI's handlers use voxels.

    The result is `mean_of` the cases; MONAI's is the mean over cases of each case's mean, and 0 if no case counts.

    Args:
        metric_fn: metric of this module, called with `spacing`.
        prediction: key of the masks that are compared with "label".
    """

    def __init__(self, metric_fn: CumulativeIterationMetric, prediction: str = "pred") -> None:
        super().__init__(metric_fn=metric_fn, output_transform=from_engine([prediction, "label"]))

    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """Add the cases of one batch, each with its own spacing."""
        with warnings.catch_warnings():
            # MONAI 1.6 warns about its own call, and about empty structures
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message="the (ground truth|prediction) of class")
            for pred, label in zip(*output, strict=True):
                dims = label.ndim - 1
                spacing = label.pixdim[:dims].tolist() if isinstance(label, MetaTensor) else [1.0] * dims
                self.metric_fn([pred], [label], spacing=spacing)

    def compute(self) -> float:
        """Return the mean; the values of each case go into the engine's `metric_details`."""
        super().compute()
        return mean_of(self.metric_fn.get_buffer())[0]


class Summary:
    """Write the results of an evaluation to a JSON file, with the names of structures; an ignite handler.

    The file holds `{"cases": n, metric: {"mean": x, structure: x, ...}, ...}` as in `mean_of`, with null for nan.

    Args:
        path: the JSON file.
        classes: number -> name, as in metadata.json's `channel_def`; background is left out.
    """

    def __init__(self, path: str | Path, classes: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.names = [classes[number] for number in sorted(classes, key=int) if int(number)]

    def attach(self, engine: Engine) -> None:
        """Write the file when the engine has processed all cases."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file from the details of the metrics, (cases, structures) each."""
        summary: dict[str, object] = {"cases": engine.state.epoch_length}
        for metric, values in engine.state.metric_details.items():
            mean, each = mean_of(values)
            means = {"mean": mean, **dict(zip(self.names, each, strict=True))}
            summary[metric] = {name: round(m, 6) if m == m else None for name, m in means.items()}
            logger.info(f"{metric}: " + ", ".join(f"{name} {m:.4f}" for name, m in means.items()))
        with replacing(self.path) as part:
            part.write_text(json.dumps(summary, indent=2))
