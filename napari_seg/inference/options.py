"""Options of a run, defined once: `segment` takes them, and command line, plugin, records and estimates derive them."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from napari_seg.bundles.precision import Precision
from napari_seg.bundles.tta import TTA

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle

BackendName = Literal["auto", "torch", "openvino"]
"""Programs that can run a network."""

WindowLayout = Literal["fewest", "even", "bundle"]
"""Ways to lay windows over a scan."""

MatchMode = Literal["auto", "exact", "fast"]
"""Ways to run a model: as its own program does, or faster."""


def _about(
    help_text: str, choices: Any = None, *, changes_labels: bool = True, for_coarse_pass: bool = False
) -> dict[str, Any]:
    """Return the explanation, the allowed values and the effects of one option."""
    effects = {"changes_labels": changes_labels, "for_coarse_pass": for_coarse_pass}
    return {"help": help_text, "choices": get_args(choices), **effects}


_DEVICE = _about("auto (a GPU if there is one), cpu, cuda or cuda:N", for_coarse_pass=True)
_BACKEND = _about(
    "program that runs the network; auto uses OpenVINO on a processor if it is installed and the scans of the run are "
    "large enough, or enough, to make up for compiling the network, otherwise torch",
    BackendName,
    for_coarse_pass=True,
)
_PRECISION = _about(
    "number format of the network; auto is float16 on a GPU, and on a processor bfloat16 if it is supported and a part "
    "of the scan's first window gets the same labels (99.9 % of its voxels), otherwise float32. bfloat16 takes about "
    "half the time, and half of the network's memory; few voxels change",
    Precision,
    for_coarse_pass=True,
)
_MEMORY = _about(
    "most memory that the whole process may use, such as 4GiB; by default its own and four fifths of the free memory. "
    "Less memory takes more time",
    for_coarse_pass=True,
)
_MATCH = _about(
    "exact runs a model as its own program does: its windows, the air around the body too, mirror images as the "
    "training allows, float32 on a processor. fast takes fewer windows, and leaves out the air and mirror "
    "images; labels change, mostly at borders. auto is exact for models of nnU-Net and TotalSegmentator and those "
    "trained from them, and fast for other MONAI bundles",
    MatchMode,
    for_coarse_pass=True,
)
_WINDOWS = _about(
    "fewest covers a scan with as few windows as the bundle's overlap allows, which may be up to half as long again; "
    "even spaces windows of the bundle's size evenly, as nnU-Net does; bundle places them exactly as MONAI does; by "
    "default as --match says",
    WindowLayout,
    for_coarse_pass=True,
)
_CROP = _about("skip the air around the body in CT and MR scans, and whatever a bundle's coarse pass excludes")
_TTA = _about(
    "test-time averaging: shifts averages four copies of each window, shifted by 0 to 3 voxels, in four times the "
    "network's time; mirror averages mirror images, in eight times, for networks that do not distinguish left from "
    "right; none does neither; by default as the bundle declares (none in the shipped bundle), and for nnU-Net as "
    "--match says",
    TTA,
)
_KEEP_ISLANDS = _about(
    "keep every island of a structure that the bundle declares to be in one piece; by default all but the largest "
    "are removed, and reported",
)
_STRUCTURES = _about("only these structures, by their names; for TotalSegmentator only the models that find them run")
_POSTPROCESS = _about(
    "also apply the steps on label maps that nnU-Net chose for a model by cross-validation (postprocessing.json): they "
    "keep only the largest island of some structures",
)
_CONFIDENCE_MAPS = _about("also compute the winner's probability and the entropy of every voxel", changes_labels=False)


@dataclass(frozen=True)
class SegmentOptions:
    """How a scan is segmented.

    Attributes:
        device: where the network runs: "auto", "cpu", "cuda" or "cuda:<n>".
        backend: program that runs the network.
        precision: number format of the network.
        memory_bytes: most memory that the whole process may use; None: its own and four fifths of the free memory.
        windows: way to lay windows over the scan; None: as `match` says.
        crop: skip the air around the body, and whatever a bundle's coarse pass excludes.
        tta: test-time averaging; None: as the bundle declares, and for a model of nnU-Net as `match` says.
        keep_islands: keep every island of a structure that the bundle declares to be in one piece.
        confidence_maps: also compute the winner's probability and the entropy of every voxel.
        match: whether a model gives the labels of its own program.
        structures: names of the structures in the result; empty: all.
        postprocess: apply the steps on label maps that nnU-Net chose by cross-validation.
        scans: number of scans that the model will segment; many small ones are worth compiling the network.

    Raises:
        ValueError: an attribute has a value that is not allowed.
    """

    device: str = field(default="auto", metadata=_DEVICE)
    backend: BackendName = field(default="auto", metadata=_BACKEND)
    precision: Precision = field(default="auto", metadata=_PRECISION)
    memory_bytes: int | None = field(default=None, metadata=_MEMORY)
    windows: WindowLayout | None = field(default=None, metadata=_WINDOWS)
    crop: bool = field(default=True, metadata=_CROP)
    tta: TTA | None = field(default=None, metadata=_TTA)
    keep_islands: bool = field(default=False, metadata=_KEEP_ISLANDS)
    confidence_maps: bool = field(default=False, metadata=_CONFIDENCE_MAPS)
    match: MatchMode = field(default="auto", metadata=_MATCH)
    structures: tuple[str, ...] = field(default=(), metadata=_STRUCTURES)
    postprocess: bool = field(default=False, metadata=_POSTPROCESS)
    scans: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "structures", tuple(self.structures))  # a list, from JSON or the command line
        for option in option_fields():
            choices, value = option.metadata["choices"], getattr(self, option.name)
            if choices and value not in choices and value != option.default:
                raise ValueError(f"found {option.name}={value!r}; expected one of {', '.join(choices)}")

    def resolved(self, bundle: Bundle) -> SegmentOptions:
        """Return these options with what `match` says for a bundle; what was chosen itself stays."""
        is_foreign = any(model.kind != "monai" for model in bundle.models)
        is_exact = self.match == "exact" or (self.match == "auto" and (is_foreign or bundle.is_exact))
        if not is_exact:
            return replace(self, match="fast", windows=self.windows or "fewest")
        layout: WindowLayout = "even" if is_foreign else "bundle"
        return replace(self, match="exact", windows=self.windows or layout, crop=False)

    def of_coarse_pass(self) -> SegmentOptions:
        """Return the options of a bundle's coarse pass: those of this machine, with defaults for the rest."""
        names = [option.name for option in option_fields() if option.metadata["for_coarse_pass"]]
        return SegmentOptions(**{name: getattr(self, name) for name in names}, scans=self.scans)

    def to_record(self) -> dict[str, Any]:
        """Return the options that can change labels, if only by rounding, as plain values for JSON."""
        return {
            option.name: getattr(self, option.name) for option in option_fields() if option.metadata["changes_labels"]
        }


def option_fields() -> tuple[Field, ...]:
    """Return the options of a user, each with its `name`, its `default`, and in `metadata` "help" and "choices"."""
    return tuple(option for option in fields(SegmentOptions) if option.metadata)
