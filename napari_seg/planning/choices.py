"""What a person decides of a training; everything else is the plan's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from napari_seg.errors import BundleError, OutputError

if TYPE_CHECKING:
    from segnets.data import Dataset


_READING = ("layout", "images_dir", "labels_dir", "channels")
_CODE = re.compile(r"[$@%]|.*[@%](#|::)")
"""What MONAI takes for more than text in configs and metadata.json: it runs `$...`, and looks up `@...` and `%...`."""


@dataclass(frozen=True)
class Choices:
    """What belongs to a bundle for good, so that a second start must not contradict it; None or empty: not said.

    Attributes:
        network: the name of one of `segnets`' networks; `UNet` if not said.
        dims: 2 or 3; 2D networks see volumes slice by slice.
        options: files of the bundle's options to merge over its configs.
        settings: config id -> value, as `--id value` of MONAI's own command.
        labels: class -> its values in the label maps; the data set's own names if not said.
        folds: of a cross-validation.
    """

    network: str | None = None
    dims: int | None = None
    options: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    folds: int | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """Those of the settings that say how the data set is read, as of `segnets.data.find_dataset`."""
        return {name: self.settings[name] for name in _READING if name in self.settings}

    def as_dict(self) -> dict[str, Any]:
        """Those that were made, for plan.json."""
        made = {name: value for name, value in asdict(self).items() if value not in (None, (), {})}
        return made | ({"options": list(self.options)} if self.options else {})


def check_names(names: Iterable[str]) -> None:
    """Whether names may stand in a bundle's configs and metadata as they are.

    Raises:
        BundleError: `bundle.name`, one would be taken for code or a reference.
    """
    for name in names:
        if _CODE.match(name):
            raise BundleError(
                "bundle.name",
                f"{name!r} can't be a name of a class, a channel or a bundle: MONAI would run what begins with $ and "
                "look up what begins with @ or %; call it something else",
            )


def identity(dataset: Dataset) -> dict[str, Any]:
    """What tells a data set from another one, wherever its folder lies; names of cases only as a digest."""
    names = "\n".join(case["name"] for case in dataset.cases)
    return {
        "layout": dataset.layout,
        "cases": len(dataset.cases),
        "digest": hashlib.sha256(names.encode()).hexdigest()[:16],
    }


def check_same(written: dict[str, Any], dataset: dict[str, Any], choices: Choices, out: str) -> None:
    """Whether a plan that was made before is the one that is wanted now.

    Args:
        written: what plan.json holds.
        dataset: the `identity` of the data set that is given now.
        choices: those made now; what is not said now stays as it was.
        out: the folder's name, for the message.

    Raises:
        OutputError: `output.exists`, it was made for other data or with other choices.
    """
    differing = [
        f"{name} {was!r}, now {value!r}"
        for name, value in choices.as_dict().items()
        if (was := written["choices"].get(name)) != value
    ]
    if written["dataset"] != dataset:
        differing.insert(0, f"a data set of {written['dataset']['cases']} cases, now another of {dataset['cases']}")
    if differing:
        raise OutputError(
            "output.exists",
            f"{out} was planned with {'; '.join(differing)}; leave that out to go on with it, or choose another folder",
        )
