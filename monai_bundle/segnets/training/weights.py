"""Load the weights of another network for fine-tuning, and write several networks into one file."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.utils import copy_model_state
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from segnets.errors import TrainingError
from segnets.files import replacing
from segnets.training.matching import Names, Origins, in_order, match_channels, match_classes, stated_names

logger = logging.getLogger("segnets")

MIN_FRACTION = 0.1
"""Fraction of a network's weights that must come from the file; below it the architectures differ."""

FIRST_MEMBER = "members.0."
"""Prefix of the tensors of an ensemble's first network."""

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of networks on several GPUs and of compiled networks."""

_TWICE = "decoder.encoder."

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Fit:
    """List the tensors of a network by their source.

    Args:
        copied: names of tensors copied from the file.
        adapted: names of tensors copied from the file and adapted to another number of input channels.
        fresh: names of tensors that the file lacks or has with another shape; they are unchanged.
        unused: names of tensors that only the file has.
        fraction: fraction of the network's weights (numbers, not tensors) that came from the file.
        origins: from which classes of the file the network's classes begin; None: unknown.
    """

    copied: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    fraction: float
    origins: Origins | None = None

    def __str__(self) -> str:
        parts = [f"{len(self.copied)} tensors copied ({self.fraction:.0%} of the weights with the adapted ones)"]
        for what, names in (("adapted", self.adapted), ("left fresh", self.fresh), ("not used", self.unused)):
            parts.append(f"{len(names)} {what}" + (f" ({_joined(names)})" if names else ""))
        return ", ".join(parts) + (f"; classes: {self.origins}" if self.origins else "")


def read_weights(path: str | Path) -> State:
    """Read the state dict in a file: a bare one, one under "model", or a checkpoint of a run (its averaged weights).

    A checkpoint of nnU-Net is read too. Of an `Ensemble`, as in a cross-validated bundle, the weights of the first
    member are returned, which is logged.

    Raises:
        TrainingError: weights.missing, weights.unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingError("weights.missing", f"{path} is no file; expected the model.pt of a run or of a bundle")
    try:
        with torch.serialization.safe_globals(_numbers()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch has several types of errors for a damaged file, and one for code in it, which advises to run that
        is_code = "weights only" in str(error).lower() or "weights_only" in str(error)
        found = "it may run code; expected tensors and numbers only" if is_code else str(error).splitlines()[0]
        raise TrainingError(
            "weights.unreadable", f"{path} holds no weights that can be read safely: {found}"
        ) from error
    for key in ("ema", "model", "network", "state_dict", "network_weights"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(x) for x in content.values()):
        raise TrainingError("weights.unreadable", f"{path} holds no state dict; expected a model.pt")
    state = {name: tensor for name, tensor in content.items()}
    for prefix in _WRAPPERS:
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    state = {  # nnU-Net names the weights of the encoder twice
        name: tensor
        for name, tensor in state.items()
        if not (name.startswith(_TWICE) and name.partition(".")[2] in state)
    }
    if all(name.startswith("members.") for name in state):
        count = len({name.split(".")[1] for name in state})
        first = {name: tensor for name, tensor in state.items() if name.startswith(FIRST_MEMBER)}
        state = {name.removeprefix(FIRST_MEMBER): tensor for name, tensor in first.items()}
        logger.info("%s holds an ensemble of %d networks; the first one is used", path, count)
    return state


def _numbers() -> list[Any]:
    """Return what the pickles of NumPy's numbers and arrays call, which the history in nnU-Net's checkpoints holds."""
    from numpy._core import multiarray

    named = [
        (getattr(multiarray, name), f"numpy.{module}.multiarray.{name}")
        for module in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ]
    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    return [*named, np.ndarray, np.dtype, *dtypes, (_encoded, "_codecs.encode")]


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Return bytes as old pickles write them."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def load_matching_weights(
    network: torch.nn.Module,
    path: str | Path,
    classes: Names | None = None,
    channels: Names | None = None,
    classes_from: Mapping[str, str | Sequence[str]] | None = None,
) -> Fit:
    """Copy every tensor of equal name and shape from a file into a network, for fine-tuning; log and return the result.

    Classes and channels are matched by name if the file belongs to a bundle, whose metadata.json names its own: see
    `segnets.training.matching` for the last layers. Without names, or if none is the same, the last layers are copied
    if the number of classes is the same, and stay fresh otherwise.

    With other input channels the layers that receive the image are adapted. Common channels are copied, by name if some
    names are the same, in their order otherwise. If channels are added, they start as the mean of the others, and all
    are scaled by old/new. If channels are dropped, their weights are distributed equally over the rest, or over those
    that replace them. So for an image with equal channels (grey as RGB, T1 twice) the network computes the same as
    before.

    Args:
        network: network, changed in place; call this before creating an average of its weights.
        path: file of weights, as in `read_weights`.
        classes: number -> name of the network's classes; None: unknown.
        channels: the same of its input channels.
        classes_from: see `segnets.training.matching.match_classes`.

    Raises:
        TrainingError: weights.nothing_fits, less than a tenth of the network's weights is in the file; weights.classes,
            `classes_from` does not fit the classes; also the errors of `read_weights`.
    """
    own = network.state_dict()
    given = _under_all_names(read_weights(path), network)
    old_classes, old_channels = stated_names(Path(path))
    order = match_channels(in_order(channels), old_channels)
    adapted = _adapt_inputs(given, own, network, order)
    origins = match_classes(in_order(classes), old_classes, classes_from) if classes and old_classes else None
    if classes_from and origins is None:
        raise TrainingError(
            "weights.classes",
            f"{path} belongs to no bundle that names its classes; expected one, because classes_from needs the names",
        )
    if origins is not None and (heads := _heads(network, given, origins)):
        biases = sum(name.endswith("bias") for name in heads)
        divided_by = biases if any(getattr(module, "adds_heads", False) for module in network.modules()) else 1
        for name in heads:
            constants = 1 / divided_by if name.endswith("bias") else 0
            adapted[name] = origins.combine(given[name], own[name], constants)
    elif origins is not None and not origins.is_identity:
        logger.warning("the last layers of the network were not found: classes are not matched by name")
        origins = None
    updated, copied, fresh = copy_model_state(network, given | adapted, inplace=False)
    fraction = sum(own[name].numel() for name in copied) / sum(tensor.numel() for tensor in own.values())
    fit = Fit(
        copied=tuple(name for name in copied if name not in adapted),
        adapted=tuple(adapted),
        fresh=tuple(fresh),
        unused=tuple(name for name in given if name not in copied),
        fraction=fraction,
        origins=origins,
    )
    if fraction < MIN_FRACTION:
        raise TrainingError(
            "weights.nothing_fits",
            f"{path} fits {fraction:.1%} of this network; expected at least {MIN_FRACTION:.0%}; it holds "
            f"{_joined(tuple(given))}, the network {_joined(tuple(own))}. Choose the network_def it was trained with",
        )
    network.load_state_dict(updated)
    logger.info("fine-tuning from %s: %s", path, fit)
    return fit


def _under_all_names(given: State, network: torch.nn.Module) -> State:
    """Return weights with each tensor under all names that it has in the network, which may be several."""
    names: dict[int, list[str]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    same = {name: group for group in names.values() if len(group) > 1 for name in group}
    found = {other: tensor for name, tensor in given.items() for other in same.get(name, ())}
    return found | given


def _heads(network: torch.nn.Module, given: State, origins: Origins) -> list[str]:
    """Return the names of the weights and biases of the last layers, which give the logits of the classes.

    They are the convolutions with as many outputs as there are classes. If another layer takes so many inputs, one that
    is not the last may have so many outputs too; then those with a bias and a kernel of 1 count, but not those that
    MONAI's `Convolution` normalises.
    """
    new, old = len(origins.new), len(origins.old)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, _ConvNd)}
    found = {name: layer for name, layer in layers.items() if layer.out_channels == new}
    if any(layer.in_channels == new for layer in layers.values()):
        found = {
            name: layer
            for name, layer in found.items()
            if set(layer.kernel_size) == {1} and layer.bias is not None and name.split(".")[-1] != "conv"
        }
    names = [f"{name}.{what}" for name in found for what in ("weight", "bias")]
    own = network.state_dict()
    return [
        name
        for name in names
        if name in own and name in given and len(given[name]) == old and given[name].shape[1:] == own[name].shape[1:]
    ]


def _adapt_inputs(given: State, own: State, network: torch.nn.Module, order: Sequence[int | None] | None) -> State:
    """Return the weights of the layers that receive the image, adapted to its new channels.

    The first layer receives only the image. Other layers may receive features followed by the image, as the last one of
    `UNet`'s decoder.

    Args:
        given: old weights.
        own: new weights.
        network: the new network.
        order: for each new channel the index of the old one, None if there is none; None: unknown.
    """
    kernels = [name for name, x in own.items() if x.ndim >= 3 and name in given and given[name].ndim == x.ndim]
    if not kernels:
        return {}
    old, new = (state[kernels[0]].shape[1] for state in (given, own))
    if order is None or len(order) != new or max(index or 0 for index in order) >= old:
        order = [number if number < old else None for number in range(new)]
    if old == new:
        if list(order) == list(range(old)):
            return {}
        kernels = _image_kernels(network, kernels, new)
    adapted: State = {}
    for name in kernels:
        theirs, ours = given[name], own[name]
        features = theirs.shape[1] - old
        if 0 <= features == ours.shape[1] - new and theirs[:, 0].shape == ours[:, 0].shape:
            adapted[name] = torch.cat([theirs[:, :features], _with_channels(theirs[:, features:], order)], dim=1)
    return adapted


def _image_kernels(network: torch.nn.Module, kernels: Sequence[str], channels: int) -> list[str]:
    """Return those kernels that receive the image, if its number of channels does not tell them."""
    modules = dict(network.named_modules())
    mixing = [f"{f'{name}.' * bool(name)}decoder.{len(module.decoder) - 1}." for name, module in modules.items()
              if getattr(module, "concatenates_image", False)]  # fmt: skip
    return [
        name
        for name in kernels
        if modules[name.rpartition(".")[0]].weight.shape[1] == channels
        or (name.startswith(tuple(mixing)) and not isinstance(modules[name.rpartition(".")[0]], _ConvTransposeNd))
    ]


def _with_channels(kernel: torch.Tensor, order: Sequence[int | None]) -> torch.Tensor:
    """Return a kernel (out, new, *size) from one (out, old, *size), with the same sum over the channels.

    Args:
        kernel: old kernel.
        order: for each new channel the index of the old one, None if there is none.
    """
    old, new = kernel.shape[1], len(order)
    dropped = kernel[:, [index for index in range(old) if index not in order]]
    added = order.count(None)
    start = dropped.sum(1) / added if added and dropped.numel() else kernel.mean(1)
    result = torch.stack([start if index is None else kernel[:, index] for index in order], dim=1)
    if added:
        return result if dropped.numel() else result * (old / new)
    return result + dropped.sum(1, keepdim=True) / new


def merge_checkpoints(paths: Sequence[str | Path], out: str | Path) -> None:
    """Write one file of weights for a `segnets.Ensemble`, e.g. of the folds of a cross-validation.

    Args:
        paths: files with the weights of the members, all of one architecture, as in `read_weights`.
        out: file for the merged state dict, replaced in one step.

    Raises:
        TrainingError: weights.differ, the members have different architectures; also the errors of `read_weights`.
    """
    members = [read_weights(path) for path in paths]
    shapes = [{name: tuple(tensor.shape) for name, tensor in member.items()} for member in members]
    for path, shape in zip(paths[1:], shapes[1:], strict=True):
        if shape != shapes[0]:
            names = tuple(sorted(name for name, _ in shape.items() ^ shapes[0].items()))
            raise TrainingError(
                "weights.differ",
                f"{path} and {paths[0]} hold different networks ({_joined(tuple(dict.fromkeys(names)))}); "
                "expected one network that was trained several times",
            )
    merged = {f"members.{n}.{name}": tensor for n, member in enumerate(members) for name, tensor in member.items()}
    with replacing(out) as part:
        torch.save(merged, part)


def _joined(names: tuple[str, ...], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
