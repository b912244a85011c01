"""A configuration of an nnU-Net v2 model, such as 3d_fullres: what plans.json and dataset.json say, resolved.

Plain data. Axes are those of nnU-Net's arrays after `transpose_forward`. The rules are those of nnU-Net
(https://github.com/MIC-DKFZ/nnUNet, Apache-2.0; Isensee et al., Nature Methods 18, 2021).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from napari_seg.bundles.spec import Bundle, EnsembleBundle


@dataclass(frozen=True)
class Normalisation:
    """Normalisation of one channel, before it is resampled.

    Attributes:
        scheme: "ct" clips to `low` and `high`, then subtracts `mean` and divides by `std`; "z-score" does that with the
            image's own mean and standard deviation; "rescale" maps the image's own range to 0 to 1; "rgb" divides by
            255; "none" changes nothing.
        mean: of the training images' foreground.
        std: standard deviation of it.
        low: 0.5th percentile of it.
        high: 99.5th percentile of it.
        inside_mask: "z-score" uses only voxels inside the nonzero mask, and leaves the others 0.
    """

    scheme: Literal["ct", "z-score", "rescale", "rgb", "none"]
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0
    inside_mask: bool = False


@dataclass(frozen=True)
class Resampling:
    """How arrays are brought to another number of voxels; voxels are areas (half-pixel centres), edges are repeated.

    Attributes:
        method: "spline" as scikit-image's `resize`; "torch" as torch's `interpolate`; "none" changes nothing.
        order: order of the spline; 1 for "torch", which interpolates linearly.
        order_z: order along the axis of the greatest spacing where it is resampled separately.
        separate_z: whether that axis is resampled separately; None: where spacings differ by more than a factor of 3.
    """

    method: Literal["spline", "torch", "none"] = "spline"
    order: int = 3
    order_z: int = 0
    separate_z: bool | None = None


@dataclass(frozen=True)
class Configuration:
    """A configuration of an nnU-Net model.

    Attributes:
        name: such as "3d_fullres".
        dataset: name of its data set, such as "Dataset004_Hippocampus".
        trainer: name of the trainer, from the folder or the checkpoint.
        plans: name of the plans.
        patch_size: voxels of a window; two numbers for a network of slices.
        spacing_mm: voxel size of the network's grid; two numbers for a network of slices.
        transpose: `transpose_forward`.
        reader: name of nnU-Net's reader, which decides the order and the direction of the axes.
        normalisation: of each channel of the image.
        resample_image: for the image.
        resample_labels: for the label map of the previous stage of a cascade.
        resample_values: for the network's values, back on the scan's grid.
        network_class: dotted name of the network's class.
        network_arguments: its arguments as JSON, such as '{"n_stages": 6}'.
        channel_names: of the image's channels.
        labels: pairs of a name and its values: one value, or those that a region consists of; background included.
        region_labels: label of each region in the result, in the order of the regions; empty: labels, not regions.
        ignore_label: value of voxels without annotation, which has no channel; None: there is none.
        previous_stage: name of the configuration whose label map this one takes as further channels; "" if none.
        file_ending: of its training images, such as ".nii.gz"; "" if unknown.
    """

    name: str
    dataset: str
    trainer: str
    plans: str
    patch_size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    transpose: tuple[int, int, int]
    reader: str
    normalisation: tuple[Normalisation, ...]
    resample_image: Resampling
    resample_labels: Resampling
    resample_values: Resampling
    network_class: str
    network_arguments: str
    channel_names: tuple[str, ...]
    labels: tuple[tuple[str, tuple[int, ...]], ...]
    region_labels: tuple[int, ...] = ()
    ignore_label: int | None = None
    previous_stage: str = ""
    file_ending: str = ""

    @property
    def is_2d(self) -> bool:
        """True if the network sees slices: planes across the first axis."""
        return len(self.patch_size) == 2

    @property
    def foreground_labels(self) -> tuple[int, ...]:
        """Values of all labels but background and `ignore_label`, ascending."""
        values = {value for _, values in self.labels for value in values}
        return tuple(sorted(values - {0, self.ignore_label}))

    @property
    def is_reoriented(self) -> bool:
        """True if nnU-Net's reader brings images to RAS before anything else."""
        return self.reader.endswith("WithReorient")


@dataclass(frozen=True, kw_only=True)
class NnunetBundle(Bundle):
    """An nnU-Net model: one configuration of one training, in `root` (the folder with plans.json).

    Attributes:
        configuration: what plans.json and dataset.json say.
        folds: folders of the folds whose logits are averaged, such as ("fold_0", "fold_all").
        checkpoint: file name of the weights in each of them.
        overlap: fraction of a window that the next one repeats.
        previous: model of the previous stage of a cascade.
    """

    configuration: Configuration
    folds: tuple[str, ...]
    checkpoint: str = "checkpoint_final.pth"
    overlap: float = 0.5
    previous: NnunetBundle | None = None

    @property
    def data_set(self) -> str:
        """Name of the folder of its data set, such as "Dataset291_TotalSegmentator_part1_organs_1559subj"."""
        return self.root.parent.name


def why_not_single(bundle: Bundle) -> str:
    """Return why a model is more than one network whose structures exclude each other; "" if it is one.

    Several folds are networks of one kind.
    """
    if isinstance(bundle, EnsembleBundle):
        folders = ", ".join(str(member.root) for member in bundle.members)
        return f"averages {len(bundle.members)} models; choose one of them: {folders}"
    if bundle.previous is not None:
        return "needs the result of a previous stage"
    if not isinstance(bundle, NnunetBundle):
        return "is no single model of nnU-Net"
    if bundle.configuration.region_labels:
        return "finds regions that overlap"
    return ""


def preprocessing_arguments(configuration: Configuration) -> dict[str, Any]:
    """Return the arguments of `segnets.nnunet_preprocessing.NnunetPreprocessd` for a configuration, as plain data."""
    of_cascade = {
        "labels": list(configuration.foreground_labels),
        "resample_labels": asdict(configuration.resample_labels),
    }
    return {
        "keys": "image",
        "spacing": list(configuration.spacing_mm),
        "transpose": list(configuration.transpose),
        "normalisation": [asdict(one) for one in configuration.normalisation],
        "resample_image": asdict(configuration.resample_image),
        "resample_values": asdict(configuration.resample_values),
        "reorient": configuration.is_reoriented,
        **(of_cascade if configuration.previous_stage else {}),
    }
