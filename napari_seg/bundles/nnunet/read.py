"""Read models of nnU-Net into bundles; nothing of a model runs here.

A model is named by its folder, with a choice behind it where the folder holds several: `FOLDER:3d_fullres` or the
whole name of the training's folder, `FOLDER:2d+3d_fullres` for an ensemble, `FOLDER:3d_fullres@0,2` for some folds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.bundles.nnunet.configuration import Configuration, NnunetBundle
from napari_seg.bundles.nnunet.folder import Training, find_trainings, folds_in_words, is_training, read_training_folder
from napari_seg.bundles.nnunet.plans import read_configuration
from napari_seg.bundles.output import Channel, Output
from napari_seg.bundles.spec import EnsembleBundle
from napari_seg.errors import BundleError, did_you_mean, one_line
from napari_seg.volume import Segment, distinct_color

_CHOICE = re.compile(r"(?P<folder>.+?)(?::(?P<configurations>[\w.-]+(?:\+[\w.-]+)*))?(?:@(?P<folds>\w+(?:,\w+)*))?")

_MR_NAMES = re.compile(r"mri?|t1.*|t2.*|flair|adc|dwi|pd|swi|tof|b\d+", re.IGNORECASE)
"""Names of channels that are of magnetic resonance."""


def split_choice(text: str | Path) -> tuple[Path, tuple[str, ...], tuple[str, ...]]:
    """Return the folder, the configurations and the folds that a name of a model holds."""
    try:
        if isinstance(text, Path) or Path(text).exists():
            return Path(text), (), ()
    except (OSError, ValueError):  # a name that no file system takes
        return Path(text), (), ()
    found = _CHOICE.fullmatch(text)
    if found is None:
        return Path(text), (), ()
    configurations, folds = found["configurations"], found["folds"]
    if configurations and len(found["folder"]) == 1:  # C:\models on Windows
        return Path(text), (), ()
    return (
        Path(found["folder"]),
        tuple((configurations or "").split("+")) if configurations else (),
        (tuple(folds.split(",")) if folds else ()),
    )


def read_nnunet(
    folder: Path, configurations: Sequence[str] = (), folds: Sequence[str] = ()
) -> NnunetBundle | EnsembleBundle:
    """Return the model in a folder of nnU-Net.

    Args:
        folder: of a training, of a data set, or of results.
        configurations: names of the configurations; several make an ensemble; empty: the only one.
        folds: see `read_training_folder`.

    Raises:
        BundleError: `bundle.unknown`, the folder holds no training, several, or none of that configuration;
            `bundle.nnunet`, a model's plans can't be used; `bundle.weights`, its weights are missing.
    """
    roots = find_trainings(folder)
    shown = one_line(folder.name or str(folder), 120)
    if not roots:
        raise BundleError("bundle.unknown", f"found no nnU-Net model in {shown!r}; expected a folder with plans.json")
    if not configurations:
        if len(roots) > 1:
            names = one_line(", ".join(root.name for root in roots), 400)
            raise BundleError(
                "bundle.unknown",
                f"{shown!r} holds {len(roots)} nnU-Net models ({names}); choose one by its folder, or by "
                "FOLDER:CONFIGURATION such as :3d_fullres; :2d+3d_fullres averages two",
            )
        return read_training(roots[0], folds)
    members = [read_training(_root_of(roots, name, shown), folds) for name in configurations]
    return members[0] if len(members) == 1 else _ensemble(members, folder)


def read_training(root: Path, folds: Sequence[str | int] = ()) -> NnunetBundle:
    """Return the model of one training.

    Args:
        root: folder with plans.json.
        folds: folds that are averaged; empty: all that have weights.

    Raises:
        BundleError: as for `read_nnunet`.
    """
    return _read(root.resolve(), folds, ())


def _read(root: Path, folds: Sequence[str | int], later: tuple[Path, ...]) -> NnunetBundle:
    """Return the model of one training, with those of its previous stages.

    Args:
        root: folder with plans.json.
        folds: as for `read_training`.
        later: folders of the stages that take this one's label map.
    """
    if root in later:
        raise BundleError(
            "bundle.nnunet", f"the cascade {one_line(root.name, 120)!r} is its own previous stage; expected another one"
        )
    training = read_training_folder(root, [str(fold) for fold in folds])
    configuration = read_configuration(root, training.configuration, training.trainer)
    previous = None
    if configuration.previous_stage:
        previous = _read(_previous_root(training, configuration.previous_stage).resolve(), folds, (*later, root))
    return _bundle(training, configuration, previous)


def _root_of(roots: list[Path], configuration: str, shown: str) -> Path:
    found = [root for root in roots if root.name == configuration]
    found = found or [root for root in roots if root.name.rpartition("__")[2] == configuration]
    if len(roots) == 1 and not found:
        found = [root for root in roots if read_training_folder(root).configuration == configuration]
    if len(found) == 1:
        return found[0]
    asked = one_line(configuration, 120)
    if found:
        names = one_line(", ".join(root.name for root in found), 400)
        raise BundleError("bundle.unknown", f"{shown!r} holds several models of the configuration {asked!r}: {names}")
    known = list(dict.fromkeys(root.name.rpartition("__")[2] for root in roots))
    text = f"{shown!r} holds no model of the configuration {asked!r}{did_you_mean(asked, known) or ';'}"
    raise BundleError("bundle.unknown", f"{text} it has {one_line(', '.join(known), 400)}")


def _bundle(training: Training, configuration: Configuration, previous: NnunetBundle | None) -> NnunetBundle:
    segments, output = _segments(configuration)
    shown = configuration.dataset or training.root.parent.name
    finds = f"nnU-Net model that finds {_names(segments)}"
    return NnunetBundle(
        root=training.root,
        name=one_line(f"{shown} {configuration.name}", 120),
        version="",
        description=one_line(f"{finds}; {folds_in_words(training.folds)}", 500),
        modality=_modality(configuration.channel_names),
        in_channels=len(configuration.channel_names),
        network_segments=segments,
        segments=segments,
        kind="nnunet",
        background=next((name for name, values in configuration.labels if values == (0,)), ""),
        channel_names=configuration.channel_names,
        output=output,
        out_channels=len(configuration.region_labels) or len(segments) + 1,
        configuration=configuration,
        takes_one_slice=configuration.is_2d,
        folds=training.folds,
        checkpoint=training.checkpoint,
        previous=previous,
    )


def _segments(configuration: Configuration) -> tuple[tuple[Segment, ...], Output]:
    """Return the structures in the result, and how the network's channels become labels."""
    if not configuration.region_labels:
        named = sorted((values[0], name) for name, values in configuration.labels if values != (0,))
        return tuple(
            Segment(label, name or f"segment {label}", distinct_color(label)) for label, name in named
        ), Output()
    above = float(np.nextafter(np.float32(0), np.float32(1)))  # sigmoid > 0.5
    channels = tuple(Channel(number, above, label) for number, label in enumerate(configuration.region_labels))
    names = dict(zip(reversed(configuration.region_labels), reversed(configuration.labels), strict=True))
    segments = tuple(
        Segment(label, names[label][0] or f"segment {label}", distinct_color(label)) for label in sorted(names)
    )
    return segments, Output(decision="thresholds", channels=channels)


def _previous_root(training: Training, stage: str) -> Path:
    """Return the folder of the previous stage of a cascade: a neighbour by the same trainer and plans."""
    neighbours: list[Any] = [path for path in sorted(training.root.parent.iterdir()) if is_training(path)]
    found = [path for path in neighbours if path.name.split("__") == [training.trainer, training.plans, stage]]
    found = found or [path for path in neighbours if path.name.rpartition("__")[2] == stage]
    if len(found) != 1:
        raise BundleError(
            "bundle.unknown",
            f"the cascade {one_line(training.root.name, 120)!r} needs the model of its previous stage "
            f"{one_line(stage, 120)!r} next to it; found {len(found)}",
        )
    return found[0]


def _ensemble(members: list[NnunetBundle], folder: Path) -> EnsembleBundle:
    first = members[0]
    for other in members[1:]:
        same = ("labels", "region_labels", "channel_names")
        if any(getattr(other.configuration, key) != getattr(first.configuration, key) for key in same):
            raise BundleError(
                "bundle.nnunet",
                f"the models {first.name!r} and {other.name!r} have different labels or channels; expected the same "
                "ones, to average their probabilities",
            )
    names = "+".join(member.configuration.name for member in members)
    folds = "; ".join(f"{member.configuration.name}: {folds_in_words(member.folds)}" for member in members)
    finds = f"ensemble of {len(members)} nnU-Net models that find {_names(first.segments)}"
    return EnsembleBundle(
        root=folder.resolve(),
        name=one_line(f"{first.configuration.dataset or folder.name} {names}", 120),
        version="",
        description=one_line(f"{finds}; {folds}", 500),
        modality=first.modality,
        in_channels=first.in_channels,
        network_segments=first.segments,
        segments=first.segments,
        kind="ensemble",
        background=first.background,
        channel_names=first.channel_names,
        output=first.output,
        out_channels=first.out_channels,
        takes_one_slice=all(member.takes_one_slice for member in members),
        members=tuple(members),
    )


def _names(segments: Sequence[Segment]) -> str:
    return ", ".join(segment.name for segment in segments[:8]) + ", …" * (len(segments) > 8)


def _modality(names: tuple[str, ...]) -> str:
    if all(name.casefold().startswith("ct") for name in names):
        return "CT"
    return "MR" if all(_MR_NAMES.fullmatch(name) for name in names) else ""
