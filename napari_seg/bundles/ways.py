"""`way_of`: how a bundle can be run, and why; decided from plain data, nothing of the bundle runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from napari_seg.bundles.config.read import TooLargeError, inference_config, read_config
from napari_seg.bundles.config.resolve import ResolveError, Resolver
from napari_seg.bundles.config.sections import Sections, find_sections, missing_keys, targets
from napari_seg.bundles.metadata import MAX_METADATA_BYTES
from napari_seg.bundles.output import Output
from napari_seg.bundles.postprocessing import read_output
from napari_seg.bundles.spec import METADATA, Bundle, EnsembleBundle, described
from napari_seg.bundles.weights.find import find_weights, weight_files
from napari_seg.errors import BundleError, one_line

WayKind = Literal["engine", "workflow", "refused"]


@dataclass(frozen=True)
class Way:
    """How a bundle can be run.

    Attributes:
        kind: "engine", our inference; "workflow", MONAI runs the config exactly as written; "refused".
        needs_consent: whether code or expressions of the bundle run.
        reasons: why it is no simpler way, such as "configs/inference.json: network_def._target_ scripts.net.Net is the
            bundle's own code"; empty for the engine without consent.
    """

    kind: WayKind
    needs_consent: bool
    reasons: tuple[str, ...] = ()


def way_in_words(kind: WayKind, needs_consent: bool, *, consented: bool = False) -> str:
    """Return how a bundle runs, in the words that every list and page uses.

    Args:
        kind: as in `Way`.
        needs_consent: as in `Way`.
        consented: whether the user consented to the bundle's content.
    """
    if kind == "refused":
        return "can't be used"
    if not needs_consent:
        return "runs at once"
    return ("consent given" if consented else "needs your consent") + "; MONAI runs it" * (kind == "workflow")


_TASKS = (
    (
        "RetinaNet RetinaNetDetector AnchorGeneratorWithAnchorShape ClipBoxToImaged AffineBoxToWorldCoordinated "
        "ConvertBoxModed ConvertBoxToStandardModed",
        "it detects objects and returns boxes, not labels",
    ),
    (
        "HoVerNet HoVerNetNuclearTypePostProcessingd HoVerNetInstanceMapPostProcessingd SlidingWindowHoVerNetInferer "
        "CellSamWrapper LogitsToLabelsd Watershedd",
        "it separates single objects such as cells (instances), which a label map of structures does not hold",
    ),
    (
        "VISTA3D vista3d132 Vista3dInferer Vista3dEvaluator VistaPreTransformd VistaPostTransformd",
        "it needs prompts (points or label numbers) for every scan",
    ),
    ("AddClickSignalsd", "it needs a click on every structure"),
    (
        "DiffusionModelUNet DiffusionModelUNetMaisi ControlNet ControlNetMaisi AutoencoderKL AutoencoderKlMaisi "
        "DDPMScheduler DDIMScheduler PNDMScheduler RFlowScheduler DiffusionInferer LatentDiffusionInferer",
        "it generates images",
    ),
    ("PointRegressor LandmarkInferer", "it finds landmarks, not structures"),
    ("Warp VoxelMorph RegUNet RegResNet LocalNet GlobalNet", "it registers images"),
)
"""Names of components, whole, -> what a bundle with them does instead of segmenting."""

_CLASSIFIERS = re.compile(
    r"TorchVisionFCModel|(DenseNet|(SE)?ResNet|SE(Res)?Ne?[tx]t?|SENet)\d*|EfficientNetBN|Classifier|Regressor|MILModel"
)
"""MONAI's networks that give one answer for a whole image."""

_OUTPUTS = {
    "object": "it detects objects and returns boxes, not labels",
    "probabilities": "it classifies whole images",
    "points": "it finds landmarks, not structures",
    "classes": "it classifies whole images",
    "classification": "it classifies whole images",
    "noise": "it generates images",
    "feature": "it generates images",
}
"""Type or format of an output in the metadata -> what the bundle does instead of segmenting."""

_RUNS = ("run", "evaluating", "inference", "evaluator")
"""Ids by which MONAI runs a config."""


def way_of(bundle: Bundle, resolver: Resolver | None = None) -> Way:
    """Return how a bundle can be run, and why.

    Args:
        bundle: a bundle.
        resolver: the entries of its inference config from `resolver_of`, if they were read before.

    Raises:
        BundleError: `bundle.config`, its inference config can't be read or has no network; `bundle.too_large`.
    """
    if isinstance(bundle, EnsembleBundle):
        return _way_of_all([(member.root.name, way_of(member)) for member in bundle.members])
    if bundle.kind != "monai":  # plain data in every part
        return Way("engine", False)
    path = inference_config(bundle.root)
    name = f"configs/{path.name}"
    resolver = resolver or resolver_of(bundle)
    try:
        if task := _other_task(resolver):
            return Way("refused", False, (f"{name}: {task}",))
        sections = find_sections(resolver)
        own = resolver.problems(sections.network, sections.preprocessing)
        own_inferer = resolver.problems(sections.inferer) if sections.inferer else []
        unsupported = _unsupported(bundle, resolver, sections, own)
    except Exception as error:  # a foreign config can hold anything
        raise _unreadable(bundle, path.name, error) from error
    if not unsupported and not any(id in resolver for id in _RUNS):
        own, own_inferer = own + own_inferer, []  # MONAI has nothing to run: its parser builds the inferer for us
    if own_inferer or unsupported:
        return Way("workflow", True, tuple(f"{name}: {one}" for one in (*own, *own_inferer, *unsupported)))
    if _runs_torchscript(resolver):
        own.append("the weights are a program of TorchScript")
    return Way("engine", bool(own), tuple(f"{name}: {one}" for one in own))


def _way_of_all(ways: Sequence[tuple[str, Way]]) -> Way:
    """Return the way of an ensemble, from names and ways of its members, which only the engine can average."""
    kind: WayKind = "engine" if all(way.kind == "engine" for _, way in ways) else "refused"
    reasons = tuple(f"{name}/{reason}" for name, way in ways for reason in way.reasons)
    return Way(kind, any(way.needs_consent for _, way in ways), reasons)


def missing_weights(bundle: Bundle) -> str:
    """Return that the weights of a bundle are missing, and how to get them, as text; "" if they are there.

    Where MONAI runs the bundle as it is written, any file of weights may be the right one.
    """
    if isinstance(bundle, EnsembleBundle):
        return next(filter(None, map(missing_weights, bundle.members)), "")
    if bundle.kind != "monai":  # found by their weights
        return ""
    if bundle.previous is not None and (missing := missing_weights(bundle.previous)):
        return missing
    try:
        resolver = resolver_of(bundle)
        kind = way_of(bundle, resolver).kind
        if kind == "engine" or (kind == "workflow" and not weight_files(bundle.root)):
            find_weights(resolver)
    except BundleError as error:
        return error.message if error.code == "bundle.weights" else ""
    return ""


def resolver_of(bundle: Bundle) -> Resolver:
    """Return the entries of a bundle's inference config, for plain data.

    Raises:
        BundleError: `bundle.config`, it can't be read; `bundle.too_large`, it exceeds a limit.
    """
    path = inference_config(bundle.root)
    try:
        return Resolver(read_config(path), bundle, None, read_config(bundle.root / METADATA, MAX_METADATA_BYTES))
    except Exception as error:  # a damaged file can raise anything
        raise _unreadable(bundle, path.name, error) from error


def _unsupported(bundle: Bundle, resolver: Resolver, sections: Sections, own: list[str]) -> list[str]:
    """Return what the engine can't do for a bundle, with or without consent."""
    output = read_output(resolver.entries, bundle.out_channels, bundle.thresholds, bundle.background)
    found = [] if isinstance(output, Output) else [f"postprocessing uses {one}" for one in output]
    if any("Guidance" in one for one in own):
        found.append(
            f"{sections.preprocessing} takes guidance (clicks), of which there is none: MONAI runs it as written"
        )
    if len(sections.image_keys) > 1:
        found.append(f"{sections.preprocessing} reads several images ({', '.join(sections.image_keys)})")
    else:
        found += missing_keys(resolver, sections)
    return found


def _unreadable(bundle: Bundle, name: str, error: BaseException) -> BundleError:
    cause = one_line(f"{type(error).__name__}: {error}" if not isinstance(error, ResolveError) else error, 200)
    text = f"{name} of {described(bundle.root)} can't be used ({cause}); expected a MONAI config"
    is_too_large = isinstance(error, TooLargeError) or isinstance(error.__cause__, TooLargeError)
    return BundleError("bundle.too_large" if is_too_large else "bundle.config", text)


def _other_task(resolver: Resolver) -> str:
    """Return what a bundle does if it does not segment; "" if it does."""
    outputs = resolver.plain("_meta_").get("network_data_format")
    outputs = outputs.get("outputs") if isinstance(outputs, dict) else None
    entries = list(outputs.values()) if isinstance(outputs, dict) else []
    formats = [str(one.get("format")) for one in entries if isinstance(one, dict)]
    if "segmentation" not in formats:
        for one in entries:
            for key in ("type", "format"):
                if isinstance(one, dict) and (task := _OUTPUTS.get(str(one.get(key)))):
                    return task
    found = targets(resolver)
    for id, target in found:
        for names, task in _TASKS:
            if target.rpartition(".")[2] in names.split():
                return f"{id.replace('::', '.')}._target_ {one_line(target, 120)}: {task}"
        if id in ("network_def", "network", "net", "model") and _CLASSIFIERS.fullmatch(target.rpartition(".")[2]):
            return f"{id}._target_ {one_line(target, 120)}: it classifies whole images"
    return ""


def _runs_torchscript(resolver: Resolver) -> bool:
    try:
        return find_weights(resolver).is_torchscript
    except BundleError:  # missing weights are reported before a run
        return False
