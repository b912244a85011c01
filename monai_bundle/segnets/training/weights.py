"""Weights of one network for another: fine-tuning, and several networks in one file."""

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

LEAST_SHARE = 0.1
"""Of a network's weights that must come from the file; with less it isn't the same kind of network."""

FIRST = "members.0."
"""What the names of an ensemble's first network begin with."""

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Fit:
    """What became of a network's tensors, by name.

    Args:
        copied: taken from the file as they are.
        adapted: taken from the file, for another number of input channels.
        fresh: not in the file, or of another shape there; left as they were.
        unused: in the file only.
        share: of the network's weights (numbers, not tensors) that came from the file.
    """

    copied: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    share: float

    def __str__(self) -> str:
        parts = [f"{len(self.copied)} tensors copied ({self.share:.0%} of the weights with the adapted ones)"]
        for what, names in (("adapted", self.adapted), ("left fresh", self.fresh), ("not used", self.unused)):
            parts.append(f"{len(names)} {what}" + (f" ({_listed(names)})" if names else ""))
        return ", ".join(parts)


def read_weights(path: str | Path) -> State:
    """The state dict in a file: a bare one, one under "model", or a checkpoint of a run (its averaged weights).

    Of an `Ensemble`, as a cross-validated bundle has it, the first member's, which is logged.

    Raises:
        TrainingError: weights.missing, weights.unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingError("weights.missing", f"{path} is no file; give the model.pt of a run or of a bundle")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch has half a dozen types for a damaged file, and one for code in it
        raise TrainingError(
            "weights.unreadable", f"{path} holds no weights that can be read safely: {str(error).splitlines()[0]}"
        ) from error
    for key in ("ema", "model", "network", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(x) for x in content.values()):
        raise TrainingError("weights.unreadable", f"{path} holds no state dict; give the model.pt of a run or a bundle")
    state = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    if all(name.startswith("members.") for name in state):
        count = len({name.split(".")[1] for name in state})
        state = {name.removeprefix(FIRST): tensor for name, tensor in state.items() if name.startswith(FIRST)}
        logger.info("%s holds an ensemble of %d networks, of which the first is taken", path, count)
    return state


def load_what_fits(network: torch.nn.Module, path: str | Path) -> Fit:
    """Fine-tuning: copies every tensor of equal name and shape into the network; logs and returns what became of each.

    With another number of input channels the layers that see the image are adapted: channels that both have are copied
    in their order; what is added begins as the mean of the others, all scaled by old/new; what is dropped is added to
    the rest in equal parts. So an image with equal channels (grey for colour, T1 alone for T1 and T1) gives what it
    gave before. The last layers stay fresh when the number of classes differs: classes of two data sets have nothing
    but their numbers in common.

    Args:
        network: changed in place; before an average of its weights is begun, which would keep the old ones.
        path: as `read_weights` takes it.

    Raises:
        TrainingError: weights.nothing_fits, when less than a tenth of the network's weights is found there.
    """
    given, own = read_weights(path), network.state_dict()
    adapted = _adapt_inputs(given, own)
    updated, copied, fresh = copy_model_state(network, given | adapted, inplace=False)
    share = sum(own[name].numel() for name in copied) / sum(tensor.numel() for tensor in own.values())
    fit = Fit(
        copied=tuple(name for name in copied if name not in adapted),
        adapted=tuple(adapted),
        fresh=tuple(fresh),
        unused=tuple(name for name in given if name not in copied),
        share=share,
    )
    if share < LEAST_SHARE:
        raise TrainingError(
            "weights.nothing_fits",
            f"{path} fits {share:.1%} of this network, at least {LEAST_SHARE:.0%} is needed; it holds "
            f"{_listed(tuple(given))}, the network {_listed(tuple(own))}. Choose the network_def it was trained with",
        )
    network.load_state_dict(updated)
    logger.info("fine-tuning from %s: %s", path, fit)
    return fit


def _adapt_inputs(given: State, own: State) -> State:
    """The weights of the layers that see the image, for the number of channels that it has now.

    The first layer sees the image and nothing else. Others may see features and, behind them, the image again, as the
    last one of `UNet`'s decoder does.
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
    """(out, new, *size) from (out, old, *size); the sum over the channels stays the same."""
    old = kernel.shape[1]
    if new < old:
        return kernel[:, :new] + kernel[:, new:].sum(1, keepdim=True) / new
    added = kernel.mean(1, keepdim=True).expand(-1, new - old, *kernel.shape[2:])
    return torch.cat([kernel, added], dim=1) * (old / new)


def merge_checkpoints(paths: Sequence[str | Path], out: str | Path) -> None:
    """Writes one file of weights for a `segnets.Ensemble` of as many members, e.g. the folds of a cross-validation.

    Args:
        paths: weights of the members, all of one network, as `read_weights` takes them.
        out: a bare state dict, replaced in one step.

    Raises:
        TrainingError: weights.differ, when they are not all of one network.
    """
    members = [read_weights(path) for path in paths]
    shapes = [{name: tuple(tensor.shape) for name, tensor in member.items()} for member in members]
    for path, shape in zip(paths[1:], shapes[1:], strict=True):
        if shape != shapes[0]:
            names = tuple(sorted(name for name, _ in shape.items() ^ shapes[0].items()))
            raise TrainingError(
                "weights.differ",
                f"{path} is of another network than {paths[0]} ({_listed(tuple(dict.fromkeys(names)))}); "
                "an ensemble is made of one network trained several times",
            )
    merged = {f"members.{n}.{name}": tensor for n, member in enumerate(members) for name, tensor in member.items()}
    with replacing(out) as part:
        torch.save(merged, part)


def _listed(names: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
