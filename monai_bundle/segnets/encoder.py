"""Encoders: an image to a ladder of feature maps, the strides of which can be stopped anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from segnets.blocks import ACT, NORM, ConvUnit, convolution
from segnets.errors import TrainingError


class ResidualEncoder(nn.Module):
    """Residual encoder (He et al. 2016, arXiv:1512.03385) in n dimensions, with a settable output stride.

    Each stage halves the map of the one above until `output_stride` is reached; from there on a stage keeps the size
    and doubles its atrous rate instead, so that its units see what they would have seen (Chen et al. 2017,
    arXiv:1706.05587, section 3.1).

    The defaults suit organs of a few dozen voxels: the ladder begins at full resolution, where a single convolution of
    few features is all that a CPU should be asked for. `stem_stride` 4, wider channels and `units` (2, 2, 2, 2) are the
    classic setting for photographs.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: features of each stage.
        units: residual units of each stage; the first stage may have none beside the stem.
        stem_stride: stride of the first convolution, and so of the first stage.
        output_stride: largest stride of all; None: every stage halves the map.
        multi_grid: factors on the atrous rates of the last stage's units, one each; None: ones.
        norm: MONAI's name of the normalisation.
        act: MONAI's name of the activation.
        dropout: share of features dropped after each convolution in training.

    Attributes:
        channels: features of each stage.
        strides: of each stage's map against the image.
        rates: atrous rate of each stage.

    Raises:
        TrainingError: `network.encoder`, the settings fit no ladder.
    """

    separable = False

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int] = (8, 32, 64, 128),
        units: Sequence[int] = (0, 1, 2, 2),
        stem_stride: int = 1,
        output_stride: int | None = None,
        multi_grid: Sequence[int] | None = None,
        norm: str | tuple = NORM,
        act: str | tuple = ACT,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        ladder = [stem_stride * 2**stage for stage in range(len(channels))]
        output_stride = output_stride or ladder[-1]
        grid = list(multi_grid or [1] * units[-1])
        if len(units) != len(channels) or output_stride not in ladder or len(grid) != units[-1] or 0 in units[1:]:
            raise TrainingError(
                "network.encoder",
                f"channels {list(channels)}, units {list(units)}, output_stride {output_stride}, multi_grid {grid}: "
                "expected as many units as channels (none only in the first stage), an output_stride out of "
                f"{ladder} and a multi_grid factor for each unit of the last stage",
            )
        self.channels = list(channels)
        self.strides = [min(stride, output_stride) for stride in ladder]
        self.rates = [stride // kept for stride, kept in zip(ladder, self.strides, strict=True)]

        def unit(inputs: int, stage: int, stride: int, rate: int) -> ConvUnit:
            return ConvUnit(
                spatial_dims,
                inputs,
                channels[stage],
                stride,
                norm=norm,
                act=act,
                dropout=dropout,
                dilation=rate,
                separable=self.separable,
            )

        # the stem's kernel overlaps its neighbours', whatever the stride
        self.stem = convolution(
            spatial_dims, in_channels, channels[0], stem_stride, max(3, 2 * stem_stride - 1), norm=norm, act=act
        )
        self.stages = nn.ModuleList()
        for stage, count in enumerate(units):
            last = stage == len(units) - 1
            self.stages.append(
                nn.Sequential(
                    *(
                        unit(
                            channels[max(stage - 1, 0) if n == 0 else stage],
                            stage,
                            self.strides[stage] // self.strides[stage - 1] if stage and n == 0 else 1,
                            self.rates[stage] * (grid[n] if last else 1),
                        )
                        for n in range(count)
                    )
                )
            )

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The stages' maps, (N, channels, *spatial / stride) each, of an image whose size the last stride divides."""
        features = self.stem(image)
        maps: list[torch.Tensor] = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps


class SeparableEncoder(ResidualEncoder):
    """The same ladder of depthwise separable convolutions: a tenth of the arithmetic and of the parameters.

    Faster in 2D, by a fifth to a third of a step on a CPU. In 3D a step hardly gains, and one with atrous rates loses:
    torch's convolutions of single channels are slow there.
    """

    separable = True


ENCODERS = {"residual": ResidualEncoder, "separable": SeparableEncoder}
