"""The teacher of a training: a trained bundle whose probabilities the new network learns besides the labels.

The new network sees images as its teacher does: it takes over the preprocessing and the voxel size. The plan makes the
rest. A copy of the teacher's weights stays in the folder of the training, so that it can be resumed anywhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from napari_seg.bundles.config.read import read_config
from napari_seg.bundles.nnunet.as_bundle import SLICE_AXIS, TRANSFORM
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import METADATA, WEIGHTS
from napari_seg.errors import BundleError, OutputError, TrainingError, one_line
from napari_seg.formats.atomic import atomic_write
from napari_seg.training.choices import SEEN, Choices, digest, relative_path
from napari_seg.training.history import RUN
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.start import DATA_LICENCE
from napari_seg.training.trust import check_taken
from napari_seg.training.write import PLAN

TEACHER = Path(RUN, "teacher.pt")
"""Copy of the teacher's weights in the folder of a training; distill.yaml names it too."""

_SEEN_ALIKE = ("spacing_mm", "preprocessing", SLICE_AXIS)
"""Ids in the config of a bundle that decide what its network sees."""


@dataclass(frozen=True)
class Teacher:
    """Teacher of a training.

    Attributes:
        root: folder of the bundle.
        name: its title.
        classes: names of the channels of its network's output.
        channels: names of the channels of its image.
        settings: config id -> value that the training takes over.
    """

    root: Path
    name: str
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def dims(self) -> int:
        """Return the spatial dimensions of its network."""
        network = self.settings["teacher_def"]
        return int(network.get("network", network)["spatial_dims"])

    @property
    def takes_2d_images(self) -> bool:
        """Return whether its images are 2D images, not volumes or their slices."""
        return self.dims == 2 and SLICE_AXIS not in self.settings


def read_teacher(root: Path) -> Teacher:
    """Read the bundle of a teacher; nothing of it runs.

    Raises:
        BundleError: `bundle.teacher`, its network is none of this program's, or it is no single bundle;
            `bundle.untrusted`, its config holds foreign code; and as for `read_bundle`.
        TrainingError: `weights.missing`.
    """
    if not root.is_dir():
        text = f"found no folder {root}; expected the folder of a bundle (--teacher)"
        raise TrainingError("weights.missing", f"{text}; to continue a training, leave --teacher out")
    bundle = read_bundle(root)
    try:
        if bundle.kind != "monai" or bundle.previous is not None:
            raise LookupError
        content = read_config(root / "configs" / "inference.yaml")
        settings = {key: content[key] for key in _SEEN_ALIKE if key in content}
        settings["teacher_def"] = content["network_def"]
        formats = read_config(root / METADATA)["network_data_format"]
        names = [formats[way][what]["channel_def"] for way, what in (("outputs", "pred"), ("inputs", "image"))]
        classes, channels = (tuple(str(of[str(n)]) for n in range(len(of))) for of in names)
        name = re.sub("[$@%#]|::", "", one_line(bundle.name, 120))  # which MONAI would interpret in metadata
        teacher = Teacher(root, name, classes, channels, settings)
        is_ours = str(settings["teacher_def"]["_target_"]).startswith("segnets.") and teacher.dims in (2, 3)
        # its axes are others than those of the plan
        is_ours = is_ours and all(step["_target_"] != TRANSFORM for step in content["preprocessing"]["transforms"])
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        is_ours = False
    if not is_ours:
        raise BundleError(
            "bundle.teacher",
            f"model {one_line(bundle.name, 120)!r} can't be a teacher; expected a bundle of napari-seg train, also "
            "with --folds, that did not begin from a model of nnU-Net, which has other preprocessing",
        )
    with with_segnets():
        check_taken(root, settings)
    return teacher


def with_teacher(choices: Choices, root: Path, out: Path) -> Choices:
    """Return choices with a teacher.

    Args:
        choices: choices of the user.
        root: folder of the teacher's bundle.
        out: folder of the new bundle.

    Raises:
        OutputError: `output.exists`, the teacher lies in the new bundle.
        BundleError: `bundle.setting`, a choice that the teacher makes; and as for `read_teacher`.
        TrainingError: `weights.missing`.
    """
    if root.resolve().is_relative_to(out.resolve()):
        raise OutputError(
            "output.exists",
            f"--teacher {root} lies in the output folder {out}; choose a new folder with -o, or leave --teacher out to "
            "continue the training",
        )
    teacher = read_teacher(root)
    given = "--fine-tune, which sets " if choices.fine_tune else "--set "
    wrong = [
        f"{given}{name}"
        for name, value in choices.settings.items()
        if re.split("#|::", name.lstrip("+~"))[0] in teacher.settings and value != teacher.settings.get(name)
    ]
    wrong += [f"--dims {choices.dims}"] if choices.dims not in (None, teacher.dims) else []
    if wrong:
        text = f"found {wrong[0]} with --teacher, whose preprocessing and number of dimensions the network takes over"
        raise BundleError("bundle.setting", f"{text}; leave it out")
    weights = root.resolve() / WEIGHTS  # which may be a link out of the bundle
    described = {"file": relative_path(weights, out.resolve()), "sha256": digest(weights), "name": teacher.name}
    return replace(choices, dims=2 if teacher.dims == 2 else choices.dims, teacher=described)


def teacher_of(choices: Choices, out: Path) -> Teacher | None:
    """Return the teacher of choices; None without one. Arguments and errors as for `with_teacher`."""
    if not choices.teacher:
        return None
    return read_teacher(Path(os.path.normpath(out.resolve() / choices.teacher["file"])).parents[1])


def check_fits(teacher: Teacher, classes: Sequence[str], channels: Sequence[str], is_2d: bool) -> None:
    """Check that a teacher has the classes of a training in their order, and as many channels in no other order.

    Args:
        teacher: the teacher.
        classes: names of the classes, background first unless they are regions.
        channels: names of the channels of the images.
        is_2d: the images are 2D images.

    Raises:
        BundleError: `bundle.teacher`.
    """
    if teacher.takes_2d_images != is_2d:
        kinds = [("volumes", "2D images")[takes_2d] for takes_2d in (teacher.takes_2d_images, is_2d)]
        text = f"teacher {teacher.name!r} takes {kinds[0]}; expected {kinds[1]}, which the data set holds"
        raise BundleError("bundle.teacher", text)
    theirs, ours = ([name.casefold() for name in names] for names in (teacher.classes, classes))
    if theirs != ours:
        raise BundleError(
            "bundle.teacher",
            f"teacher {teacher.name!r} has the classes {', '.join(teacher.classes)}; expected those of the data set in "
            f"their order, {', '.join(classes)}; name the label values as the teacher does, with --labels",
        )
    theirs, ours = ([name.casefold() for name in names] for names in (teacher.channels, channels))
    if len(theirs) != len(ours) or (theirs != ours and sorted(theirs) == sorted(ours)):
        raise BundleError(
            "bundle.teacher",
            f"teacher {teacher.name!r} has the channels {', '.join(teacher.channels)}; expected those of the data set "
            f"in their order, {', '.join(channels)}",
        )


def add_teacher(root: Path, teacher: Teacher, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the weights of a teacher into a new bundle, name it in the documents, and return its entry in plan.json.

    Args:
        root: folder of the bundle.
        teacher: the teacher.
        planned: content of plan.json so far.
    """
    (root / TEACHER).parent.mkdir(exist_ok=True)
    shutil.copyfile(teacher.root / WEIGHTS, root / TEACHER)
    metadata = json.loads((root / METADATA).read_text(encoding="utf-8"))
    metadata["description"] += f" It has also learned the results of the model {teacher.name}."
    atomic_write(root / METADATA, json.dumps(metadata, indent=4) + "\n")
    stated = (root / DATA_LICENCE).read_text(encoding="utf-8")
    learned = f"The network has also learned the results of the model {teacher.name}: state its data and licence too."
    atomic_write(root / DATA_LICENCE, f"{stated}\n{learned}\n")
    return {"name": teacher.name, SEEN: not _kept_out(teacher.root, planned)}


def _kept_out(root: Path, planned: Mapping[str, Any]) -> bool:
    """Return whether a teacher has certainly not seen the cases by which a training is measured, if there are any.

    It has not if it was trained from random weights on the same data set with the same parts. Folds have not seen the
    test part of a data set that states one.
    """
    parts = planned["parts"]
    if planned["choices"].get("folds"):
        return False
    if parts["validation"] == parts["test"] == 0:
        return True
    with suppress(OSError, ValueError, LookupError, TypeError):
        theirs = json.loads((root / PLAN).read_text(encoding="utf-8"))
        made = theirs["choices"]
        if theirs["dataset"] != planned["dataset"] or made.get("fine_tune") or made.get("teacher"):
            return False
        if parts["test"]:
            return bool(theirs["parts"]["test"] == parts["test"])
        fold, own_fold = (one["choices"].get("settings", {}).get("fold") for one in (theirs, planned))
        return not made.get("folds") and fold == own_fold
    return False
