"""Check that an existing bundle contains only the shipped bundle's code.

Training runs the bundle's modules and the code in its configs. A folder from elsewhere may contain any code, and only
its content distinguishes it from a bundle that was planned here. So the content is compared: modules must equal the
shipped ones, except that lines may end as on Windows, and all text in configs and metadata that MONAI would run or
resolve must occur in the shipped configs. Numbers, names and paths may differ.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from napari_seg.bundles.lambdas import label_rule, parsed_lambda
from napari_seg.bundles.litter import is_litter
from napari_seg.bundles.nnunet.as_bundle import NNUNET, TRANSFORM
from napari_seg.bundles.read import shipped_root
from napari_seg.bundles.spec import METADATA, PREVIOUS
from napari_seg.errors import BundleError
from napari_seg.training.choices import CODE, Choices
from napari_seg.training.postprocessing import STEP
from napari_seg.training.write import ONLY_OTHERS, networks

_IMPORTABLE = {".py", ".pyw", ".pyc", ".pyo", ".pyd", ".so", ".dylib", ".pth"}


def check_code(root: Path, choices: Choices) -> None:
    """Check that a bundle runs only the shipped bundle's code; compiled modules, which may hide code, are deleted.

    Call it within `with_segnets`, before anything of the bundle runs.

    Args:
        root: folder of the bundle.
        choices: choices of the user; code in their settings is allowed in the configs.

    Raises:
        BundleError: `bundle.untrusted`.
    """
    for foreign in _foreign(root, choices):
        raise BundleError(
            "bundle.untrusted",
            f"{foreign}, and training {root.name!r} would run it; expected only the code of this napari-seg. If you "
            "trust the source of the folder (an older version of napari-seg, or your changes), pass --trust; "
            "otherwise choose a new folder with -o",
        )


def check_stored_choices(stored: Mapping[str, Any], choices: Choices, place: Path) -> None:
    """Check that choices in a file run no code that the user has not chosen in this start too.

    Args:
        stored: content of the file.
        choices: choices of this start.
        place: the file.

    Raises:
        BundleError: `bundle.untrusted`.
    """
    known = set(_code(choices.as_dict()))
    for text in _code(stored):
        if text not in known:
            raise BundleError(
                "bundle.untrusted",
                f"{place} contains {text[:80]!r}, and planning would run it; if you trust the source of the folder, "
                "pass --trust; otherwise choose a new folder with -o",
            )


def _foreign(root: Path, choices: Choices) -> Iterator[str]:
    shipped = shipped_root()
    for cache in root.rglob("__pycache__"):
        shutil.rmtree(cache)
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() and path.is_dir() and not name.startswith(("training", "fold_")):
            yield f"{name} is a link to another folder"
        if path.suffix.lower() not in _IMPORTABLE or is_litter(path):
            continue
        original = shipped / name.removeprefix(f"{PREVIOUS}/")
        if not original.is_file() or not _same_text(original, path):
            yield f"{name} is not a module of this version"
    known = _known_code() | {ONLY_OTHERS, "$import sys", *_code(choices.settings)}
    for folder in (root / "configs", root / PREVIOUS / "configs"):
        logging = folder / "logging.conf"
        if logging.is_file() and not _same_text(logging, shipped / "configs" / logging.name):
            yield f"{logging.relative_to(root).as_posix()} differs from this version's"
        for path in sorted(folder.glob("*.yaml")):
            for text in _code(_read(path)):
                if text not in known and not _is_region_rule(text):
                    yield f"{path.relative_to(root).as_posix()} contains {text[:80]!r}"
        metadata = folder / METADATA.name
        if folder.parent == root or metadata.is_file():
            for text in _code(json.loads(metadata.read_text(encoding="utf-8"))):
                yield f"{metadata.relative_to(root).as_posix()} contains {text[:80]!r}"


def _same_text(first: Path, second: Path) -> bool:
    """Return whether two files have the same lines, with the line ends of whichever system."""
    return first.read_bytes().replace(b"\r\n", b"\n") == second.read_bytes().replace(b"\r\n", b"\n")


def check_taken(root: Path, taken: Mapping[str, Any]) -> None:
    """Check that what a training takes over from the config of another model runs only this version's code.

    Call it within `with_segnets`.

    Args:
        root: folder of the other model.
        taken: config id -> value.

    Raises:
        BundleError: `bundle.untrusted`.
    """
    known = _known_code()
    for text in _code(taken):
        if text not in known:
            raise BundleError(
                "bundle.untrusted",
                f"the config of model {root.name!r} holds {text[:80]!r}, and training would run it; expected only the "
                "code of this napari-seg; train a new model with napari-seg train",
            )


def _known_code() -> set[str]:
    """Return what this version's configs run, with the networks and the transforms that a plan may write."""
    known = {f"_target_ segnets.{name}" for name in (*networks(), NNUNET, "Ensemble")}
    for path in (shipped_root() / "configs").glob("*.yaml"):
        known |= set(_code(_read(path)))
    return known | {f"_target_ {name}" for name in _TRANSFORMS}


_TRANSFORMS = (STEP, TRANSFORM, "monai.transforms.NormalizeIntensityd", "monai.transforms.ScaleIntensityRanged")
"""Transforms that a bundle may have besides those of the shipped configs: postprocessing, nnU-Net's, normalisation."""


def _is_region_rule(text: str) -> bool:
    """Return whether an expression only makes labels of masks, as `region_rule` writes it."""
    function = parsed_lambda(text)
    return function is not None and label_rule(function) is not None


def _read(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _code(value: Any) -> Iterator[str]:
    """Yield all text in a config that MONAI would run or resolve; targets are prefixed with `_target_`."""
    if isinstance(value, str):
        if CODE.match(value):
            yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key == "_target_":
                yield f"_target_ {part}"
            else:
                yield from _code(part)
            yield from _code(key)
    elif isinstance(value, Iterable):
        for part in value:
            yield from _code(part)
