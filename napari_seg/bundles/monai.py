"""Load MONAI bundles. From here on the bundle's own code runs."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from weakref import finalize
from zipfile import is_zipfile

import torch
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from monai.inferers import Inferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from napari_seg.bundles.config import inference_config, read_config
from napari_seg.bundles.model import Model
from napari_seg.bundles.modules import BundleModules, with_public_names
from napari_seg.bundles.spec import MAX_METADATA_BYTES, METADATA, WEIGHTS, Bundle
from napari_seg.errors import BundleError, one_line


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
    weights = bundle.root / WEIGHTS
    return _load(bundle.root, weights, weights.stat().st_mtime_ns, device, dtype)


@lru_cache(maxsize=2)
def _load(root: Path, weights: Path, weights_changed: int, device: torch.device, dtype: torch.dtype) -> Model:
    """Load a model; `weights_changed` tells a model that was trained again from the one in memory."""
    modules = BundleModules(root)
    try:
        transforms, inferer, network = _parse_config(root, device, modules)
        _load_weights(network, weights)
    except BaseException:
        modules.forget()
        raise
    model = Model(network.to(device).eval(), _without_loading(transforms), inferer, device, dtype)
    finalize(model, modules.forget).atexit = False
    return model


def _parse_config(
    root: Path, device: torch.device, modules: BundleModules
) -> tuple[Sequence[Any], Inferer, torch.nn.Module]:
    """Return the transforms, the inferer and the network of a bundle's inference config."""
    config = inference_config(root)
    try:
        with modules.importable():
            parser = _parser(root, config, device)
            transforms = parser.get_parsed_content("preprocessing").transforms
            return transforms, parser.get_parsed_content("inferer"), parser.get_parsed_content("network_def")
    except Exception as error:  # a foreign config can raise anything
        raise BundleError(
            "bundle.config",
            f"{config.name} of bundle {root.name!r} can't be used: {cause_of(error, root)}; "
            "expected the ids network_def, preprocessing (a Compose) and inferer",
        ) from error


def _parser(root: Path, config: Path, device: torch.device) -> ConfigParser:
    merged = ConfigParser()
    for key, value in deepcopy(read_config(config)).items():  # as MONAI merges the entries of a file
        merge_kv(merged, key, value)
    parser = ConfigParser()
    parser.read_config(merged.get())
    parser.read_meta(deepcopy(read_config(root / METADATA, MAX_METADATA_BYTES)))
    parser.update({"bundle_root": str(root), "device": device})
    return parser


def _without_loading(transforms: Sequence[Any]) -> Compose:
    """Return the transforms without those that read a file or find its channels: reading a Volume has done both."""
    return Compose([t for t in transforms if not isinstance(t, LoadImaged | EnsureChannelFirstd)])


def _load_weights(network: torch.nn.Module, path: Path) -> None:
    try:
        state = _read_weights(path)
        state = state.get("model", state)
    except Exception as error:  # unpickling a foreign file can raise anything
        raise _misfit(path, cause_of(error, path.parents[1])) from error
    try:
        own = network.state_dict()
        network.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, assign=True)
    except Exception as error:  # so can a foreign network
        raise _misfit(path, _differences(network, state) or cause_of(error, path.parents[1])) from error


def _read_weights(path: Path) -> Any:
    """Return the content of a file of weights; on Linux its numbers take no memory until they are used.

    They are mapped from a copy of the file, because whoever writes to a mapped file changes the network or ends this
    process. The copy has no name and is gone with the process.
    """
    if sys.platform == "linux" and is_zipfile(path):  # torch maps zip files only
        with suppress(OSError), TemporaryFile() as copy, path.open("rb") as file:  # the disk may be full
            shutil.copyfileobj(file, copy)
            copy.flush()
            return torch.load(f"/proc/self/fd/{copy.fileno()}", map_location="cpu", weights_only=True, mmap=True)
    return torch.load(path, map_location="cpu", weights_only=True)


def _misfit(path: Path, cause: str) -> BundleError:
    return BundleError(
        "bundle.weights",
        f"{path.name} of bundle {path.parents[1].name!r} does not fit its network_def: {cause}; expected the state "
        "dictionary of that network, saved by torch.save",
    )


def _differences(network: torch.nn.Module, state: Any) -> str:
    """Return which weights differ between a network and a file; "" if none do by name or shape."""
    if not isinstance(state, dict):
        return ""
    expected, found = network.state_dict(), state
    shapes = {
        key: [tuple(getattr(one[key], "shape", ())) for one in (expected, found)] for key in expected if key in found
    }
    groups = (
        ("missing in the file", [key for key in expected if key not in found]),
        ("unknown to the network", [key for key in found if key not in expected]),
        ("of another shape", [f"{key} {old} for {new}" for key, (new, old) in shapes.items() if new != old]),
    )
    parts = [
        f"{len(keys)} {what} ({', '.join(map(str, keys[:3]))}{', …' * (len(keys) > 3)})"
        for what, keys in groups
        if keys
    ]
    return one_line("weights " + ", ".join(parts), _MAX_CAUSE) if parts else ""


_PACKAGES = {
    "cv2": "opencv-python-headless",
    "ignite": "pytorch-ignite",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Name in an import statement -> name for pip, where they differ."""

_MAX_CAUSE = 400
"""Length limit of a cause in a message, in characters."""


def cause_of(error: BaseException, root: Path) -> str:
    """Return the cause of a library's error on one line: a missing package, or the innermost error.

    Args:
        error: from the library; MONAI wraps the errors of a config in its own.
        root: the bundle's root; its modules are no missing packages.
    """
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    for one in reversed(chain):
        # MONAI imports some packages late and quotes Python's message
        message = with_public_names(str(one))
        named = re.search(r"No module named '([\w.]+)'|required package `([\w.-]+)`", message)
        package = ((named.group(1) or named.group(2)) if named else "").partition(".")[0]
        if package and not any((folder / package).exists() for folder in (root, root / "scripts")):
            name = _PACKAGES.get(package, package)
            return one_line(f"the package {package} is not installed (pip install {name})", _MAX_CAUSE)
    text = with_public_names(str(chain[-1]) or str(error))
    return one_line(f"{type(chain[-1]).__name__}: {text}" if text else type(chain[-1]).__name__, _MAX_CAUSE)
