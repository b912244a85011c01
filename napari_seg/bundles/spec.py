"""The dataclass `Bundle`: plain data that `read.py` reads from disk, whatever kind of bundle it is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from napari_seg.bundles.output import Output
from napari_seg.bundles.tta import TTA
from napari_seg.volume import Segment

METADATA = Path("configs", "metadata.json")
WEIGHTS = Path("models", "model.pt")
MEMBERS = "members"
"""Folder of the members in an ensemble that a training writes."""
PREVIOUS = "previous"
"""Folder of the previous stage in a cascade that a training writes."""


def described(root: Path) -> str:
    """Return what the bundle in a folder is called in a message: its folder, or the cascade that it begins."""
    if root.name == PREVIOUS and (root.parent / METADATA).is_file():
        return f"the first stage of bundle {root.parent.name!r}"
    return f"bundle {root.name!r}"


BundleKind = Literal["monai", "nnunet", "ensemble", "totalsegmentator"]
"""Formats of bundles."""


@dataclass(frozen=True)
class RegionSpec:
    """A box in template space that the network is run on once.

    Attributes:
        name: such as "left hippocampus".
        center_mm: (x, y, z) in the template's space, RAS+.
        size_mm: field of view along the template's x, y and z.
        mirror: run the network on the mirror image (x reversed), because it was trained on the other side only.
        labels: label of the network -> label in the result.
    """

    name: str
    center_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    mirror: bool
    labels: dict[int, int]


@dataclass(frozen=True)
class LocaliserSpec:
    """How a bundle's regions are located in a scan that is larger than the network's training images.

    Attributes:
        template: name of a template in `localise.py`, or a file in the bundle.
        crop_below_mm: a scan whose largest field of view is smaller is a crop; the network is run on all of it.
        min_similarity: mutual information (nats) that the registration must reach.
        usual_similarity: what it reaches on good scans; below it the result gets a notice.
        spacing_mm: voxel size of the boxes.
        regions: the boxes.
    """

    template: str
    crop_below_mm: float
    min_similarity: float
    usual_similarity: float
    spacing_mm: tuple[float, float, float]
    regions: tuple[RegionSpec, ...]


@dataclass(frozen=True)
class CoarseSpec:
    """A fast bundle that is run first.

    Attributes:
        bundle: its folder, relative to this bundle's.
        margin_mm: margin around what it finds, in which the network is run.
    """

    bundle: str
    margin_mm: float


@dataclass(frozen=True)
class PartOf:
    """The model of a task of TotalSegmentator that a bundle was made from.

    Attributes:
        task: name of the task, such as "total".
        part: name of the model, from `table.model_name`.
    """

    task: str
    part: str


@dataclass(frozen=True)
class Bundle:
    """A bundle, as its metadata describes it.

    Attributes:
        root: the folder that holds `configs/` and `models/`.
        name: title.
        version: version of the bundle.
        description: one sentence on what it segments.
        modality: DICOM's code of the images it was trained on; "" if unknown.
        in_channels: channels of the input image.
        channel_names: a unique name for each channel of the input image, such as ("T1", "FLAIR"); its number, counted
            from 0, where the metadata has no name.
        network_segments: meaning of the network's channels, without background.
        segments: segments of a result; equal to `network_segments` unless the bundle declares a localiser.
        trusted: whether its code may run.
        kind: its format, which picks the loader (`bundles/load.py`).
        min_confidence: mean probability of a segment; below it the result gets a notice.
        localiser: regions of a larger scan in which the network is run; None: the whole scan.
        coarse: bundle that finds where the network is run; None: there is none.
        thresholds: of each channel of the network, if channels are independent; channel n then means label n + 1.
        images: training images in the words of the bundle, such as "T1-weighted MRI, 1 mm".
        licence: licences of the model and of its training data, as far as the metadata names them.
        accuracy: reported accuracy, pairs such as ("mean Dice", 0.88).
        intended_use: intended use in the words of the bundle.
        tta: default test-time averaging; None: that of the inferer.
        is_exact: whether it is run as its own program runs it unless the user chooses otherwise; models of other kinds
            are in any case.
        background: name of the network's channel 0; "" if it has none.
        output: how the network's channels become labels; a guess where its config is not recognised.
        out_channels: channels of the network's output.
        spatial_dims: 2 for a network of 2D images; 3 for one of volumes, or of their slices.
        takes_one_slice: whether its network takes 2D images, be they slices, so that one slice can be a whole scan;
            None if it does not show.
        part_of: model of TotalSegmentator that it was made from, in whose place it can run; None for any other bundle.
        previous: previous stage of a cascade, whose labels are further channels of the network's image; trusted if this
            bundle is; None: there is none.
    """

    root: Path
    name: str
    version: str
    description: str
    modality: str
    in_channels: int
    network_segments: tuple[Segment, ...]
    segments: tuple[Segment, ...]
    trusted: bool = False
    kind: BundleKind = "monai"
    min_confidence: float = 0.0
    localiser: LocaliserSpec | None = None
    coarse: CoarseSpec | None = None
    thresholds: tuple[float, ...] = ()
    images: str = ""
    licence: str = ""
    accuracy: tuple[tuple[str, float], ...] = ()
    intended_use: str = ""
    tta: TTA | None = None
    is_exact: bool = False
    background: str = ""
    channel_names: tuple[str, ...] = ()
    output: Output = field(default_factory=Output)
    out_channels: int = 1
    spatial_dims: Literal[2, 3] = 3
    takes_one_slice: bool | None = False
    part_of: PartOf | None = None
    previous: Bundle | None = None

    def __post_init__(self) -> None:
        if self.trusted and self.previous is not None:
            object.__setattr__(self, "previous", replace(self.previous, trusted=True))

    @property
    def models(self) -> tuple[Bundle, ...]:
        """Models whose probabilities are averaged; the bundle itself if it is one."""
        return (self,)

    @property
    def reference(self) -> str:
        """Text by which `read_bundle` finds this bundle again: its folder, unless its kind has names of their own."""
        return str(self.root)


@dataclass(frozen=True, kw_only=True)
class EnsembleBundle(Bundle):
    """Models whose probabilities are averaged on the scan's grid.

    Attributes:
        members: the models, with the same channels and the same labels; trusted if this bundle is.
        largest: labels of which only the largest island is kept.
    """

    members: tuple[Bundle, ...]
    largest: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.trusted:
            object.__setattr__(self, "members", tuple(replace(member, trusted=True) for member in self.members))

    @property
    def models(self) -> tuple[Bundle, ...]:
        """Its members."""
        return self.members
