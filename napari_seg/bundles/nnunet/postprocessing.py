"""The steps on label maps that nnU-Net chose by cross-validation: postprocessing.json next to its results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from napari_seg.bundles.config.read import read_config
from napari_seg.bundles.nnunet.configuration import NnunetBundle
from napari_seg.bundles.nnunet.folder import folds_in_words
from napari_seg.bundles.spec import Bundle, EnsembleBundle
from napari_seg.errors import BundleError, one_line

POSTPROCESSING = "postprocessing.json"

KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"
"""The only step that nnU-Net has."""

_MAX_BYTES = 2**24
_MAX_LABEL = 2**16
_MAX_STEPS = 1000


def read_postprocessing(bundle: Bundle) -> tuple[tuple[int, ...], ...]:
    """Return the labels of each step, in order: all but the largest island of these labels together is removed.

    The file is that of the folds which the bundle averages, or the only one.

    Args:
        bundle: a model of nnU-Net, or an ensemble of two.

    Raises:
        BundleError: `bundle.no_postprocessing`, there is none, or several for other folds; `bundle.nnunet`, it can't be
            used.
    """
    places = _places(bundle)
    found = [place / POSTPROCESSING for place in places if (place / POSTPROCESSING).is_file()]
    folds = _folds(bundle)
    ends = tuple(f"{sign}{'_'.join(folds)}" for sign in ("_folds_", "___"))
    of_folds = [path for path in found if path.parent.name.endswith(ends)]
    if len(of_folds or found) != 1:
        expected = "crossval_results_folds_*/postprocessing.json in its folder, as nnUNetv2_find_best_configuration"
        raise BundleError(
            "bundle.no_postprocessing",
            f"{one_line(bundle.name, 120)!r} has {len(found) or 'no'} file{'s' * (len(found) > 1)} of post-processing"
            f"{f' for {one_line(folds_in_words(folds), 120)}' if folds else ''}; expected {expected} writes it; leave "
            "out --postprocess",
        )
    path = (of_folds or found)[0]
    try:
        content = read_config(path, _MAX_BYTES)
        steps = list(zip(content["postprocessing_fns"], content["postprocessing_kwargs"], strict=True))
        if len(steps) > _MAX_STEPS:
            raise ValueError(f"found {len(steps)} steps; expected at most {_MAX_STEPS}")
        return tuple(_labels(name, arguments) for name, arguments in steps)
    except Exception as error:  # a foreign file can hold anything
        raise BundleError(
            "bundle.nnunet",
            f"{POSTPROCESSING} of {one_line(bundle.name, 120)!r} can't be used: {one_line(str(error), 200)}; expected "
            "the file that nnU-Net writes",
        ) from error


def _places(bundle: Bundle) -> list[Path]:
    """Return the folders in which nnU-Net leaves the results of a cross-validation."""
    if isinstance(bundle, NnunetBundle):
        return sorted(bundle.root.glob("crossval_results_folds_*"))
    if isinstance(bundle, EnsembleBundle) and len(bundle.members) == 2:
        names = [member.root.name for member in bundle.members]
        results = bundle.members[0].root.parent / "ensembles"
        return [
            path
            for path in sorted(results.glob("ensemble___*"))
            if sorted(path.name.split("___")[1:-1]) == sorted(names)
        ]
    return []


def _folds(bundle: Bundle) -> list[str]:
    """Return the names of the folds that a model averages."""
    model = bundle.members[0] if isinstance(bundle, EnsembleBundle) else bundle
    return [fold.removeprefix("fold_") for fold in model.folds] if isinstance(model, NnunetBundle) else []


def _labels(name: Any, arguments: Any) -> tuple[int, ...]:
    """Return the labels of one step.

    Raises:
        ValueError: it is none of nnU-Net's.
    """
    if name != KEEP_LARGEST or not isinstance(arguments, dict) or int(arguments.get("background_label", 0)):
        raise ValueError(f"found the step {name!r} of {arguments!r}; expected {KEEP_LARGEST} on a background of 0")
    labels = tuple(dict.fromkeys(_numbers(arguments["labels_or_regions"])))
    if not labels or any(isinstance(label, bool) or not 0 < label < _MAX_LABEL for label in labels):
        raise ValueError(f"found labels {labels}; expected numbers above 0")
    return labels


def _numbers(value: Any) -> Iterator[int]:
    """Yield the labels of a label, a region, or a list of both: nnU-Net takes their union."""
    if not isinstance(value, list):
        if not isinstance(value, int):
            raise ValueError(f"found the label {value!r}; expected a whole number")
        yield value
        return
    for one in value:
        yield from _numbers(one)
