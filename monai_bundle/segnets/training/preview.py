"""Draw the worst and best cases of a validation: `worst_best.png`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Orientation, ResampleToMatch
from monai.utils import convert_data_type
from numpy.typing import NDArray

from segnets.files import replacing
from segnets.metrics import Dice
from segnets.training.curves import can_draw


@dataclass(frozen=True)
class Plane:
    """Hold one plane of a case for drawing.

    Args:
        image: (W, H) or (W, H, 3), scaled to 0..1.
        reference: (W, H), class indices.
        prediction: (W, H), class indices.
        aspect: height of a voxel divided by its width.
    """

    image: NDArray[np.float32]
    reference: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    aspect: float


class WorstBest:
    """Draw the worst and the best cases of a validation; a handler of MONAI's evaluator.

    It draws three planes of a volume, or a window of a 2D image, where reference and prediction differ most. Only the
    planes of the cases to be drawn are kept in memory. In a training the PNG file shows the best validation so far,
    which is the one of the saved weights.

    The evaluator's output has `pred` and `label` on one grid, see `segnets.annotation.AsLabelsd`, and `image` on their
    grid or its own; the batch has `name`. The Dice of a case is the mean over the classes in reference or
    prediction, and 1 if neither has any.

    Args:
        path: PNG file.
        count: number of worst cases and of best cases.
    """

    def __init__(self, path: str | Path, count: int = 3) -> None:
        self.path = Path(path)
        self.count = count
        self._cases: list[tuple[float, str, list[Plane]]] = []

    def attach(self, evaluator: Engine) -> None:
        """Collect cases during each validation and draw them at its end."""
        if not can_draw(self.path):
            return
        evaluator.add_event_handler(Events.STARTED, lambda: self._cases.clear())
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._batch_completed)
        evaluator.add_event_handler(Events.COMPLETED, self._completed)

    def _batch_completed(self, evaluator: Engine) -> None:
        for item, output in zip(evaluator.state.batch, evaluator.state.output, strict=True):
            dice = case_dice(output["pred"], output["label"])
            if self._is_extreme(dice):
                self._cases.append((dice, str(item["name"]), planes(output["image"], output["label"], output["pred"])))
                self._cases = self._extremes(self._cases)

    def _is_extreme(self, dice: float) -> bool:
        """Return whether a case is among the worst or best so far; the planes of other cases are not computed."""
        full = len(self._cases) >= 2 * self.count
        return not full or not self._cases[self.count - 1][0] <= dice <= self._cases[self.count][0]

    def _extremes(self, cases: list[tuple[float, str, list[Plane]]]) -> list[tuple[float, str, list[Plane]]]:
        cases = sorted(cases, key=lambda case: case[:2])
        return cases if len(cases) <= 2 * self.count else cases[: self.count] + cases[-self.count :]

    def _completed(self, evaluator: Engine) -> None:
        cases = self._cases
        if idist.get_world_size() > 1:  # each process validates other cases
            gathered: Any = idist.all_gather(cases)
            # if the cases can't be divided evenly, some are validated twice
            cases = self._extremes(list({case[1]: case for part in gathered for case in part}.values()))
        state = evaluator.state
        is_best = state.best_metric_epoch in (-1, state.epoch)
        if idist.get_rank() == 0 and is_best and cases:
            draw_cases(cases, self.path)


def case_dice(pred: torch.Tensor, label: torch.Tensor) -> float:
    """Return the mean Dice of a case over the classes in reference or prediction; 1 if neither has any.

    Args:
        pred: label map (1, *spatial), or masks of regions (K, *spatial).
        label: as `pred`.
    """
    classes = len(label) if label.dtype == torch.bool else int(max(pred.max(), label.max()))
    return float(Dice(classes)(pred[None], label[None]).nanmean().nan_to_num(1.0))


def _drawn(labels: torch.Tensor) -> torch.Tensor:
    """Return the label map (*spatial) that is drawn; of overlapping regions the last is."""
    if labels.dtype != torch.bool:
        return labels[0]
    drawn = torch.zeros_like(labels[0], dtype=torch.uint8)
    for number, mask in enumerate(labels, start=1):
        drawn.masked_fill_(mask, number)
    return drawn


def planes(image: torch.Tensor, label: torch.Tensor, pred: torch.Tensor) -> list[Plane]:
    """Return the sagittal, coronal and axial plane of a volume, or one window of a 2D image.

    Args:
        image: (C, *spatial), resampled if it is on another grid than the label. A 2D image of three channels is drawn
            in colour; of other images the first channel is drawn.
        label: label map (1, *spatial), or masks of regions (K, *spatial).
        pred: as `label`.
    """
    label_maps = torch.stack(
        [_drawn(convert_data_type(x, torch.Tensor, device="cpu")[0]) for x in (label, pred)]
    ).byte()
    spacing = [1.0] * (label.ndim - 1)
    if isinstance(label, MetaTensor):
        label_maps = MetaTensor(torch.as_tensor(label_maps), affine=label.affine)
        if isinstance(image, MetaTensor) and label.ndim == 4:
            if image.shape[1:] != label.shape[1:] or not torch.allclose(image.affine, label.affine, atol=1e-4):
                image = ResampleToMatch(mode="bilinear")(image, label)
            image, label_maps = (Orientation(axcodes="RAS", labels=None)(x) for x in (image, label_maps))
        spacing = label_maps.pixdim.tolist()
    array = np.asarray(image.detach().cpu(), dtype=np.float32)
    reference, prediction = np.asarray(label_maps.cpu())
    low, high = np.percentile(array, [0.5, 99.5])
    array = np.clip((array - low) / max(high - low, 1e-6), 0, 1)
    if array.ndim == 3:
        shown = np.moveaxis(array, 0, -1) if array.shape[0] == 3 else array[0]
        window = _worst_window(reference != prediction)
        return [Plane(shown[window], reference[window], prediction[window], spacing[1] / spacing[0])]
    window = _box_around(reference | prediction)
    shown, reference, prediction = array[0][window], reference[window], prediction[window]
    result = []
    for axis in range(3):
        k = _worst_slice(reference, prediction, axis)
        right, up = (n for n in range(3) if n != axis)
        parts = (np.take(x, k, axis) for x in (shown, reference, prediction))
        result.append(Plane(*parts, spacing[up] / spacing[right]))
    return result


def _box_around(foreground: NDArray[np.uint8]) -> tuple[slice, ...]:
    """Return the bounding box of all values but 0, enlarged by half its size on each side; everything if all are 0."""
    found = np.nonzero(foreground)
    if not found[0].size:
        return (slice(None),) * foreground.ndim
    margins = [max(8, int(n.max() - n.min()) // 2) for n in found]
    return tuple(slice(max(0, n.min() - m), n.max() + m + 1) for n, m in zip(found, margins, strict=True))


def _worst_window(wrong: NDArray[np.bool_], side: int = 320) -> tuple[slice, ...]:
    """Return the window of a 2D image with most errors; contours in a larger window would not be visible."""
    sides = [min(side, length) for length in wrong.shape]
    errors = torch.nn.functional.avg_pool2d(torch.as_tensor(wrong)[None].float(), sides, stride=16)[0]
    corner = np.unravel_index(int(errors.argmax()), errors.shape)
    return tuple(slice(16 * int(n), 16 * int(n) + length) for n, length in zip(corner, sides, strict=True))


def _worst_slice(reference: NDArray[np.uint8], prediction: NDArray[np.uint8], axis: int) -> int:
    """Return the slice with most errors; without errors the largest section of the reference, or else the middle."""
    others = tuple(n for n in range(3) if n != axis)
    for voxels in (reference != prediction, reference > 0):
        per_slice = voxels.sum(axis=others)
        if per_slice.any():
            return int(per_slice.argmax())
    return reference.shape[axis] // 2


def draw_cases(cases: list[tuple[float, str, list[Plane]]], path: str | Path) -> None:
    """Draw one case per row into a PNG file: contours of the reference solid, of the prediction dashed, by class.

    Args:
        cases: Dice, name and planes of each case, in the order of the rows.
        path: PNG file, replaced in one step.
    """
    # imported here, because training must not need matplotlib; not pyplot, because its figures are global
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = colormaps["Set1"].colors
    columns = max(len(case[2]) for case in cases)
    size = 3 if columns == 3 else 7
    figure = Figure(figsize=(size * columns, (size + 0.2) * len(cases)), layout="constrained", facecolor="black")
    figure.suptitle("reference solid, prediction dashed; worst first", fontsize=10, color="white")
    for (dice, name, shown), row in zip(cases, figure.subplots(len(cases), columns, squeeze=False), strict=True):
        # the name of a file may be none in UTF-8, and what is between $ is no formula
        title = f"{name}   Dice {dice:.3f}".encode(errors="replace").decode()
        row[0].set_title(title, loc="left", fontsize=9, color="white", parse_math=False)
        for axes, plane in zip(row, shown, strict=True):
            # the first array axis points right; the second up in a volume (RAS) and down in a 2D image
            origin = "lower" if columns == 3 else "upper"
            pixels = np.swapaxes(plane.image, 0, 1)
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, origin=origin, aspect=plane.aspect)
            axes.set_axis_off()
            for labels, style in ((plane.reference, "solid"), (plane.prediction, "dashed")):
                for n in np.unique(labels[labels > 0]):
                    color = colors[(n - 1) % len(colors)]
                    axes.contour((labels == n).T, [0.5], colors=[color], linestyles=style, linewidths=1.2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, is_optional=True) as part:
        figure.savefig(part, format="png", dpi=100)
