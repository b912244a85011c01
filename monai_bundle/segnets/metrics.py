"""Compute scores in validation and `evaluate.yaml`, with one rule for missing structures.

The values are those of MONAI's metrics on masks of all classes, which would take 8 bytes per voxel and class.

If neither label map contains the structure, the metric is nan and the case does not count. If only one of them does,
the structure was missed or is a false positive: Dice and surface Dice are 0, and the Hausdorff distance is the diagonal
of the field of view, the largest possible distance. So a missed structure or a false positive never improves a mean.

The mean of a metric is always the mean over structures of the mean over the cases that count for each (`mean_of`): a
structure that occurs in few cases has the same weight as one in all cases. It is nan if no case counts.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from math import dist
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import CumulativeIterationMetric, compute_hausdorff_distance, compute_surface_dice

from segnets.annotation import box_of, mask_of
from segnets.files import replacing

logger = logging.getLogger(__name__)


class CaseScore(CumulativeIterationMetric):
    """Compute a score of each structure in label maps or masks of regions, see `segnets.annotation.AsLabelsd`.

    Args:
        classes: number of classes or regions, without background.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def of_case(self, pred: torch.Tensor, label: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
        """Return the score of each structure of one case; nan where neither label map contains it."""
        raise NotImplementedError

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float] = ()) -> torch.Tensor:
        maps = ((x.as_tensor() if isinstance(x, MetaTensor) else x) for x in (y_pred.to(y.device), y))
        return torch.stack([self.of_case(*pair, spacing) for pair in zip(*maps, strict=True)])

    def aggregate(self) -> float:
        """Return `mean_of` the cases."""
        return mean_of(self.get_buffer())[0]


class Dice(CaseScore):
    """Compute the Dice of each structure from numbers of voxels; 0 for one in only one of the label maps."""

    def of_case(self, pred: torch.Tensor, label: torch.Tensor, spacing: Sequence[float] = ()) -> torch.Tensor:
        """Return the Dice of each structure."""
        common = pred & label if pred.dtype == torch.bool else torch.where(pred == label, pred, 0)
        both = self._sizes(pred) + self._sizes(label)
        return 2.0 * self._sizes(common).float() / both.float()

    def _sizes(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the number of voxels of each structure."""
        if labels.dtype == torch.bool:
            return labels.flatten(1).sum(1)
        return torch.bincount(labels.flatten(), minlength=self.classes + 1)[1:]


class SoftDice(CaseScore):
    """Compute the Dice of fractions, 2 sum(min(p, r)) / sum(p + r) of each structure: that of masks for 0 and 1.

    Predicted fractions are in steps of 1/255, see `segnets.annotation.decide`. The score is nan if the reference is 0
    everywhere and no prediction is above one half.
    """

    def of_case(self, pred: torch.Tensor, label: torch.Tensor, spacing: Sequence[float] = ()) -> torch.Tensor:
        """Return the soft Dice of each structure."""
        scores = []
        for found, expected in zip(pred, label, strict=True):
            found = found.float() / 255
            if not (expected.any() or (found > 0.5).any()):
                scores.append(torch.tensor(math.nan, device=expected.device))
                continue
            scores.append(2 * torch.minimum(found, expected).sum() / (found.sum() + expected.sum()))
        return torch.stack(scores)


class SurfaceScore(CaseScore):
    """Compute a score of surfaces, structure by structure, in the box around it."""

    def of_case(self, pred: torch.Tensor, label: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
        """Return the score of each structure; `worst` if it is in only one of the label maps."""
        scores = []
        for number in range(1, self.classes + 1):
            found, expected = mask_of(pred, number), mask_of(label, number)
            if (box := box_of(found | expected)) is None:
                scores.append(math.nan)
            elif not (found.any() and expected.any()):
                scores.append(self.worst(label.shape[1:], spacing))
            else:
                scores.append(self.of_masks(found[box][None, None], expected[box][None, None], number, spacing))
        return torch.tensor(scores)

    def worst(self, shape: Sequence[int], spacing: Sequence[float]) -> float:
        """Return the score of a structure in only one of two label maps."""
        return 0.0

    def of_masks(self, found: torch.Tensor, expected: torch.Tensor, number: int, spacing: Sequence[float]) -> float:
        """Return the score of a structure with a number, from its masks (1, 1, *spatial)."""
        raise NotImplementedError


class HausdorffDistance(SurfaceScore):
    """Compute the Hausdorff distance of each structure as MONAI does, in mm.

    A structure in only one of the label maps has the diagonal of the field of view as its distance.

    Args:
        classes: see `CaseScore`.
        percentile: of the distances.
    """

    def __init__(self, classes: int, percentile: float | None = None) -> None:
        super().__init__(classes)
        self.percentile = percentile

    def worst(self, shape: Sequence[int], spacing: Sequence[float]) -> float:
        """Return the diagonal of the field of view."""
        return dist([0.0] * len(spacing), [n * mm for n, mm in zip(shape, spacing, strict=True)])

    def of_masks(self, found: torch.Tensor, expected: torch.Tensor, number: int, spacing: Sequence[float]) -> float:
        """Return the distance."""
        return float(compute_hausdorff_distance(found, expected, True, percentile=self.percentile, spacing=spacing))


class SurfaceDice(SurfaceScore):
    """Compute the surface Dice (NSD) of each structure as MONAI does; 0 for one in only one of the label maps.

    Args:
        class_thresholds: tolerated distance of each structure, in mm.
    """

    def __init__(self, class_thresholds: Sequence[float]) -> None:
        super().__init__(len(class_thresholds))
        # a voxel of 1 mm must be within 1 mm although a header's float32 may be 1.0000001 or 0.9999999
        self.thresholds = [threshold * (1 + 1e-5) for threshold in class_thresholds]

    def of_masks(self, found: torch.Tensor, expected: torch.Tensor, number: int, spacing: Sequence[float]) -> float:
        """Return the surface Dice."""
        return float(compute_surface_dice(found, expected, [self.thresholds[number - 1]], True, spacing=spacing))


def mean_of(values: torch.Tensor) -> tuple[float, list[float]]:
    """Return the mean over structures and the mean of each, of values (cases, structures); nan if no case counts."""
    each = values.cpu().double().nanmean(dim=0)
    return each.nanmean().item(), each.tolist()


class CaseMetric(IgniteMetricHandler):
    """Compute a metric of this module case by case, in mm by the reference's voxel size; MONAI's handlers use voxels.

    The result is `mean_of` the cases; MONAI's is the mean over cases of each case's mean, and 0 if no case counts.

    Args:
        metric_fn: metric of this module, called with `spacing`.
        prediction: key of the label map that is compared with the reference.
        reference: key of the reference.
    """

    def __init__(self, metric_fn: CaseScore, prediction: str = "pred", reference: str = "label") -> None:
        super().__init__(metric_fn=metric_fn, output_transform=from_engine([prediction, reference]))

    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """Add the cases of one batch, each with its own spacing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns about its own call
            for pred, label in zip(*output, strict=True):
                dims = label.ndim - 1
                spacing = label.pixdim[:dims].tolist() if isinstance(label, MetaTensor) else [1.0] * dims
                self.metric_fn([pred], [label], spacing=spacing)


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
