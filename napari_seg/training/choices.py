"""What a person decides of a training; everything else is the plan's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.bundles.spec import WEIGHTS
from napari_seg.errors import BundleError, EnvironmentFault, OutputError, TrainingError

if TYPE_CHECKING:
    from segnets.data import Dataset


_READING = ("layout", "images_dir", "labels_dir", "channels")
_ANEW = re.compile(
    "max_epochs|max_minutes|patience|val_interval|num_workers|amp|accumulation_steps|learning_rate|warmup_share|"
    "max_gradient_norm|l1_penalty|allow_empty|(optimizer|lr_scheduler|ema)#(?!_target_).+"
)
"""What each start of a training may set otherwise: what is no part of its identity (`segnets.training.Checkpoints`)."""
_PACKAGES = {"mlflow": "mlflow"}
"""What an option needs beside this package."""
CODE = re.compile(r"[$@%]|.*[@%](#|::)")
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
        fine_tune: the weights to begin from, as of `weights_to_begin_from`.
    """

    network: str | None = None
    dims: int | None = None
    options: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    folds: int | None = None
    fine_tune: dict[str, str] = field(default_factory=dict)

    @property
    def reading(self) -> dict[str, Any]:
        """Those of the settings that say how the data set is read, as of `segnets.data.find_dataset`."""
        return {name: self.settings[name] for name in _READING if name in self.settings}

    def as_dict(self) -> dict[str, Any]:
        """Those that were made, for plan.json."""
        made = {name: value for name, value in asdict(self).items() if value not in (None, (), {})}
        return made | ({"options": list(self.options)} if self.options else {})


def weights_to_begin_from(path: Path, out: Path) -> dict[str, str]:
    """{"file", "sha256"} of a file of weights or of a bundle's, the file as seen from the bundle that is planned.

    Raises:
        TrainingError: `weights.missing`, there is no such file.
    """
    path = (path / WEIGHTS if path.is_dir() else path).resolve()
    return {"file": relpath(path, out), "sha256": digest(path)}


def digest(path: Path) -> str:
    """Of what a file of weights holds.

    Raises:
        TrainingError: `weights.missing`, there is no such file.
    """
    if not path.is_file():
        raise TrainingError("weights.missing", f"{path} is no file; --fine-tune takes a model.pt, or a bundle's folder")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_names(names: Iterable[str]) -> None:
    """Whether names may stand in a bundle's configs and metadata as they are.

    Raises:
        BundleError: `bundle.name`, one would be taken for code or a reference.
    """
    for name in names:
        if CODE.match(name):
            raise BundleError(
                "bundle.name",
                f"{name!r} can't be a name of a class, a channel or a bundle: MONAI would run what begins with $ and "
                "look up what begins with @ or %; call it something else",
            )


def check_packages(options: Iterable[str]) -> None:
    """Check that the packages which some options need are installed.

    Raises:
        EnvironmentFault: `environment.package`.
    """
    for option in options:
        package = _PACKAGES.get(option)
        if package and find_spec(package) is None:
            raise EnvironmentFault(
                "environment.package", f"option {option} needs {package}, which is not installed: pip install {package}"
            )


def check_folds(folds: int | None, fold: int | None) -> None:
    """Whether there can be so many folds, and this one among them.

    Raises:
        BundleError: `bundle.folds` or `bundle.fold`.
    """
    if folds is not None and folds < 2:
        raise BundleError("bundle.folds", f"{folds} folds were asked for; expected at least 2")
    if fold is not None and not (folds and 0 <= fold < folds):
        there = f"there are 0 to {folds - 1}" if folds else "the bundle has no --folds"
        raise BundleError("bundle.fold", f"there is no fold {fold}: {there}")


def identity(dataset: Dataset) -> dict[str, Any]:
    """What tells a data set from another one, wherever its folder lies; names of cases only as a digest."""
    names = "\n".join(case["name"] for case in dataset.cases)
    return {
        "layout": dataset.layout,
        "cases": len(dataset.cases),
        "digest": hashlib.sha256(names.encode()).hexdigest()[:16],
    }


def anew(written: dict[str, Any], choices: Choices) -> dict[str, Any]:
    """The settings that are chosen otherwise than the plan that was made before has them, for this start."""
    planned = {name: entry["value"] for name, entry in written["settings"].items()}
    before = planned | written["choices"].get("settings", {})
    return {name: value for name, value in choices.settings.items() if name not in before or before[name] != value}


def check_same(written: dict[str, Any], dataset: dict[str, Any], choices: Choices, out: str) -> None:
    """Whether a plan that was made before is the one that is wanted now, but for what each start may set anew.

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
        if name not in ("settings", "fine_tune") and (was := written["choices"].get(name)) != value
    ]
    differing += [
        f"its own {name}, now {value!r}"
        for name, value in anew(written, choices).items()
        if not _ANEW.fullmatch(name.replace("::", "#"))
    ]
    begun = written["choices"].get("fine_tune", {})
    if choices.fine_tune and choices.fine_tune["sha256"] != begun.get("sha256"):
        differing.append(f"weights {begun.get('file')!r} to begin from, now {choices.fine_tune['file']!r} with others")
    if written["dataset"] != dataset:
        differing.insert(0, f"a data set of {written['dataset']['cases']} cases, now another of {dataset['cases']}")
    if differing:
        raise OutputError(
            "output.exists",
            f"{out} was planned with {'; '.join(differing)}; leave that out to go on with it, or choose a new folder "
            "with -o",
        )
