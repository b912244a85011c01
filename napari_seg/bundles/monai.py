"""Load MONAI bundles.

A bundle whose config is on the list of `allowed.py` is built by our `Resolver`, and nothing of it runs. Any other is
built by MONAI's parser, which runs the bundle's own code from here on.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer, SimpleInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, MapTransform, Transform

from napari_seg.bundles.causes import cause_of
from napari_seg.bundles.config.objects import fitted_config
from napari_seg.bundles.config.read import inference_config, read_config
from napari_seg.bundles.config.resolve import Resolver
from napari_seg.bundles.config.sections import Sections, find_sections
from napari_seg.bundles.content import consent_hash
from napari_seg.bundles.dimensions import REFERENCE_KEYS
from napari_seg.bundles.metadata import MAX_METADATA_BYTES
from napari_seg.bundles.model import Model
from napari_seg.bundles.modules import BundleModules
from napari_seg.bundles.output import Output
from napari_seg.bundles.spec import METADATA, Bundle, described
from napari_seg.bundles.ways import resolver_of, way_of
from napari_seg.bundles.weights.find import Weights, find_weights, load_weights
from napari_seg.errors import BundleError, Notice


def load_monai(bundle: Bundle, device: torch.device, dtype: torch.dtype) -> Model:
    """Return the model of a MONAI bundle; the last two are kept in memory.

    Args:
        bundle: a bundle that may run, with weights.
        device: where the network will run.
        dtype: number format of its computations.

    Raises:
        BundleError: `bundle.config`, the inference config can't be used; `bundle.weights`, the weights do not fit the
            network.
    """
    resolver = resolver_of(bundle)
    weights = find_weights(resolver)
    runs_code = way_of(bundle, resolver).needs_consent
    states = [str(path.stat().st_mtime_ns) for path in (inference_config(bundle.root), weights.path)]
    states += [consent_hash(bundle)] if runs_code else []
    return _load(bundle.root, weights, tuple(states), device, dtype, runs_code, (bundle.output, bundle.spatial_dims))


@lru_cache(maxsize=2)
def _load(
    root: Path,
    weights: Weights,
    states: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    runs_code: bool,
    settings: tuple[Output, int],
) -> Model:
    """Load a model; `states` tells a model that changed on disk from the one in memory."""
    modules = BundleModules(root) if runs_code else None
    try:
        (transforms, inferer, network), changes = _objects(root, weights, device, modules)
        if not weights.is_torchscript:
            load_weights(network, weights)
    except BaseException:
        if modules is not None:
            modules.forget()
        raise
    notices = tuple(Notice("bundle.fitted", change) for change in dict.fromkeys(changes))
    model = Model(network.to(device).eval(), transforms, inferer, device, dtype, *settings, notices)
    if modules is not None:
        finalize(model, modules.forget).atexit = False
    return model


def _objects(
    root: Path, weights: Weights, device: torch.device, modules: BundleModules | None
) -> tuple[tuple[Compose, Inferer, torch.nn.Module], list[str]]:
    """Return the transforms, the inferer and the network of an inference config, and what was left out of it."""
    config = inference_config(root)
    try:
        resolver = Resolver(read_config(config), root, device, read_config(root / METADATA, MAX_METADATA_BYTES))
        sections = find_sections(resolver)
        if modules is None:
            return _sections(sections, resolver.build, weights, device, resolver.notices), resolver.notices
        with modules.importable():
            build = _parser(resolver, device).get_parsed_content
            return _sections(sections, build, weights, device, resolver.notices), resolver.notices
    except Exception as error:  # a foreign config can raise anything
        raise BundleError(
            "bundle.config",
            f"{config.name} of {described(root)} can't be used: {cause_of(error, root)}; "
            "expected the ids network_def, preprocessing (a Compose) and inferer",
        ) from error


def _sections(
    sections: Sections, build: Callable[[str], Any], weights: Weights, device: torch.device, notices: list[str]
) -> tuple[Compose, Inferer, torch.nn.Module]:
    preprocessing = build(sections.preprocessing)
    transforms = getattr(preprocessing, "transforms", preprocessing)
    if not isinstance(transforms, list | tuple):
        raise TypeError(f"{sections.preprocessing} is a {type(preprocessing).__name__}, not a Compose or a list")
    inferer = build(sections.inferer) if sections.inferer else SimpleInferer()
    network = torch.jit.load(weights.path, map_location=device) if weights.is_torchscript else build(sections.network)
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"{sections.network} is a {type(network).__name__}, not a network")
    # reading a Volume has done what these do
    kept = [t for t in transforms if t is not None and not isinstance(t, LoadImaged | EnsureChannelFirstd)]
    for one in Compose(kept).flatten().transforms:
        if isinstance(one, MapTransform) and not REFERENCE_KEYS.isdisjoint(one.keys):
            one.allow_missing_keys = True  # `way_of` has checked that the image does not depend on the label map
            left_out = ", ".join(str(key) for key in one.keys if key in REFERENCE_KEYS)
            notices.append(f"the preprocessing also uses {left_out}, which a scan does not have; it is left out")
    if sections.image_keys != ("image",):
        key = sections.image_keys[0]
        kept = [_Renamed("image", key), *kept, _Renamed(key, "image")]
    return Compose(kept), inferer, network


class _Renamed(Transform):
    """Gives an entry of a dictionary another key."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {self.new if key == self.old else key: value for key, value in data.items()}


def _parser(resolver: Resolver, device: torch.device) -> ConfigParser:
    """Return MONAI's parser of the entries that were checked, fitted to this version of MONAI."""
    parser = ConfigParser()
    parser.set(fitted_config(deepcopy(resolver.entries), resolver.notices))
    parser.update({"bundle_root": str(resolver.root), "device": device})
    return parser
