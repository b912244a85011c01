"""What a training begins from: the weights of a bundle, or a model of nnU-Net with its network and its preprocessing.

A model of nnU-Net becomes a bundle like any other one: its network is `segnets.NnunetUNet`, its preprocessing
`segnets.nnunet_preprocessing.NnunetPreprocessd`, and before the first step it gives the same labels. The optimizer,
the augmentation and the loss are this program's.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

from napari_seg.bundles.config.read import read_config
from napari_seg.bundles.nnunet.as_bundle import NNUNET, bundle_config, taken
from napari_seg.bundles.nnunet.configuration import NnunetBundle, why_not_single
from napari_seg.bundles.nnunet.folder import CHECKPOINTS, find_trainings, folds_in_words, is_training
from napari_seg.bundles.nnunet.read import read_nnunet, read_training, split_choice
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import MEMBERS, METADATA, PREVIOUS, WEIGHTS, Bundle, EnsembleBundle
from napari_seg.bundles.store.licence import read_licence
from napari_seg.bundles.totalsegmentator.part_model import PartModel, part_model, part_of_folder, why_not_part
from napari_seg.bundles.totalsegmentator.table import is_task_name
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.errors import BundleError, OutputError, counted, one_line
from napari_seg.formats.atomic import atomic_write
from napari_seg.training.choices import CODE, Choices, describe_weights
from napari_seg.training.history import RUN
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.trust import check_taken

DATA_LICENCE = Path("docs", "data_license.txt")
"""File of a bundle that states the rights in its data and the licence of its weights."""

_NETWORKS = ("network", "size", "plan")
"""Choices that a model of nnU-Net makes itself."""


def with_start(choices: Choices, start: str | Path, out: Path) -> Choices:
    """Return choices with what a training begins from.

    Args:
        choices: choices of the user.
        start: file of weights, folder of a bundle, or a model of nnU-Net: its folder, FOLDER:3d_fullres, or a
            checkpoint in it.
        out: folder of the new bundle.

    Raises:
        TrainingError: `weights.missing`.
        OutputError: `output.exists`, the start lies in the new bundle.
        BundleError: `bundle.fine_tune`, this model of nnU-Net can't be trained further; `bundle.setting`, a choice
            that the model makes itself; and as for `read_nnunet` and `nnunet_choices`.
    """
    if Path(start).exists() and Path(start).resolve().is_relative_to(out.resolve()):
        raise OutputError(
            "output.exists",
            f"--fine-tune {start} lies in the output folder {out}, which it would be trained into; choose a new folder "
            "with -o, or leave --fine-tune out to continue the training",
        )
    model = _nnunet(start)
    begun = _of_bundle(Path(start), out) if model is None else _of_model(model, out)
    if begun is None:
        return replace(choices, fine_tune=describe_weights(Path(start), out))
    chosen = [f"--{name} {value}" for name in _NETWORKS if (value := getattr(choices, name)) not in (None, NNUNET)]
    chosen += [f"--dims {choices.dims}"] if choices.dims not in (None, begun.dims) else []
    chosen += [f"--set {name}" for name in choices.settings if re.split("#|::", name)[0] in begun.settings]
    if chosen:
        text = f"found {chosen[0]} with --fine-tune of a model of nnU-Net, which has its own network and preprocessing"
        raise BundleError("bundle.setting", f"{text}; leave it out")
    return replace(
        choices,
        network=begun.network,
        dims=begun.dims,
        options=tuple(dict.fromkeys((*begun.options, *choices.options))),
        settings=begun.settings | choices.settings,
        fine_tune=begun.fine_tune,
    )


def _of_bundle(root: Path, out: Path) -> Choices | None:
    """Return the choices of a training that continues a bundle which began from nnU-Net; None for any other start.

    Raises:
        BundleError: `bundle.untrusted`, its config holds foreign code.
        TrainingError: `weights.missing`.
    """
    try:
        content = read_config(root / "configs" / "inference.yaml")
        settings = taken(content)
        if settings["network_def"]["_target_"] != f"segnets.{NNUNET}":
            return None
        part = named_part(read_bundle(root))
    except Exception:  # a foreign file can hold anything; then its weights alone count
        return None
    with with_segnets():
        check_taken(root, settings)
    weights = describe_weights(root, out) | part
    dims = settings["network_def"]["spatial_dims"]
    return Choices(network=NNUNET, dims=dims, options=("crops_balanced",), settings=settings, fine_tune=weights)


def _of_model(model: Bundle, out: Path) -> Choices:
    """Return the choices of a training that continues a model of nnU-Net.

    Raises:
        BundleError: as for `with_start`.
    """
    found = trainable(model)
    if isinstance(model, TaskBundle) and not isinstance(found, str) and (len(model.parts) > 1 or model.improved):
        folders = ", ".join(str(one.root) for one in model.parts)
        number = counted(len(model.parts), "model")
        found = f"consists of {number}; name the one whose structures the data have: {folders}"
    if isinstance(found, str):
        text = f"model {one_line(model.name, 120)!r} can't be trained further: it {found}"
        if model.kind == "monai":  # a cascade of this program: its first stage is always there
            other = model.root / RUN / "3d"
            text += f"; expected a model of one network, such as {other if other.is_dir() else model.root / PREVIOUS}"
        elif model.kind != "ensemble":
            text += "; expected a model of one configuration, such as FOLDER:3d_fullres"
        raise BundleError("bundle.fine_tune", text)
    begun = nnunet_choices(found, out)
    begun.settings.pop("classes_from", None)  # the data set may have other classes
    return begun


def trainable(bundle: Bundle) -> NnunetBundle | str:
    """Return the model of nnU-Net that can be trained further, or why a model that is no MONAI bundle can't be.

    Of a task of TotalSegmentator it is the first model; `part_with` chooses. It reads nothing.
    """
    if isinstance(bundle, PartModel):
        return bundle
    if isinstance(bundle, TaskBundle):
        task, model = bundle.task, bundle.parts[0]
        return why_not_part(task, model) or part_model(task, task.parts[0], model)
    if reason := why_not_single(bundle):
        return reason
    assert isinstance(bundle, NnunetBundle)
    return part_of_folder(bundle)


def _nnunet(start: str | Path) -> Bundle | None:
    """Return the model of nnU-Net, the ensemble or the cascade that a start names; None for anything else."""
    path = Path(start)
    if is_task_name(str(start)):
        return read_bundle(str(start))
    if path.is_file():
        fold = path.parent.resolve()
        if (found := _cascade(fold.parent)) is not None:
            return found
        if path.name not in CHECKPOINTS or not is_training(fold.parent):
            return None
        return replace(read_training(fold.parent, [fold.name.removeprefix("fold_")]), checkpoint=path.name)
    folder, configurations, folds = split_choice(str(start))
    if (folder / MEMBERS).is_dir() and isinstance(found := read_bundle(folder), EnsembleBundle):
        return found
    if (cascade := _cascade(folder)) is not None:
        return cascade
    if (folder / WEIGHTS).is_file() or not find_trainings(folder):
        return None
    return read_nnunet(folder, configurations, folds)


def _cascade(root: Path) -> Bundle | None:
    """Return the bundle in a folder if it is a cascade of `train --compare`."""
    if not (root / PREVIOUS).is_dir() or not (root / METADATA).is_file():
        return None
    found = read_bundle(root)
    return found if found.previous is not None else None


def nnunet_choices(bundle: NnunetBundle, out: Path) -> Choices:
    """Return the choices of a training that continues a model of nnU-Net; of several folds, the first one.

    Args:
        bundle: a model from `trainable`.
        out: folder of the new bundle.

    Raises:
        BundleError: as for `load_nnunet`; its weights must fit the network of its plans.
        TrainingError: `weights.missing`.
    """
    import torch

    from napari_seg.bundles.nnunet.load import load_nnunet

    configuration, fold = bundle.configuration, bundle.folds[0]
    load_nnunet(replace(bundle, folds=(fold,)), torch.device("cpu"), torch.float32)
    settings = bundle_config(configuration)
    if isinstance(bundle, PartModel):  # its own data set may name the classes differently
        own = {values[0]: name for name, values in configuration.labels}
        same = {one.name: own[one.label] for one in bundle.network_segments}
        settings["classes_from"] = {name: [old] for name, old in same.items() if name.casefold() != old.casefold()}
    others = f", of {len(bundle.folds)} folds" if len(bundle.folds) > 1 else ""
    weights = describe_weights(bundle.root / fold / bundle.checkpoint, out)
    weights["model"] = f"{_plain(bundle.name)}, {folds_in_words([fold])}{others}"
    weights |= {"licence": bundle.licence} if bundle.licence else {}
    weights |= named_part(bundle)
    dims = settings["network_def"]["spatial_dims"]
    return Choices(network=NNUNET, dims=dims, options=("crops_balanced",), settings=settings, fine_tune=weights)


def named_part(bundle: Bundle) -> dict[str, str]:
    """Return what `Choices.fine_tune` says about the model of TotalSegmentator that a model was made from: `PART`."""
    return {} if bundle.part_of is None else asdict(bundle.part_of)


def state_origin(root: Path, weights: Path, model: str, named: str = "") -> None:
    """Write into the documents of a planned bundle from which model of nnU-Net it begins, and under which licence.

    Args:
        root: folder of the bundle.
        weights: checkpoint of the model.
        model: its name.
        named: name of its licence, if its folder does not hold it.

    Raises:
        OSError: they can't be written.
    """
    licence = read_licence(weights.parents[1], model)
    metadata = json.loads((root / METADATA).read_text(encoding="utf-8"))
    metadata["data_source"] = f"not stated; the weights begin from those of the nnU-Net model {model}"
    name = licence.name or named
    metadata |= {"license": name} if name else {}
    atomic_write(root / METADATA, json.dumps(metadata, indent=4) + "\n")
    own = (root / DATA_LICENCE).read_text(encoding="utf-8")
    stated = "It states no licence: see its source." if not name else f"Its licence: {name}."
    stated = f"Its licence:\n\n{licence.text}" if licence.text else stated
    atomic_write(root / DATA_LICENCE, f"{own}\nThe weights begin from those of the nnU-Net model {model}. {stated}\n")


def _plain(name: str) -> str:
    """Return a name that MONAI does not interpret."""
    return one_line(name, 120).lstrip("$@%") if CODE.match(name) else one_line(name, 120)
