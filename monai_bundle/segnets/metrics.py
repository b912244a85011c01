"""What a validation and `evaluate.yaml` measure: MONAI's metrics, with one rule for structures that are missing.

Neither label map holds the structure: nan, and the case does not count for it. One of them alone does, so that it was
missed or found where there is none: Dice and surface Dice are 0, and the Hausdorff distance is the diagonal of the
field of view, the largest distance there can be. So no miss and no false find can better a mean, as it could where it
were left out.

The mean of a metric, wherever one is given, is the mean over the structures of the mean over the cases that count for
each (`mean_of`): a structure that is in few cases weighs as much as one that is in all. Nan where no case counts.
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

logger = logging.getLogger(__name__)


class Dice(DiceMetric):
    """MONAI's `DiceMetric` without background, 0 for a structure that only one of the two holds."""

    def __init__(self) -> None:
        super().__init__(include_background=False)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: object = None) -> torch.Tensor:
        return _where_missing(super()._compute_tensor(y_pred, y), y_pred, y, 0.0)


class HausdorffDistance(HausdorffDistanceMetric):
    """MONAI's, without background, the diagonal of the field of view for a structure that only one of the two holds."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
        diagonal = dist([0.0] * len(spacing), [n * mm for n, mm in zip(y.shape[2:], spacing, strict=True)])
        return _where_missing(super()._compute_tensor(y_pred, y, spacing=spacing), y_pred, y, diagonal)


class SurfaceDice(SurfaceDiceMetric):
    """MONAI's `SurfaceDiceMetric` without background, 0 for a structure that only one of the two holds.

    Args:
        class_thresholds: the distance that counts as none, for each structure.
    """

    def __init__(self, class_thresholds: Sequence[float]) -> None:
        # one voxel's width must count as within 1 mm whether the header's float32 says 1.0000001 or 0.9999999
        super().__init__([threshold * (1 + 1e-5) for threshold in class_thresholds])

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
        return _where_missing(super()._compute_tensor(y_pred, y, spacing=spacing), y_pred, y, 0.0)


def _where_missing(values: torch.Tensor, pred: torch.Tensor, label: torch.Tensor, worst: float) -> torch.Tensor:
    """(N, K - 1) values, nan where both of (N, K, *spatial) are empty and `worst` where one is."""
    found, expected = (x[:, 1:].flatten(2).any(dim=2).to(values.device) for x in (pred, label))
    values = torch.where(found ^ expected, worst, values)
    return torch.where(found | expected, values, torch.nan)


def mean_of(values: torch.Tensor) -> tuple[float, list[float]]:
    """The mean and each structure's, of (cases, structures) values; nan where no case counts."""
    each = values.cpu().double().nanmean(dim=0)
    return each.nanmean().item(), each.tolist()


class CaseMetric(IgniteMetricHandler):
    """A metric of this module, case by case in mm by the reference's voxel size; MONAI's handlers count voxels.

    Its value is `mean_of` the cases; MONAI's is the mean over cases of each case's own, and 0 where no case counts.

    Args:
        metric_fn: takes a `spacing`.
    """

    def __init__(self, metric_fn: CumulativeIterationMetric) -> None:
        super().__init__(metric_fn=metric_fn, output_transform=from_engine(["pred", "label"]))

    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """Adds the cases of one batch, each with its own spacing."""
        with warnings.catch_warnings():
            # MONAI 1.6 warns of its own call, and of empty structures
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message="the (ground truth|prediction) of class")
            for pred, label in zip(*output, strict=True):
                dims = label.ndim - 1
                spacing = label.pixdim[:dims].tolist() if isinstance(label, MetaTensor) else [1.0] * dims
                self.metric_fn([pred], [label], spacing=spacing)

    def compute(self) -> float:
        """The mean; each case's values go into the engine's `metric_details`."""
        super().compute()
        return mean_of(self.metric_fn.get_buffer())[0]


class Summary:
    """Writes what an evaluation found as one JSON file, structures by name; an ignite handler.

    `{"cases": n, metric: {"mean": x, structure: x, ...}, ...}` as of `mean_of`, null for nan.

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
            mean, each = mean_of(values)
            means = {"mean": mean, **dict(zip(self.names, each, strict=True))}
            summary[metric] = {name: round(m, 6) if m == m else None for name, m in means.items()}
            logger.info(f"{metric}: " + ", ".join(f"{name} {m:.4f}" for name, m in means.items()))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(summary, indent=2))
