"""Choices of the user for a training; the plan sets everything else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from math import inf
from os.path import relpath
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from napari_seg.bundles.spec import WEIGHTS
from napari_seg.errors import BundleError, EnvironmentFault, OutputError, TrainingError, offered

if TYPE_CHECKING:
    from segnets.data import Dataset


READING = ("layout", "images_dir", "labels_dir", "channels", "patient", "anywhere")
SOFT = "soft"
"""Option of labels that are fractions."""
_SOFT_LOSSES = ("loss_dice", "loss_generalised_dice", "loss_tversky")
"""Losses that fit fractions, besides the one of the option `SOFT`."""
_CHANGEABLE = re.compile(
    "max_epochs|max_minutes|patience|val_interval|val_cases|num_workers|amp|accumulation_steps|learning_rate|warmup_share|"
    "max_gradient_norm|l1_penalty|allow_empty|windows#(device|sw_batch_size|roi_size)|"
    "(optimizer|lr_scheduler|ema)#(?!_target_).+"
)
"""Settings that may change at each start: they are not part of a run's identity (`segnets.training.Checkpoints`)."""
_PACKAGES = {"mlflow": "mlflow", "wandb": "wandb", "aim": "aim"}
"""Option -> package that it needs in addition."""
TRACKERS = ("tensorboard", *_PACKAGES)
"""Services that a training can report to; TensorBoard's events are always written."""
PART = ("task", "part")
"""Keys of `Choices.fine_tune` that name the model of TotalSegmentator whose weights they are; see `PartOf`."""
ALL = "all"
"""Fold that trains on all cases but a test part that the data set states; none chooses the weights."""
IGNORE = "ignore"
"""Name in `Choices.labels` of the values of voxels that are not annotated."""
_KEYS = re.compile(r"_(target|disabled|requires|mode|desc|args)_")
"""Keys that make a component of a dictionary in MONAI's configs."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
CODE = re.compile(r"[$@%]|.*[@%](#|::)")
"""Text that MONAI interprets in configs and metadata.json: it runs `$...`, and resolves `@...` and `%...`."""


@dataclass(frozen=True)
class Choices:
    """Choices that stay with a bundle: a second start must not contradict them. None or empty means no choice.

    Attributes:
        network: name of a network in `segnets`; default `UNet`.
        dims: 2 or 3; a 2D network segments volumes slice by slice.
        size: name of a preset of the network (`network_plan.SIZES`).
        plan: "nnunet" plans by nnU-Net's rules.
        options: names of option files to merge over the configs.
        settings: config id -> value, like `--id value` of MONAI's own command.
        labels: class -> label values; default: the names in the data set.
        folds: number of folds of a cross-validation.
        previous: configuration of the same comparison whose labels are further channels of the image: a cascade.
        fine_tune: initial weights, from `describe_weights`; "model" names the model of nnU-Net that they
            are of, and "licence" its licence; "task" and "part" name the model of a task of TotalSegmentator.
    """

    network: str | None = None
    dims: int | None = None
    size: str | None = None
    plan: str | None = None
    options: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    folds: int | None = None
    previous: str | None = None
    fine_tune: dict[str, str] = field(default_factory=dict)

    @property
    def reading(self) -> dict[str, Any]:
        """Settings that say how the data set is read: keyword arguments of `segnets.data.find_dataset`."""
        chosen = {name: self.settings[name] for name in READING if name in self.settings}
        return chosen | ({SOFT: True} if SOFT in self.options else {})

    def as_dict(self) -> dict[str, Any]:
        """Return the choices that were made, for plan.json."""
        made = {name: value for name, value in asdict(self).items() if value not in (None, (), {})}
        return made | ({"options": list(self.options)} if self.options else {})


def describe_weights(path: Path, out: Path) -> dict[str, str]:
    """Return {"file", "sha256"} of a weights file or of a bundle's weights; see `relative_path` with `out`.

    Raises:
        TrainingError: `weights.missing`, there is no such file.
    """
    path = (path / WEIGHTS if path.is_dir() else path).resolve()
    return {"file": relative_path(path, out.resolve()), "sha256": digest(path)}


def relative_path(path: PurePath, start: PurePath) -> str:
    """Return a path relative to a folder; unchanged if it lies on another drive of Windows."""
    try:
        return relpath(path, start)
    except ValueError:
        return str(path)


def digest(path: Path) -> str:
    """Return the SHA-256 of a weights file.

    Raises:
        TrainingError: `weights.missing`, there is no such file.
    """
    if not path.is_file():
        raise TrainingError(
            "weights.missing", f"found no file {path}; expected a model.pt or the folder of a bundle (--fine-tune)"
        )
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_names(names: Iterable[str]) -> None:
    """Check that names can be written into configs and metadata without being interpreted.

    Raises:
        BundleError: `bundle.name`, MONAI would interpret a name as code or as a reference.
    """
    for name in names:
        if CODE.match(name) or _KEYS.fullmatch(name) or _CONTROL.search(name) or not name.strip():
            raise BundleError(
                "bundle.name",
                f"found {name!r}; expected the name of a class, channel or bundle without control characters and "
                "without $, @ or % at its beginning, and no key of MONAI's configs such as _target_, because MONAI "
                "would run or resolve it; choose another name",
            )


def named_labels(labels: Mapping[str, Sequence[Any]], dataset: Dataset) -> dict[str, list[Any]]:
    """Return class -> values, with the names of classes of a data set replaced by their values.

    Args:
        labels: class -> values, ranges of values, or names in the data set.
        dataset: the data set.
    """
    values_of = {name.casefold(): values for name, values in dataset.labels.items()}

    def values(word: Any) -> Sequence[Any]:
        return values_of.get(word.casefold(), (word,)) if isinstance(word, str) else (word,)

    return {label: [value for word in words for value in values(word)] for label, words in labels.items()}


def check_values(values: Mapping[str, Any]) -> None:
    """Check numbers among settings, which would otherwise fail after the data set was converted and the plan written.

    Args:
        values: config id -> value; expressions, and ids without a rule, are accepted.

    Raises:
        BundleError: `bundle.setting`.
    """
    for name, value in values.items():
        if name == "amp" and value not in (True, False, "bfloat16", "float16") and not CODE.match(str(value)):
            raise BundleError("bundle.setting", f"found {value!r} for amp; expected true, false, bfloat16 or float16")
        if name == "fold" and value == ALL:
            if values.get("patience") is not None:
                text = "found patience with --fold all, which validates no case; expected one of them"
                raise BundleError("bundle.setting", text)
            continue
        is_needed, is_whole, low, high = _NUMBERS.get(name, (False, False, -inf, inf))
        if name not in _NUMBERS or (value is None and not is_needed) or (isinstance(value, str) and CODE.match(value)):
            continue
        is_number = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
        is_zero = not is_whole and high == inf and value == 0
        if not is_number or not (low <= value <= high and abs(value) < inf) or is_zero:
            kind = "an integer" if is_whole else "a number"
            limits = f"of {low} or more" if high == inf else f"of {low} to {high}"
            limits = limits if is_whole or high < inf else "above 0"
            none = "" if is_needed else ", or null"
            raise BundleError("bundle.setting", f"found {value!r} for {name}; expected {kind} {limits}{none}")


def check_soft(choices: Choices) -> None:
    """Check that a training on fractions has a loss for them, and that they are declared by their option.

    Raises:
        BundleError: `bundle.setting`, the setting is given instead of the option.
        TrainingError: `labels.soft`, another loss.
    """
    if SOFT in choices.settings:
        raise BundleError("bundle.setting", "found --set soft; expected --option soft, which also sets the loss")
    others = [name for name in choices.options if name.startswith("loss_") and name not in _SOFT_LOSSES]
    if SOFT in choices.options and others:
        raise TrainingError(
            "labels.soft",
            f"found --option {others[0]} for labels that are fractions; it is not smallest where probabilities equal "
            f"the fractions; expected {', '.join(_SOFT_LOSSES)}, or none of them",
        )


_NUMBERS: dict[str, tuple[bool, bool, float, float]] = {
    **dict.fromkeys(("max_epochs", "batch_size", "accumulation_steps", "patches_per_case"), (True, True, 1, inf)),
    **dict.fromkeys(("slices_per_case", "val_interval"), (True, True, 1, inf)),
    **dict.fromkeys(("num_workers", "seed"), (True, True, 0, inf)),
    **dict.fromkeys(("patience", "val_cases", "frozen_epochs"), (False, True, 1, inf)),
    "fold": (False, True, 0, inf),
    "folds": (True, True, 2, inf),
    "learning_rate": (True, False, 0, inf),
    "warmup_share": (True, False, 0, 1),
    "replay_share": (True, False, 0, 0.99),
    **dict.fromkeys(("max_minutes", "max_gradient_norm"), (False, False, 0, inf)),
}
"""Config id -> whether it must not be null, whether it is an integer, smallest and largest value; numbers that are no
integers are larger than 0 if they have no largest value."""


def distinct(pairs: Iterable[tuple[str, str]], option: str) -> dict[str, str]:
    """Return the arguments NAME=VALUE of an option as a dictionary.

    Raises:
        BundleError: `bundle.setting`, a name occurs twice, regardless of upper and lower case.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if same := next((one for one in found if one.casefold() == name.casefold()), None):
            text = f"found {same!r} and {name!r} in {option}; expected each name once, with all its values"
            raise BundleError("bundle.setting", text)
        found[name] = value
    return found


def check_packages(options: Iterable[str]) -> None:
    """Check that the packages that the options need are installed.

    Raises:
        EnvironmentFault: `environment.package`.
    """
    for option in options:
        package = _PACKAGES.get(option)
        if package and find_spec(package) is None:
            raise EnvironmentFault(
                "environment.package", f"option {option} needs {package}, which is not installed: pip install {package}"
            )


def check_trackers(names: Iterable[str]) -> None:
    """Check that services to report to are known, and that their packages are installed.

    Raises:
        BundleError: `bundle.option`.
        EnvironmentFault: `environment.package`.
    """
    for name in names:
        if name not in TRACKERS:
            raise BundleError("bundle.option", f"found --track {name}{offered(name, TRACKERS)}")
    check_packages(names)


def check_folds(folds: int | None, fold: int | None) -> None:
    """Check the number of folds and the index of a fold.

    Raises:
        BundleError: `bundle.folds` or `bundle.fold`.
    """
    if folds is not None and folds < 2:
        raise BundleError("bundle.folds", f"found {folds} folds; expected at least 2")
    if fold is not None and not (folds and 0 <= fold < folds):
        expected = f"expected 0 to {folds - 1}" if folds else "expected --folds too"
        raise BundleError("bundle.fold", f"found fold {fold}; {expected}")


def changed_settings(written: dict[str, Any], choices: Choices) -> dict[str, Any]:
    """Return the chosen settings that differ from an existing plan."""
    planned = {name: entry["value"] for name, entry in written["settings"].items()}
    before = planned | written["choices"].get("settings", {})
    return {name: value for name, value in choices.settings.items() if name not in before or before[name] != value}


def _in_effect(written: dict[str, Any]) -> dict[str, Any]:
    """Return the choices of a plan, with what the plan chose where the user did not."""
    network = written.get("network", {})
    is_2d = not {"images_2d", "slices_2d"}.isdisjoint(written.get("options", ()))
    planned = {"network": network.get("class"), "size": network.get("size"), "dims": 2 if is_2d else 3}
    return {name: value for name, value in planned.items() if value is not None} | written["choices"]


def check_same(written: dict[str, Any], dataset: Mapping[str, Any], choices: Choices, out: str) -> None:
    """Check that an existing plan agrees with the data set and the choices, except for settings that may change.

    Args:
        written: content of plan.json.
        dataset: `identity.identity` of the data set.
        choices: current choices; choices that were not made again stay as planned.
        out: name of the folder, for the message.

    Raises:
        OutputError: `output.exists`, the plan was made for other data or with other choices.
    """
    planned = _in_effect(written)
    differing = [
        f"{name} {planned[name]}, now {value}" if name in planned else f"no {name}, now {value}"
        for name, value in choices.as_dict().items()
        if name not in ("settings", "fine_tune") and planned.get(name) != value
    ]
    differing += [
        f"another {name}, now {value!r}"
        for name, value in changed_settings(written, choices).items()
        if not _CHANGEABLE.fullmatch(name.replace("::", "#"))
    ]
    initial = written["choices"].get("fine_tune", {})
    if choices.fine_tune and choices.fine_tune["sha256"] != initial.get("sha256"):
        now = choices.fine_tune["file"]
        before = (
            f"initial weights {initial['file']!r}, now other weights" if initial else "no initial weights, now those in"
        )
        differing.append(f"{before} {now!r}")
    if written["dataset"] != dataset:
        before, now = written["dataset"]["cases"], dataset["cases"]
        other = "other files, names, patients or parts of its cases, or another order"
        differing.insert(0, other if before == now else f"a data set of {before} cases, now another of {now}")
    if differing:
        raise OutputError(
            "output.exists",
            f"{out} was planned with {'; '.join(differing)}; leave these arguments out to continue, or choose a new "
            "folder with -o",
        )


def check_same_labels(written: dict[str, Any], dataset: Dataset, out: str) -> None:
    """Check that a data set still names its label values as an existing plan says, unless the user named them.

    Args:
        written: content of plan.json.
        dataset: the data set; one without names is accepted.
        out: name of the folder, for the message.

    Raises:
        OutputError: `output.exists`.
    """
    planned = {name: values for name, values in written["labels"].items() if name != IGNORE}
    found = {name: list(values) for name, values in dataset.labels.items()}
    if found and found != planned and not written["choices"].get("labels"):
        changed = [name for name in (*planned, *found) if planned.get(name) != found.get(name)]
        raise OutputError(
            "output.exists",
            f"{out} was planned with other values of {', '.join(dict.fromkeys(changed))}; restore the names in the "
            "data set to continue, or choose a new folder with -o",
        )
