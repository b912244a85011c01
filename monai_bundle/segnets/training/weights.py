"""Load the weights of another network for fine-tuning, and write several networks into one file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.networks.utils import copy_model_state

from segnets.errors import TrainingError
from segnets.files import replacing

logger = logging.getLogger("segnets")

MIN_FRACTION = 0.1
"""Fraction of a network's weights that must come from the file; below it the architectures differ."""

FIRST_MEMBER = "members.0."
"""Prefix of the tensors of an ensemble's first network."""

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
    """

    copied: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    fraction: float

    def __str__(self) -> str:
        parts = [f"{len(self.copied)} tensors copied ({self.fraction:.0%} of the weights with the adapted ones)"]
        for what, names in (("adapted", self.adapted), ("left fresh", self.fresh), ("not used", self.unused)):
            parts.append(f"{len(names)} {what}" + (f" ({_joined(names)})" if names else ""))
        return ", ".join(parts)


def read_weights(path: str | Path) -> State:
    """Read the state dict in a file: a bare one, one under "model", or a checkpoint of a run (its averaged weights).

    Of an `Ensemble`, as in a cross-validated bundle, the weights of the first member are returned, which is logged.

    Raises:
        TrainingError: weights.missing, weights.unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingError("weights.missing", f"{path} is no file; expected the model.pt of a run or of a bundle")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch has several types of errors for a damaged file, and one for code in it
        raise TrainingError(
            "weights.unreadable", f"{path} holds no weights that can be read safely: {str(error).splitlines()[0]}"
        ) from error
    for key in ("ema", "model", "network", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(x) for x in content.values()):
        raise TrainingError("weights.unreadable", f"{path} holds no state dict; expected a model.pt")
    state = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    if all(name.startswith("members.") for name in state):
        count = len({name.split(".")[1] for name in state})
        first = {name: tensor for name, tensor in state.items() if name.startswith(FIRST_MEMBER)}
        state = {name.removeprefix(FIRST_MEMBER): tensor for name, tensor in first.items()}
        logger.info("%s holds an ensemble of %d networks; the first one is used", path, count)
    return state


def load_matching_weights(network: torch.nn.Module, path: str | Path) -> Fit:
    """Copy every tensor of equal name and shape from a file into a network, for fine-tuning; log and return the result.

    With another number of input channels the layers that receive the image are adapted. Common channels are copied in
    their order. If channels are added, they start as the mean of the others, and all are scaled by old/new. If channels
    are dropped, their weights are distributed equally over the rest. So for an image with equal channels (grey as RGB,
    T1 twice) the network computes the same as before. The last layers stay fresh if the number of classes differs,
    because equal class numbers of two data sets need not mean the same.

    Args:
        network: network, changed in place; call this before creating an average of its weights.
        path: file of weights, as in `read_weights`.

    Raises:
        TrainingError: weights.nothing_fits, less than a tenth of the network's weights is in the file; also the errors
            of `read_weights`.
    """
    given, own = read_weights(path), network.state_dict()
    adapted = _adapt_inputs(given, own)
    updated, copied, fresh = copy_model_state(network, given | adapted, inplace=False)
    fraction = sum(own[name].numel() for name in copied) / sum(tensor.numel() for tensor in own.values())
    fit = Fit(
        copied=tuple(name for name in copied if name not in adapted),
        adapted=tuple(adapted),
        fresh=tuple(fresh),
        unused=tuple(name for name in given if name not in copied),
        fraction=fraction,
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


def _adapt_inputs(given: State, own: State) -> State:
    """Return the weights of the layers that receive the image, adapted to its new number of channels.

    The first layer receives only the image. Other layers may receive features followed by the image, as the last one of
    `UNet`'s decoder.
    """
    kernels = [name for name, x in own.items() if x.ndim >= 3 and name in given and given[name].ndim == x.ndim]
    if not kernels:
        return {}
    old, new = (state[kernels[0]].shape[1] for state in (given, own))
    adapted: State = {}
    for name in kernels:
        theirs, ours = given[name], own[name]
        features = theirs.shape[1] - old
        if old != new and 0 <= features == ours.shape[1] - new and theirs[:, 0].shape == ours[:, 0].shape:
            adapted[name] = torch.cat([theirs[:, :features], _with_channels(theirs[:, features:], new)], dim=1)
    return adapted


def _with_channels(kernel: torch.Tensor, new: int) -> torch.Tensor:
    """Return a kernel (out, new, *size) from one (out, old, *size), with the same sum over the channels."""
    old = kernel.shape[1]
    if new < old:
        return kernel[:, :new] + kernel[:, new:].sum(1, keepdim=True) / new
    added = kernel.mean(1, keepdim=True).expand(-1, new - old, *kernel.shape[2:])
    return torch.cat([kernel, added], dim=1) * (old / new)


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
