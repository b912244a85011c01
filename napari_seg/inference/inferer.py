"""The stream as a MONAI inferer, for anybody's bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import convert_to_dst_type

from napari_seg.inference.backends.base import Run, averaged, check_answer, first_answer
from napari_seg.inference.windows.blend import blend, thriftiest
from napari_seg.inference.windows.layout import Windows, WindowSettings


class StreamingInferer(Inferer):
    """Sliding windows whose logits are held only where windows overlap.

    The answer is that of MONAI's `SlidingWindowInferer` with the same settings, to float rounding. Beside the answer
    itself only the overlaps are held, so with `labels` the memory hardly grows with the number of classes.
    `napari_seg.segment` goes further where a bundle names this inferer, or MONAI's: it decides on the scan's own grid.

    Args:
        roi_size: of a window, one number for all axes or one each; an axis below 1 is taken whole.
        sw_batch_size: windows that go through the network together.
        overlap: share of a window that the next one repeats, one for all axes or one each.
        mode: "gaussian", the middle of a window counts more, or "constant".
        sigma_scale: of the Gaussian, as a share of the window.
        padding_mode: how an image smaller than a window is made larger, in torch's words.
        cval: the value of "constant" padding.
        mirror_axes: average over the mirror images of each window along these axes, in all combinations, for twice the
            time an axis; none where left and right carry meaning.
        labels: give the winning class of every voxel instead of the logits.
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
        settings = WindowSettings.of(usual)
        if settings is None:
            raise ValueError(f"roi_size, overlap and sigma_scale want one number or three; got {roi_size}, {overlap}")
        self.settings = replace(settings, mirror_axes=tuple(mirror_axes))
        self.labels = labels

    @torch.no_grad()
    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Logits (N, classes, I, J, K) float32, or with `labels` classes (N, 1, I, J, K) uint8 (int16 above 255).

        Args:
            inputs: (N, C, I, J, K); a MetaTensor's affine is kept.
            network: (N, C, *window) -> (N, classes, *window).
            args: passed on to the network.
            kwargs: passed on to the network.
        """
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        run = averaged(lambda windows: first_answer(network(windows, *args, **kwargs)), self.settings.mirror_axes)
        answer: torch.Tensor | None = None
        for number, image in enumerate(images):
            for where, found in self._blocks(image, run):
                if answer is None:
                    answer = found.new_empty((len(images), len(found), *images.shape[2:]))
                answer[number][(slice(None), *where)] = found
        assert answer is not None
        return convert_to_dst_type(answer, inputs, dtype=answer.dtype)[0] if isinstance(inputs, MetaTensor) else answer

    def _blocks(self, image: torch.Tensor, run: Run) -> Iterator[tuple[list[slice], torch.Tensor]]:
        """Where in the image, and its logits or classes."""
        i, j, k = image.shape[1:]
        windows = Windows.over((i, j, k), self.settings)
        strip = (0, windows.padded_shape[windows.axes[1]])
        windows = thriftiest(windows, strip)
        padded = windows.pad(image)
        starts = windows.starts_of(windows.places(strip))

        def checked(batch: torch.Tensor) -> torch.Tensor:
            answer = run(batch)
            check_answer(answer, len(batch), windows.size)
            return answer

        for block in blend(windows, strip, windows.answers(padded, starts, checked)):
            inner = windows.without_padding(block.start, block.logits.shape[1:])
            if inner is None:
                continue
            start, part = inner
            found = block.logits[(slice(None), *part)]
            if self.labels:
                dtype = torch.uint8 if len(found) <= 256 else torch.int16
                found = found.max(dim=0, keepdim=True).indices.to(dtype)
            yield [slice(n, n + m) for n, m in zip(start, found.shape[1:], strict=True)], found
