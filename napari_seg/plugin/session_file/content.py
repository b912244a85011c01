"""Content of a session file as typed data, which is checked when it is read: a file may come from anyone.

Nothing here is a path or is derived from one. Scans are described by salted digests of their files and by their grids.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from napari_seg.geometry import Grid
from napari_seg.plugin.scan_mark import MAX_FILES_OF_MARK, ScanMark
from napari_seg.volume import MAX_LABEL, Segment, Term

FORMAT = 2
"""Version of the format of session files; a higher one comes from a later program. 2: labels as a model made them."""

MODEL_MEMBERS = ("model_labels", "model_confidence")
"""Kinds of arrays that tell what a model found; labels are of use without them."""

MAX_LAYERS = 1000

MAX_FILES_OF_SCAN = 100_000

Text = Annotated[str, Field(max_length=1000)]
Word = Annotated[str, Field(max_length=64, pattern=r"^[\w .+-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Triple = tuple[float, float, float]
Label = Annotated[int, Field(ge=0, le=MAX_LABEL)]
Byte = Annotated[int, Field(ge=0, le=255)]
Axis = Annotated[int, Field(ge=1, le=65536)]
Row = tuple[float, float, float, float]
Plain = dict[str, JsonValue]
SavedTerm = Annotated[
    tuple[Text, Text, Text], BeforeValidator(lambda term: astuple(term) if isinstance(term, Term) else term)
]


class Part(BaseModel):
    """Part of a session; unknown fields of later programs are ignored, and numbers are finite."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="ignore")


class SavedGrid(Part):
    """A `Grid`."""

    shape: tuple[Axis, Axis, Axis]
    affine: tuple[Row, Row, Row, Row]

    @classmethod
    def of(cls, grid: Grid) -> SavedGrid:
        """Return the content for a grid."""
        return cls.model_validate({"shape": grid.shape, "affine": grid.affine.tolist()})

    def grid(self) -> Grid:
        """Return the grid.

        Raises:
            InputError: `geometry.affine` or `geometry.shear`.
        """
        return Grid(self.shape, np.array(self.affine))

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        i, j, k = self.shape
        return i * j * k


class FileMark(Part):
    """What a file is found by: its size, and a salted digest of its size, its beginning and its end."""

    size: Annotated[int, Field(ge=0, lt=2**63)]
    digest: Digest


class SavedScan(Part):
    """A scan that is kept by reference.

    Attributes:
        files: marks of its files, in their order; those of its pixels follow a header.
        archive: mark of the archive that the files lie in; None if they lie in none.
        volume: number of the volume, as in `Scan.read`; None if the files hold one.
        is_tilted: whether the slices were shifted onto a straight grid.
        voxels: salted digest of all voxels.
    """

    format: Literal["nifti", "itk", "image2d", "dicom"]
    modality: Word = ""
    grid: SavedGrid
    channels: Annotated[int, Field(ge=1, le=1000)]
    files: Annotated[tuple[FileMark, ...], Field(min_length=1, max_length=MAX_FILES_OF_SCAN)]
    archive: FileMark | None = None
    volume: Annotated[int, Field(ge=0)] | None = None
    is_tilted: bool = False
    voxels: Digest


class SavedColormap(Part):
    """Colours of an image: the name of napari's colormap, or its own colours."""

    name: Text = ""
    colors: Annotated[tuple[Row, ...], Field(max_length=4096)] = ()
    controls: Annotated[tuple[float, ...], Field(max_length=4097)] = ()


class SavedName(Part):
    """Name of a layer: texts, and numbers of scans, which stand for the name that the scan has when it is opened."""

    parts: Annotated[tuple[Text | int, ...], Field(max_length=20)] = ()


class SavedLayer(Part):
    """Settings that all layers have.

    Attributes:
        settings: plain settings of the layer, by the names of napari's attributes.
    """

    name: SavedName = SavedName()
    settings: Plain = {}


class ScanLayer(SavedLayer):
    """A channel of a scan.

    Attributes:
        scan: index of the scan.
        channel: number of the channel.
        window: name of the display window; "" if the limits were set by hand.
    """

    kind: Literal["scan"] = "scan"
    scan: Annotated[int, Field(ge=0, lt=MAX_LAYERS)]
    channel: Annotated[int, Field(ge=0, lt=1000)] = 0
    colormap: SavedColormap = SavedColormap()
    window: Word = ""


class ImageLayer(SavedLayer):
    """An image that was read from no file, with its voxels."""

    kind: Literal["image"] = "image"
    grid: SavedGrid
    modality: Word = ""
    is_oriented: bool = True
    colormap: SavedColormap = SavedColormap()
    is_scan: bool = True

    @property
    def members(self) -> tuple[str, ...]:
        """Kinds of arrays of this layer that lie in the file."""
        return ("images",)


class SavedSegment(Part):
    """A `Segment`."""

    label: Annotated[int, Field(ge=1, le=MAX_LABEL)]
    name: Text
    color: tuple[Byte, Byte, Byte]
    plausible_ml: tuple[float, float] | None = None
    in_one_piece: bool = False
    category: SavedTerm | None = None
    kind: SavedTerm | None = None
    modifier: SavedTerm | None = None

    @classmethod
    def of(cls, segment: Segment, name: str) -> SavedSegment:
        """Return the content for a segment with a name."""
        return cls.model_validate({**vars(segment), "name": name})

    def segment(self) -> Segment:
        """Return the segment."""
        terms = {key: Term(*term) for key in ("category", "kind", "modifier") if (term := getattr(self, key))}
        return Segment(self.label, self.name, self.color, self.plausible_ml, self.in_one_piece, **terms)


class SavedAction(Part):
    """An `EditAction`."""

    name: Text
    label: Label
    structure: Text
    added: Annotated[int, Field(ge=0, lt=2**63)]
    removed: Annotated[int, Field(ge=0, lt=2**63)]


class LabelsLayer(SavedLayer):
    """A labels layer; its label map lies in the same file, and so does what a model found.

    Attributes:
        scan: index of the scan that the labels belong to; None if there is none.
        algorithm: name and version of the program that made the labels; None if a person did.
        is_painted: whether a person changed the labels.
        is_oriented: whether left and right are known.
        hidden: labels that are not drawn.
        actions: actions of the Edit tab.
        kept: data of the tools, such as prompts; see `kept_data`.
        looked_for: labels that the model looks for.
        has_model_labels: whether the file holds the labels as the model made them, too.
        has_model_confidence: whether it holds the network's confidence in each of their voxels.
    """

    kind: Literal["labels"] = "labels"
    grid: SavedGrid
    scan: Annotated[int, Field(ge=0, lt=MAX_LAYERS)] | None = None
    segments: Annotated[tuple[SavedSegment, ...], Field(max_length=MAX_LABEL)] = ()
    confidence: dict[Label, Annotated[float, Field(ge=0, le=1)]] = {}
    algorithm: tuple[Text, Text] | None = None
    is_painted: bool = False
    is_oriented: bool = True
    hidden: Annotated[tuple[Label, ...], Field(max_length=MAX_LABEL)] = ()
    actions: Annotated[tuple[SavedAction, ...], Field(max_length=1_000_000)] = ()
    kept: Plain = {}
    looked_for: Annotated[tuple[Label, ...], Field(max_length=MAX_LABEL)] = ()
    has_model_labels: bool = False
    has_model_confidence: bool = False

    @property
    def members(self) -> tuple[str, ...]:
        """Kinds of arrays of this layer that lie in the file."""
        model = ("model_labels",) * self.has_model_labels + ("model_confidence",) * self.has_model_confidence
        return ("labels", *model)


AnyLayer = Annotated[ScanLayer | ImageLayer | LabelsLayer, Field(discriminator="kind")]


class SavedView(Part):
    """What the viewer shows.

    Attributes:
        point: crosshair in napari's world, in mm.
        order: order of the axes.
        has_planes: whether the linked planes are open.
    """

    point: Triple = (0, 0, 0)
    order: tuple[Literal[0, 1, 2], Literal[0, 1, 2], Literal[0, 1, 2]] = (0, 1, 2)
    ndisplay: Literal[2, 3] = 2
    camera_center: Triple = (0, 0, 0)
    camera_zoom: Annotated[float, Field(gt=0, lt=1e9)] = 1
    camera_angles: Triple = (0, 0, 90)
    has_planes: bool = False


class SavedModel(Part):
    """A model, by what it is; the folder that it lies in is not known.

    Attributes:
        digest: salted digest of its weights, configs and code; "" if they could not be read.
    """

    name: Text
    version: Text
    digest: Digest | Literal[""] = ""


class SavedPanel(Part):
    """State of the panel.

    Attributes:
        tab: title of the front tab.
        tools: settings of the tools of the Edit tab, as in `widgets.settings_of`.
        model: the chosen model; None if there is none.
        adds_confidence: whether a run adds a layer with the confidence.
    """

    tab: Word = ""
    tools: Annotated[dict[Word, bool | float], Field(max_length=1000)] = {}
    model: SavedModel | None = None
    adds_confidence: bool = False


class SessionContent(Part):
    """Everything that a session file says; label maps and images without files lie next to it.

    Attributes:
        program: name and version of the program that wrote it.
        salt: key of all digests of this file.
        frame: (3, 3) frame of the viewer, as in `LayerPlacement.frame`.
        layers: layers in their order.
        active: index of the active layer; None if there is none.
    """

    program: Text
    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    salt: Digest
    frame: tuple[Triple, Triple, Triple] | None = None
    scans: Annotated[tuple[SavedScan, ...], Field(max_length=MAX_LAYERS)] = ()
    layers: Annotated[tuple[AnyLayer, ...], Field(max_length=MAX_LAYERS)] = ()
    active: Annotated[int, Field(ge=0)] | None = None
    view: SavedView = SavedView()
    panel: SavedPanel = SavedPanel()

    def scan_mark(self, number: int) -> ScanMark:
        """Return the mark of a scan; one that fits no scan if there is no such number."""
        if number >= len(self.scans):
            return ScanMark(self.salt, ())
        scan = self.scans[number]
        digests = tuple(mark.digest for mark in scan.files[:MAX_FILES_OF_MARK])
        return ScanMark(self.salt, digests, volume=scan.volume)

    def frame_array(self) -> NDArray[np.float64] | None:
        """Return the frame; None if it is missing or is no orthogonal matrix."""
        if self.frame is None:
            return None
        frame = np.array(self.frame)
        return frame if np.allclose(frame @ frame.T, np.eye(3), atol=1e-6) else None

    def stored(self) -> dict[str, LabelsLayer | ImageLayer]:
        """Return the layers whose voxels lie in the file, by the names of their members."""
        return {
            member_of(kind, number): layer
            for number, layer in enumerate(self.layers)
            if not isinstance(layer, ScanLayer)
            for kind in layer.members
        }


def format_of(layers: Iterable[AnyLayer]) -> int:
    """Return the lowest format that can hold layers, so that earlier programs open them if they can."""
    holds_model = any(isinstance(one, LabelsLayer) and len(one.members) > 1 for one in layers)
    return FORMAT if holds_model else 1


def member_of(kind: str, number: int) -> str:
    """Return the name of the member that holds an array of a layer.

    Args:
        kind: kind of the array, as in `LabelsLayer.members`.
        number: number of the layer.
    """
    return f"{kind}/{number}.nii"
