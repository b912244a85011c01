"""A loaded model: what every kind of bundle becomes before it runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from napari_seg.bundles.output import Output
from napari_seg.errors import Notice

if TYPE_CHECKING:
    from monai.inferers import Inferer
    from monai.transforms import Compose

    from napari_seg.bundles.nnunet.configuration import Configuration
    from napari_seg.bundles.windows import WindowSettings


@dataclass
class RunStatistics:
    """Measurements of earlier runs of a model, from which the next run is planned.

    Attributes:
        batch_seconds: (name of the backend, (N, C, *size) of a batch) -> mean seconds of a batch.
        window_costs: (i, j, k) of a window -> its cost in float32, in the words of `inference`.
        is_compiled: True while a compiled network, which has its own copy of the weights, is in memory.
        compiled_memory: memory of the compiled network, as a fraction of torch's feature maps; None: not measured.
        too_inexact: shape of a batch -> why the compiled network is too inexact in this number format; it is not
            compiled for that shape again.
    """

    batch_seconds: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)
    window_costs: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    compiled_memory: float | None = None
    is_compiled: bool = False
    too_inexact: dict[tuple[int, ...], str] = field(default_factory=dict)


@dataclass(eq=False)
class Model:
    """A network with its weights, its preprocessing and its inferer.

    Attributes:
        network: in evaluation mode on `device`; (N, C, *spatial) -> logits (N, classes, *spatial).
        preprocessing: transforms of a dictionary whose `image` is a MetaTensor (C, I, J, K) in RAS+, which read no
            file; or the configuration of an nnU-Net model.
        inferer: lays the windows; or their settings.
        device: where the network is.
        dtype: number format of its computations.
        output: how the logits become labels.
        spatial_dims: dimensions of the image that transforms and inferer are shown; 2 for 2D images.
        notices: what was changed to load it, for every result.
        statistics: measurements of earlier runs; written by `inference`.
        others: the same model in other number formats; see `computing_in`.
        mirror_axes: axes along which mirror images may be averaged, as the training says; empty: it does not say.
        weights_sha256: folder of a fold -> SHA-256 of the checkpoint that was read, for a model of nnU-Net.
    """

    network: torch.nn.Module
    preprocessing: Compose | Configuration
    inferer: Inferer | WindowSettings
    device: torch.device
    dtype: torch.dtype = torch.float32
    output: Output = field(default_factory=Output)
    spatial_dims: int = 3
    notices: tuple[Notice, ...] = ()
    statistics: RunStatistics = field(default_factory=RunStatistics)
    others: dict[torch.dtype, Model] = field(default_factory=dict)
    mirror_axes: tuple[int, ...] = ()
    weights_sha256: dict[str, str] = field(default_factory=dict)

    def computing_in(self, dtype: torch.dtype) -> Model:
        """Return this model in another number format; both share network, weights and the costs of windows."""
        if dtype == self.dtype:
            return self
        if dtype not in self.others:
            statistics = RunStatistics(window_costs=self.statistics.window_costs)
            self.others[dtype] = replace(self, dtype=dtype, statistics=statistics, others={self.dtype: self})
        return self.others[dtype]
