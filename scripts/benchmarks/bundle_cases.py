"""The semantic-segmentation bundles of the MONAI Model Zoo: a phantom for each, and what MONAI needs to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks import bundle_phantoms as phantoms

CPU = "$torch.device('cpu')"
PHASES = ("artery", "vein", "excret")


@dataclass(frozen=True)
class Case:
    """One bundle and its phantom.

    Attributes:
        shape: voxels of the phantom along each axis.
        spacing_mm: distance of its voxels; () for a 2D image.
        kind: the kind of phantom.
        names: channel names of several files, as the bundle's metadata or config names them.
        changes: config entries that MONAI 1.6 can't run, and what replaces them; the reference only.
        note: what `changes` mends, and other remarks on the comparison.
        train_all: the network is small enough to train all of it for its weights.
        checkpoint_key: entry of the checkpoint that holds the state dictionary; None: it has no entries.
    """

    shape: Sequence[int]
    spacing_mm: Sequence[float]
    kind: Literal["ct", "mr", "image2d"] = "ct"
    names: Sequence[str] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    train_all: bool = False
    checkpoint_key: str | None = None

    def write(self, folder: Path) -> list[Path]:
        """Write the phantom and return its files, in the order of `names`."""
        if self.kind == "image2d":
            return phantoms.write_image2d(folder, self.shape)
        if self.kind == "ct":
            return phantoms.write_ct(folder, self.shape, self.spacing_mm, max(1, len(self.names)))
        return phantoms.write_mr(folder, self.shape, self.spacing_mm, self.names or ("image",))


_dints = partial(
    Case,
    (87, 82, 29),
    (1.2, 1.1, 3),
    changes={
        "arch_ckpt": "$torch.load(@arch_ckpt_path, map_location=torch.device('cpu'), weights_only=False)",
        "dints_space#device": CPU,
    },
    note="MONAI: the architecture code loaded without CUDA and with NumPy arrays",
    checkpoint_key="model",
)

CASES = {
    "segmentation_template": Case((64, 72, 40), (1.2, 1.1, 2.5), "mr", train_all=True),
    "ventricular_short_axis_3label": Case((150, 170, 7), (1.4, 1.4, 8), "mr", train_all=True, checkpoint_key="model"),
    "wholeBrainSeg_Large_UNEST_segmentation": Case((80, 90, 70), (1.1, 1, 1.2), "mr", checkpoint_key="model"),
    "renalStructures_UNEST_segmentation": Case((70, 64, 30), (1.2, 1.1, 2.6), checkpoint_key="model"),
    "spleen_ct_segmentation": Case((138, 115, 50), (1.3, 1.2, 3), train_all=True),
    "wholeBody_ct_segmentation": Case((127, 113, 40), (1.3, 1.2, 3), checkpoint_key="model"),
    "prostate_mri_anatomy": Case(
        (92, 82, 14), (0.6, 0.55, 3), "mr", note="labels that MONAI interpolates are compared after rounding"
    ),
    "pediatric_abdominal_ct_segmentation": Case((127, 108, 48), (1.3, 1.2, 5)),
    "swin_unetr_btcv_segmentation": Case(
        (138, 115, 50),
        (1.3, 1.2, 3),
        changes={
            "network_def": {
                "_target_": "SwinUNETR",
                "spatial_dims": 3,
                "in_channels": 1,
                "out_channels": 14,
                "feature_size": 48,
                "use_checkpoint": False,
            }
        },
        note="MONAI: SwinUNETR without `img_size`, which MONAI 1.6 no longer has",
    ),
    "pancreas_ct_dints_segmentation": _dints(),
    "multi_organ_segmentation": _dints(),
    "brats_mri_segmentation": Case((110, 120, 50), (1.1, 1, 2), "mr", ("T1c", "T1", "T2", "FLAIR")),
    "renalStructures_CECT_segmentation": Case((98, 90, 32), (0.9, 0.8, 2), names=PHASES),
    "spleen_deepedit_annotation": Case((90, 80, 30), (1.3, 1.2, 3), note="both without clicks"),
    "endoscopic_tool_segmentation": Case((300, 220), (), "image2d"),
}


def data_of(files: Sequence[Path], names: Sequence[str], label: Path) -> list[dict[str, Any]]:
    """Return the phantom as the bundle's list of data names it.

    Args:
        files: of the phantom.
        names: from `Case`.
        label: an empty label map, for the bundle that reads one.
    """
    paths = [str(path) for path in files]
    if tuple(names) == PHASES:
        return [dict(zip(names, paths, strict=True)) | {"label": str(label)}]
    return [{"image": paths if len(paths) > 1 else paths[0]}]
