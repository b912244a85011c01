"""Streaming inferer: sliding windows as a MONAI inferer for any bundle, and the window settings of inferers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import convert_to_dst_type

from napari_seg.bundles.windows import WindowSettings
from napari_seg.inference.backends.averaging import averaged
from napari_seg.inference.backends.base import Run, check_output, first_output
from napari_seg.inference.windows.blend import blend, with_least_memory
from napari_seg.inference.windows.layout import Windows


class StreamingInferer(Inferer):
    """Sliding-window inferer that keeps logits only where windows overlap.

    The result equals that of MONAI's `SlidingWindowInferer` with the same settings, to float rounding. Besides the
    result itself only the overlaps are kept, so with `labels` the memory hardly grows with the number of classes.
    `napari_seg.segment` does more for a bundle with this inferer, or MONAI's: it decides labels on the scan's own grid.

    Args:
        roi_size: shape of a window, one number for all axes or one each; an axis below 1 is taken whole.
        sw_batch_size: number of windows that the network processes together.
        overlap: fraction of a window that the next one repeats, one for all axes or one each.
        mode: "gaussian", the middle of a window weighs more, or "constant".
        sigma_scale: standard deviation of the Gaussian as a fraction of the window.
        padding_mode: how an image smaller than a window is padded, as torch names it.
        cval: value of the padding mode "constant".
        mirror_axes: axes along which logits are averaged over mirror images, in all combinations, for twice the time
            per axis; only where the network does not distinguish left from right.
        labels: return the winning class of every voxel instead of the logits.
    """

    def __init__(
        self,
        roi_size: int | Sequence[int],
        sw_batch_size: int = 1,
        overlap: float | Sequence[float] = 0.25,
        mode: str = "gaussian",
        sigma_scale: float | Sequence[float] = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        mirror_axes: Sequence[int] = (),
        labels: bool = False,
    ) -> None:
        super().__init__()
        usual = SlidingWindowInferer(roi_size, sw_batch_size, overlap, mode, sigma_scale, padding_mode, cval)
        settings = window_settings(usual)
        if settings is None:
            raise ValueError(
                f"found roi_size {roi_size}, overlap {overlap} and sigma_scale {sigma_scale}; expected one number or "
                "three for each"
            )
        self.settings = replace(settings, mirror_axes=tuple(mirror_axes))
        self.labels = labels

    @torch.no_grad()
    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return logits (N, classes, I, J, K) float32, or with `labels` classes (N, 1, I, J, K).

        Classes are uint8, or int16 if there are more than 256.

        Args:
            inputs: (N, C, I, J, K); the affine of a MetaTensor is kept.
            network: function from (N, C, *window) to (N, classes, *window).
            args: further arguments for the network.
            kwargs: further arguments for the network.
        """
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        run = averaged(lambda windows: first_output(network(windows, *args, **kwargs)), self.settings.mirror_axes)
        answer: torch.Tensor | None = None
        for number, image in enumerate(images):
            for where, found in self._blocks(image, run):
                if answer is None:
                    answer = found.new_empty((len(images), len(found), *images.shape[2:]))
                answer[number][(slice(None), *where)] = found
        assert answer is not None
        return convert_to_dst_type(answer, inputs, dtype=answer.dtype)[0] if isinstance(inputs, MetaTensor) else answer

    def _blocks(self, image: torch.Tensor, run: Run) -> Iterator[tuple[list[slice], torch.Tensor]]:
        """Yield blocks of the image: their slices, and their logits or classes."""
        i, j, k = image.shape[1:]
        windows = Windows.over((i, j, k), self.settings)
        strip = (0, windows.padded_shape[windows.axes[1]])
        windows = with_least_memory(windows, strip)
        padded = windows.pad(image)
        starts = windows.starts_of(windows.groups(strip))

        def checked(batch: torch.Tensor) -> torch.Tensor:
            answer = run(batch)
            check_output(answer, len(batch), windows.size)
            return answer

        for block in blend(windows, strip, windows.logits(padded, starts, checked)):
            inner = windows.without_padding(block.start, block.logits.shape[1:])
            if inner is None:
                continue
            start, part = inner
            found = block.logits[(slice(None), *part)]
            if self.labels:
                dtype = torch.uint8 if len(found) <= 256 else torch.int16
                found = found.max(dim=0, keepdim=True).indices.to(dtype)
            yield [slice(n, n + m) for n, m in zip(start, found.shape[1:], strict=True)], found


def window_settings(inferer: Any) -> WindowSettings | None:
    """Return the settings of MONAI's sliding-window inferer or of `StreamingInferer`; None for any other inferer."""
    if type(inferer) is StreamingInferer:
        return inferer.settings
    if type(inferer) is not SlidingWindowInferer or inferer.with_coord:
        return None
    try:
        roi, overlap, sigma = (_per_axis(x) for x in (inferer.roi_size, inferer.overlap, inferer.sigma_scale))
    except ValueError:  # slices, not volumes
        return None
    mode, padding_mode = (str(getattr(word, "value", word)) for word in (inferer.mode, inferer.padding_mode))
    return WindowSettings(roi, overlap, inferer.sw_batch_size, mode, sigma, padding_mode, inferer.cval)


def _per_axis(value: Any) -> tuple:
    """Return one value for each of three axes, from one for all or from three."""
    if isinstance(value, list | tuple):
        if len(value) != 3:
            raise ValueError(value)
        return tuple(value)
    return (value, value, value)
