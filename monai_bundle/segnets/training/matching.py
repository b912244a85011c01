"""Match the classes and channels of two networks by name, for fine-tuning.

The last layer of a network gives a logit for each class. So each class of a new network can begin as a linear
combination of the old logits:

    z_new = mean over its old classes of (z_old - log k_old) + log n

n is the number of its old classes, and k_old the number of new classes that an old one is divided among.

- A class of the same name begins unchanged (n = k = 1).
- A class that is divided (k > 1) gives each of its parts the same probability, and their sum is exactly what it was.
- A merged class (n > 1) should have the sum of its classes' probabilities, log(exp z_1 + ... + exp z_n). This is no
  linear function; the mean plus log n is its tangent where the classes are equally probable, and never above it. So at
  the borders to other classes a merged class begins a little too small, and never too large.
- Regions, which have a sigmoid each, need not exclude each other: those from one class all begin with its probability,
  and one from several regions with the mean of their logits.
- A class without an origin begins as a part of background, as its voxels were annotated before (Cermelli et al. 2020,
  Modeling the background for incremental learning in semantic segmentation, CVPR): the other classes stay as they were.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import torch

from segnets.data.labels import match_names
from segnets.errors import TrainingError

BACKGROUND = "background"

Names = Mapping[str, str]
"""Number -> name of classes or channels, as in metadata.json's `channel_def`."""


@dataclass(frozen=True)
class Origins:
    """Say from which old classes each new class begins.

    Args:
        new: names of the new classes.
        old: names of the old classes.
        origins: for each new class the indices of its old classes; none: it begins at random.
    """

    new: tuple[str, ...]
    old: tuple[str, ...]
    origins: tuple[tuple[int, ...], ...]

    @property
    def is_identity(self) -> bool:
        return self.origins == tuple((n,) for n in range(len(self.old)))

    def combine(self, weight: torch.Tensor, own: torch.Tensor, constants: float = 0.0) -> torch.Tensor:
        """Return the new weights or biases (new, ...) of a last layer from the old ones (old, ...).

        Args:
            weight: old values.
            own: new values, which stay for classes without an origin.
            constants: factor of the logarithms: 1 for biases, 0 for weights.
        """
        uses = Counter(index for of_class in self.origins for index in of_class)
        result = own.clone()
        old_background, new_background = self._index(self.old), self._index(self.new)
        for number, of_class in enumerate(self.origins):
            if not of_class:
                continue
            divided = constants if new_background is not None else 0
            merged = constants if old_background is not None else 0
            rows = [weight[index].float() - divided * log(uses[index]) for index in of_class]
            row = torch.stack(rows).mean(0) + merged * log(len(rows))
            if new_background is None and old_background is not None:
                row = row - weight[old_background].float()  # a sigmoid of its own, in place of a softmax
            result[number] = row.to(own.dtype)
        if old_background is None and new_background is not None:
            result[new_background] = 0
        return result

    @staticmethod
    def _index(names: Sequence[str]) -> int | None:
        return next((number for number, name in enumerate(names) if name.casefold() == BACKGROUND), None)

    def __str__(self) -> str:
        uses = Counter(index for of_class in self.origins for index in of_class)
        said = []
        for name, of_class in zip(self.new, self.origins, strict=True):
            froms = " + ".join(f"{'a part of ' * (uses[index] > 1)}{self.old[index]}" for index in of_class)
            if name.casefold() != BACKGROUND:
                said.append(f"{name} from {froms}" if of_class else f"{name} at random")
        used = {index for of_class in self.origins for index in of_class}
        dropped = [name for index, name in enumerate(self.old) if index not in used and name.casefold() != BACKGROUND]
        return ", ".join(said) + (f"; dropped {', '.join(dropped)}" if dropped else "")


def match_classes(
    new: Sequence[str], old: Sequence[str], classes_from: Mapping[str, str | Sequence[str]] | None = None
) -> Origins | None:
    """Return from which old classes each new class begins, by name regardless of case.

    Without the same name, a class begins from the only one whose name contains all its words ("Anterior" from "anterior
    hippocampus"). See the module for the others.

    Args:
        new: names of the new network's channels; without background they are regions.
        old: names of the old network's channels.
        classes_from: new class -> its old classes, for merged, divided and renamed ones.

    Returns:
        The origins; None if no class but background matches.

    Raises:
        TrainingError: "weights.classes", `classes_from` names an unknown class.
    """
    indices = {name.casefold(): number for number, name in enumerate(old)}
    origins: dict[str, tuple[int, ...]] = {}
    known = {name.casefold() for name in new}
    for name, given in (classes_from or {}).items():
        parts = [given] if isinstance(given, str) else list(given)
        unknown = [part for part in parts if str(part).casefold() not in indices]
        if name.casefold() not in known or unknown or not parts:
            raise TrainingError(
                "weights.classes",
                f"classes_from says {name} begins from {', '.join(map(str, parts))}; expected a new class of "
                f"{', '.join(new)} and old ones of {', '.join(old)}",
            )
        origins[name.casefold()] = tuple(dict.fromkeys(indices[str(part).casefold()] for part in parts))
    left = {number: name for number, name in enumerate(old)}
    similar = match_names(left, left, {name: [n] for n, name in enumerate(new) if name.casefold() not in origins})
    for index, (number,) in similar.items():
        origins.setdefault(new[int(number)].casefold(), (index,))
    if not any(name != BACKGROUND for name in origins):
        return None
    has_background = BACKGROUND in indices and BACKGROUND in known
    other = (indices[BACKGROUND],) if has_background else ()
    return Origins(tuple(new), tuple(old), tuple(origins.get(name.casefold(), other) for name in new))


def match_channels(new: Sequence[str], old: Sequence[str]) -> list[int | None] | None:
    """Return the index of the old channel of the same name for each new one; None if no name, or one twice, fits."""
    indices = {name.casefold(): number for number, name in enumerate(old)}
    found = [indices.get(name.casefold()) for name in new]
    known = [index for index in found if index is not None]
    return found if known and len(indices) == len(old) and len(set(known)) == len(known) else None


def in_order(names: Names | None) -> tuple[str, ...]:
    """Return names in the order of their numbers."""
    return tuple(names[number] for number in sorted(names, key=int)) if names else ()


def stated_names(weights: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the classes and of the channels of a bundle to which a file of weights belongs.

    The file lies in a folder of the bundle, as `models/model.pt` does, or of a model of nnU-Net, which names them in
    its dataset.json. Both are empty if there is neither.
    """
    for folder in weights.resolve().parents[1:2]:
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            if (folder / "plans.json").is_file():
                return _names_of_nnunet(json.loads((folder / "dataset.json").read_text(encoding="utf-8")))
    for folder in weights.resolve().parents[1:4]:
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            content: Any = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
            formats = content["network_data_format"]
            classes, channels = formats["outputs"]["pred"]["channel_def"], formats["inputs"]["image"]["channel_def"]
            return in_order({k: str(v) for k, v in classes.items()}), in_order({k: str(v) for k, v in channels.items()})
    return (), ()


def _names_of_nnunet(dataset: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of classes without regions, and of channels, in a dataset.json of nnU-Net."""
    values = {name: int(value) for name, value in dataset["labels"].items() if name != "ignore"}
    channels = dataset.get("channel_names") or dataset["modality"]
    return tuple(sorted(values, key=values.__getitem__)), in_order({k: str(v) for k, v in channels.items()})
