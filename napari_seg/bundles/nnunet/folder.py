"""Folders of nnU-Net's models on disk, found by content: any folder with plans.json, dataset.json and folds.

nnU-Net writes <results>/<data set>/<trainer>__<plans>__<configuration>/fold_<n>/checkpoint_final.pth; models
that people pass on may have other names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_seg.bundles.nnunet.plans import DATASET, PLANS, read_plans
from napari_seg.errors import BundleError, one_line

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
"""File names of weights, the preferred one first."""

_FOLD = re.compile(r"fold_(all|\d+)")
"""Names of the folders of folds; a copy with another name is none."""

_MAX_FOLDERS = 2000
"""Number of folders that are looked at below one."""


@dataclass(frozen=True)
class Training:
    """A trained configuration on disk.

    Attributes:
        root: folder with plans.json and dataset.json.
        trainer: name of the trainer; "" if the folder's name does not say.
        plans: name of the plans; "" likewise.
        configuration: name of the configuration.
        folds: folders of the folds that have weights, such as ("fold_0", "fold_1").
        checkpoint: file name of the weights in each of them.
    """

    root: Path
    trainer: str
    plans: str
    configuration: str
    folds: tuple[str, ...]
    checkpoint: str


def is_training(folder: Path) -> bool:
    """Return whether a folder holds a training of nnU-Net."""
    try:
        return (folder / PLANS).is_file() and (folder / DATASET).is_file()
    except OSError:
        return False


def find_trainings(folder: Path) -> list[Path]:
    """Return the folders of trainings: the folder itself, or those in a data set's folder or in a folder of results."""
    if is_training(folder):
        return [folder]
    level = [folder]
    for _ in range(2):
        level = [child for parent in level for child in _children(parent)][:_MAX_FOLDERS]
        if found := [child for child in level if is_training(child)]:
            return found
    return []


def read_training_folder(root: Path, folds: Sequence[str] = ()) -> Training:
    """Return the training in a folder.

    Args:
        root: folder with plans.json and dataset.json.
        folds: names of the folds' folders without "fold_"; empty: all that have weights.

    Raises:
        BundleError: `bundle.nnunet`, its plans can't be read or do not say which configuration it is; `bundle.link`,
            one of its files is outside; `bundle.weights`, there are no weights of these folds.
    """
    for name in (PLANS, DATASET):
        _check_inside(root, root / name)
    words = root.name.split("__")
    trainer, plans, configuration = words if len(words) == 3 else ("", "", "")
    configurations = read_plans(root)[0].get("configurations")
    known = [str(name) for name in configurations] if isinstance(configurations, dict) else []
    if configuration not in known:
        configuration = _only_configuration(root, known)
    checkpoint, found = _folds(root, folds)
    return Training(root, trainer, plans, configuration, found, checkpoint)


def has_weights(root: Path, folds: Sequence[str | int] = ()) -> bool:
    """Return whether a training has the weights of some folds, by the rules of `read_training_folder`."""
    try:
        _folds(root, [str(fold) for fold in folds])
    except BundleError as error:
        return error.code != "bundle.weights"  # whoever reads the folder gets any other error
    return True


def _only_configuration(root: Path, known: list[str]) -> str:
    """Return the configuration of a folder with a name of its own: that in its name, or the only one of its plans."""
    named = [name for name in known if re.search(rf"(^|__|\W){re.escape(name)}($|__|\W)", root.name)]
    if len(named) == 1 or len(known) == 1:
        return (named if len(named) == 1 else known)[0]
    if (checkpoint := _any_checkpoint(root)) is not None:
        from napari_seg.bundles.nnunet.checkpoint import read_nnunet_checkpoint

        name = read_nnunet_checkpoint(checkpoint).configuration
        if name in known:
            return name
    names = one_line(", ".join(known), 200) or "none"
    raise BundleError(
        "bundle.nnunet",
        f"the folder {one_line(root.name, 120)!r} does not say which configuration of its plans it holds ({names}); "
        "expected a name such as nnUNetTrainer__nnUNetPlans__3d_fullres",
    )


def _any_checkpoint(root: Path) -> Path | None:
    return next((path for name in CHECKPOINTS for path in sorted(root.glob(f"fold_*/{name}"))), None)


def _folds(root: Path, required: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the file name of the weights and the folders of the folds that have it."""
    for checkpoint in CHECKPOINTS:
        paths = [path for path in sorted(root.glob(f"fold_*/{checkpoint}")) if path.is_file()]
        found = [path.parent.name for path in paths if _FOLD.fullmatch(path.parent.name)]
        if required:
            chosen = [f"fold_{fold}" for fold in dict.fromkeys(required)]
        else:
            chosen = [name for name in found if name != "fold_all"] or found
        if chosen and {*chosen} <= {*found}:
            for fold in chosen:
                _check_inside(root, root / fold / checkpoint)
            return checkpoint, tuple(chosen)
    paths = [path for name in CHECKPOINTS[::-1] for path in root.glob(f"fold_*/{name}") if path.is_file()]
    known = {path.parent.name: path.name for path in paths}
    missing = [fold for fold in required if f"fold_{fold}" not in known] or required
    folds = folds_in_words(missing) if required else "any fold"
    here = ", ".join(
        fold.removeprefix("fold_") + f" ({file} alone)" * (file != CHECKPOINTS[0])
        for fold, file in sorted(known.items())
    )
    expected = f"it has those of {one_line(here, 400)}" if here else f"expected fold_0/{CHECKPOINTS[0]}"
    text = f"the nnU-Net model {one_line(root.name, 120)!r} has no weights of {folds}; {expected}"
    raise BundleError("bundle.weights", text)


def folds_in_words(folds: Sequence[str]) -> str:
    """Return folds such as "fold 0" or "folds 0, 1, 2"."""
    return f"fold{'s' * (len(folds) > 1)} {', '.join(fold.removeprefix('fold_') for fold in folds)}"


def _check_inside(root: Path, path: Path) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(
            "bundle.link",
            f"{path.relative_to(root).as_posix()} of the nnU-Net model {one_line(root.name, 120)!r} is a link out of "
            "its folder; expected the file itself; copy it there",
        )


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(
            child
            for child in folder.iterdir()
            if child.is_dir() and not child.name.startswith((".", "__MACOSX", "fold_"))
        )
    except (OSError, ValueError):  # a name that no file system takes
        return []
