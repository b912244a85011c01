"""A bundle's network and what surrounds it, ready to run. From here on the bundle's own code runs."""

from __future__ import annotations

import copy
import logging
import re
import threading
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from napari_seg.bundles.spec import METADATA, WEIGHTS, Bundle, check_runnable, inference_config, one_line, own_modules
from napari_seg.errors import BundleError
from napari_seg.inference.backends.base import Precision, arithmetic
from napari_seg.inference.plan import COMPILED_MEMORY

log = logging.getLogger(__name__)


class Model:
    """A network, in memory while somebody wants it, and what a bundle surrounds it with.

    Args:
        network: in evaluation mode on `device`; (N, C, *spatial) -> logits (N, classes, *spatial).
        preprocessing: the bundle's transforms after loading, on a dictionary with `image`, a MetaTensor (C, I, J, K).
        inferer: the bundle's.
        device: where the network is.
        dtype: what it computes in.
        weights: the file that all its numbers are in; None: they are nowhere else, and stay in memory.
        weights_changed: when that file was, in nanoseconds.

    Attributes:
        outline: the network with all its shapes, and no numbers if they can be read again.
        compiled_memory: of the maps that torch holds at once, what the network takes once compiled, as far as is known.
        batch_seconds: what batches took so far; (name of the backend, shape) -> seconds.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        preprocessing: Compose,
        inferer: Inferer,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        weights: Path | None = None,
        weights_changed: int = 0,
    ) -> None:
        self.outline = network
        self.compiled_memory = COMPILED_MEMORY
        self.batch_seconds: dict[tuple[str, tuple[int, ...]], float] = {}
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.device = device
        self.dtype = dtype
        self._held: torch.nn.Module | None = network
        self._alive = weakref.ref(network)  # whoever has a network keeps it when it is let go here
        self._weights = weights
        self._changed = weights_changed
        self._loading = threading.Lock()
        if weights is not None:
            try:
                self.outline = _outline(network)
            except Exception as error:  # a network can hold anything
                log.debug("the network stays in memory, since it can't be copied (%s)", type(error).__name__)

    @property
    def network(self) -> torch.nn.Module:
        """The network, its weights read again if they were let go.

        Raises:
            BundleError: `bundle.weights`, their file is gone or another than before.
        """
        with self._loading:
            network = self._held or self._alive()
            if network is None:
                assert self._weights is not None
                _check_unchanged(self._weights, self._changed)
                network = _with_room(self.outline)
                _load_weights(network, self._weights)
                self._alive = weakref.ref(network)
            self._held = network
            return network

    def let_go(self) -> None:
        """Gives back the memory of the weights, now that something else runs the network."""
        if self.outline is not self._held:
            self._held = None


def load_model(bundle: Bundle, device: str, precision: Precision = "auto") -> Model:
    """A bundle's network with its weights, its preprocessing and its inferer; the last two loaded are kept.

    Args:
        bundle: one that is trusted.
        device: torch's name of a device.
        precision: what the network computes in; "auto": float16 on a GPU, float32 on a processor.

    Raises:
        EnvironmentFault: `environment.precision`, the device does not compute in it.
        BundleError: `bundle.untrusted`; `bundle.config`, the inference config can't be used; `bundle.weights`,
            the weights are missing or do not fit the network.
    """
    check_runnable(bundle)
    weights = bundle.root / WEIGHTS
    dtype = arithmetic(precision, torch.device(device))
    return _load_model(bundle.root, weights, weights.stat().st_mtime_ns, device, dtype)


@lru_cache(maxsize=2)
def _load_model(root: Path, weights: Path, weights_changed: int, device: str, dtype: torch.dtype) -> Model:
    """`weights_changed` keeps a model that was trained anew from being taken for the old one."""
    config = inference_config(root)
    torch_device = torch.device(device)
    with own_modules(root):
        try:
            parser = _parser(root, config, torch_device)
            transforms = parser.get_parsed_content("preprocessing").transforms
            inferer = parser.get_parsed_content("inferer")
            # with a parser of its own nothing but the model holds it, since lambdas hold all that theirs has made
            is_shared = any(isinstance(made, torch.nn.Module) for made in parser.ref_resolver.resolved_content.values())
            network = (parser if is_shared else _parser(root, config, torch_device)).get_parsed_content("network_def")
        except Exception as error:  # whatever a foreign config raises is the config's fault, and is told
            raise BundleError(
                "bundle.config",
                f"{config.name} of bundle {root.name!r} can't be used: {cause_of(error, root)}; "
                "expected the ids network_def, preprocessing (a Compose) and inferer",
            ) from error
    state = _load_weights(network, weights)
    network = network.to(torch_device).eval()
    again = weights if not is_shared and _runs_with(network, state) else None
    return Model(network, _without_loading(transforms), inferer, torch_device, dtype, again, weights_changed)


def _parser(root: Path, config: Path, device: torch.device) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.read_meta(str(root / METADATA))
    parser.update({"bundle_root": str(root), "device": device})
    return parser


def _without_loading(transforms: tuple) -> Compose:
    """The transforms without those that read a file or find its channels: a Volume has both behind it."""
    return Compose([t for t in transforms if not isinstance(t, LoadImaged | EnsureChannelFirstd)])


def _check_unchanged(weights: Path, changed: int) -> None:
    found = weights.stat().st_mtime_ns if weights.is_file() else None
    if found != changed:
        became = "removed" if found is None else "changed"
        raise BundleError(
            "bundle.weights",
            f"{weights.name} of bundle {weights.parents[1].name!r} was {became} while it was in use; expected the file "
            "that was loaded first; run this again",
        )


def _runs_with(network: torch.nn.Module, state: dict[str, Any]) -> bool:
    """Whether all of a network's numbers are those of a file; some networks merge theirs once they are loaded."""
    return all(
        isinstance(value, torch.Tensor) and name in state and torch.equal(value.cpu(), state[name].to(value.dtype))
        for name, value in network.state_dict().items()
    )


def _load_weights(network: torch.nn.Module, path: Path) -> dict[str, Any]:
    """What was read, by name."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state)
    except Exception as error:  # unpickling a stranger's file can raise anything
        raise _misfit(path, cause_of(error, path.parents[1])) from error
    try:
        network.load_state_dict(state)
    except Exception as error:  # so can a stranger's network
        raise _misfit(path, _differences(network, state) or cause_of(error, path.parents[1])) from error
    return state


def _misfit(path: Path, cause: str) -> BundleError:
    return BundleError(
        "bundle.weights",
        f"{path.name} of bundle {path.parents[1].name!r} does not fit its network_def: {cause}; expected the state "
        "dictionary of that network, saved by torch.save",
    )


def _differences(network: torch.nn.Module, state: Any) -> str:
    """Return which weights a network and a file do not share; "" where that says nothing."""
    if not isinstance(state, dict):
        return ""
    here, there = network.state_dict(), state
    shapes = {key: [tuple(getattr(one[key], "shape", ())) for one in (here, there)] for key in here if key in there}
    kinds = (
        ("missing in the file", [key for key in here if key not in there]),
        ("unknown to the network", [key for key in there if key not in here]),
        ("of another shape", [f"{key} {old} for {new}" for key, (new, old) in shapes.items() if new != old]),
    )
    parts = [
        f"{len(keys)} {kind} ({', '.join(map(str, keys[:3]))}{', …' * (len(keys) > 3)})" for kind, keys in kinds if keys
    ]
    return one_line("weights " + ", ".join(parts), _MOST_CAUSE) if parts else ""


_PACKAGES = {
    "cv2": "opencv-python-headless",
    "ignite": "pytorch-ignite",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Packages that pip calls otherwise than Python imports them."""

_MOST_CAUSE = 400


def cause_of(error: BaseException, root: Path) -> str:
    """Return what a library's error came from, on one line: a package that is missing, or the innermost error.

    Args:
        error: what the library raised; MONAI wraps what a config raises in errors of its own.
        root: of the bundle, whose own modules no package brings.
    """
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    for one in reversed(chain):
        # MONAI imports some packages when they are used, and then quotes Python
        named = re.search(r"No module named '([\w.]+)'|required package `([\w.-]+)`", str(one))
        package = ((named.group(1) or named.group(2)) if named else "").partition(".")[0]
        if package and not any((folder / package).exists() for folder in (root, root / "scripts")):
            name = _PACKAGES.get(package, package)
            return one_line(f"the package {package} is not installed (pip install {name})", _MOST_CAUSE)
    text = str(chain[-1]) or str(error)
    return one_line(f"{type(chain[-1]).__name__}: {text}" if text else type(chain[-1]).__name__, _MOST_CAUSE)


def _outline(network: torch.nn.Module) -> torch.nn.Module:
    """A copy whose weights have shapes and take no memory."""
    hollow: dict[int, Any] = {}
    for value in network.state_dict(keep_vars=True).values():
        zeros = value.detach().new_zeros(()).expand(value.shape)
        hollow[id(value)] = torch.nn.Parameter(zeros, False) if isinstance(value, torch.nn.Parameter) else zeros
    outline = copy.deepcopy(network, hollow)
    if any(value.untyped_storage().nbytes() > value.element_size() for value in outline.state_dict().values()):
        raise TypeError("its state is not what it runs with")
    return outline


def _with_room(outline: torch.nn.Module) -> torch.nn.Module:
    """A copy with room for its weights, whatever they were."""
    with torch.inference_mode(False):
        network = copy.deepcopy(outline)
        for value in network.state_dict(keep_vars=True).values():
            value.data = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    return network
