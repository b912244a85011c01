"""Find the references of a data set, or of one part of it as training splits it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.bundles.spec import MEMBERS
from napari_seg.errors import InputError, TrainingError
from napari_seg.evaluation.case_files import normal, stem
from napari_seg.evaluation.data_set import LISTS, ReferenceCase, References
from napari_seg.evaluation.declared import Declared, as_planned
from napari_seg.evaluation.declared import declared as read_declared
from napari_seg.evaluation.labels import Classes, read_classes
from napari_seg.formats.endings import nifti_ending
from napari_seg.training.choices import READING, Choices
from napari_seg.training.comparison import COMPARISON
from napari_seg.training.gather.combine import Part
from napari_seg.training.gather.gather import DATA, Continued, gather
from napari_seg.training.gather.write import RECORD
from napari_seg.training.identity import check_recorded, identity_of
from napari_seg.training.prepare import data_folder
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.write import PLAN
from napari_seg.volume import name_of_segment

if TYPE_CHECKING:
    from segnets.data import Dataset

_DATA_FOLDER = re.compile(r"(?i)sub-.*|JPEGImages|images?|imagesTr|img")
"""Folders of images in data sets, and those of subjects in BIDS."""
_SPLIT = ("fold", "folds", "fractions", "seed")
"""Arguments of `segnets.data.Split` in a bundle's train.yaml."""


def label_values(trained: Path) -> Classes:
    """Return the meaning of the label values of a data set, as `napari-seg train` planned it; empty if not stated.

    Args:
        trained: a bundle that `napari-seg train` wrote.

    Raises:
        InputError: `input.missing`, it has no plan.
    """
    values = _plan(trained).get("labels", {})
    return read_classes([(name, ",".join(map(str, of_class))) for name, of_class in values.items() if of_class])


def found_data_set(path: Path) -> References | None:
    """Return the references of a data set that training reads; None if the path is none.

    Args:
        path: folder of a data set, a list of its cases, or in BIDS the folder of one derivative, `derivatives/NAME`.

    Raises:
        TrainingError: it is a data set that can't be read (`dataset.*`).
    """
    root = _of_derivative(path) or path
    if not _may_be_data_set(root):
        return None
    try:
        with with_segnets():
            return _references(_found(path), path)
    except TrainingError as error:
        if error.code == "dataset.unknown":
            return None
        raise


def _of_derivative(path: Path) -> Path | None:
    """Return the data set in BIDS that a folder is a derivative of; None if it is none."""
    above = path.absolute().parent
    return above.parent if above.name == "derivatives" and path.is_dir() else None


def _found(path: Path, **reading: Any) -> Dataset:
    """Find a data set as the command that trains does, or that of a derivative."""
    from segnets.data import find_dataset

    if (root := _of_derivative(path)) and "labels_dir" not in reading:
        return find_dataset(root.resolve(), **{**reading, "layout": "bids", "labels_dir": path.absolute()})
    return find_dataset(path.resolve(), **reading)


def _may_be_data_set(path: Path) -> bool:
    """Return whether names look like a data set: a list, or a folder of lists, subjects or images, without volumes."""
    if not path.is_dir():
        return path.is_file() and path.suffix.lower() in LISTS
    with os.scandir(path) as entries:
        is_folder = {entry.name: entry.is_dir() for entry in entries}
    files = [name for name, is_one in is_folder.items() if not is_one]
    if any(nifti_ending(Path(name)) for name in files):
        return False
    return any(_DATA_FOLDER.fullmatch(name) or name.lower().endswith(LISTS) for name in is_folder)


def part_of(dataset_dir: Path, part: Part, trained: Path | None = None) -> References:
    """Return the references of a data set, of which one part is to be compared.

    Args:
        dataset_dir: folder of the data set, or its folder of label maps.
        part: the part.
        trained: a bundle that `napari-seg train` wrote; its train.yaml says how the data set is read and split, and its
            plan what the values mean. If the data set was converted for it, the label maps are the converted ones.
            None: as `napari-seg train` does by default.

    Raises:
        TrainingError: the data set can't be read (`dataset.*`) or has no such part (`split.*`).
        InputError: `input.missing`, `trained` has no plan; `evaluation.seen`, the bundle is an ensemble of folds, so
            its members were trained on all cases but those of a test part that the data set states;
            `evaluation.changed`, the data set has other cases, patients or parts than `trained` was planned for.
        OutputError: `run.outdated`, the plan of `trained` does not record them.
    """
    reading: dict[str, Any] = {}
    split: dict[str, Any] = {}
    plan: dict[str, Any] = {}
    source = dataset_dir
    if trained is not None:
        plan = _plan(trained)
        dataset_dir = data_folder(dataset_dir, trained, plan)
        members = sorted(trained.glob(f"{MEMBERS}/*"))  # all are split alike
        reading, split = _of_config(next(iter(members), trained) / "configs" / "train.yaml")
    planned, folds = plan.get("dataset", {}), plan.get("choices", {}).get("folds")
    split |= {"fold": 0, "folds": folds} if folds else {}
    with with_segnets():
        from segnets.data import Split
        from segnets.errors import TrainingError as SegnetsError

        try:
            dataset = _found(dataset_dir, **reading)
        except SegnetsError:
            if not (dataset_dir.parent / "dataset.json").is_file():
                raise
            dataset = _found(dataset_dir.parent, **reading)
        if folds and not (part == "test" and "test" in dataset.parts.values()):
            raise InputError(
                "evaluation.seen",
                f"{trained} is the ensemble of {folds} folds, and all but one of them were trained on each case of the "
                "data set; expected a data set of other patients, without --part. The scores of the cross-validation "
                "are in configs/metadata.json",
            )
        if trained is not None:
            check_recorded(plan, trained)
        if trained is not None and "converted" not in plan:
            _check_same(identity_of(dataset), [planned], trained)
        elif trained is not None and not (trained / COMPARISON).is_file():  # whose plan is of the converted data
            _check_source(source.resolve(), trained.resolve(), plan)
        cases = Split(dataset, **split)(part)
        data = _references(dataset, source)
    if trained is not None and (values := label_values(trained)):
        data = replace(data, declared=as_planned(data.declared, values))
    data = replace(data, are_converted=data.are_converted or "converted" in plan)
    return replace(data, part=frozenset(normal(case["name"]) for case in cases))


def _references(dataset: Dataset, root: Path) -> References:
    """Return the references of a data set of `segnets`, with the path that the user gave."""
    declared = Declared(
        dataset.ignored,
        {name_of_segment(name): frozenset(values) for name, values in dataset.labels.items()},
        {normal(name): frozenset(values) for name, values in dataset.labelled.items()},
    )
    cases = []
    for case in dataset.cases:
        scans = case["image"] if isinstance(case["image"], list) else [case["image"]]
        cases.append(ReferenceCase(normal(case["name"]), Path(case["label"]), tuple(map(Path, scans))))
    folders = {case.reference.parent for case in cases}
    if not (declared.classes or declared.ignored or declared.labelled) and len(folders) == 1:
        declared = read_declared(folders.pop())  # such as the dataset.json next to a list
        labelled = {case.name: declared.labelled.get(stem(case.reference)) for case in cases}
        declared = replace(declared, labelled={name: values for name, values in labelled.items() if values is not None})
    return References(root, tuple(cases), declared, are_converted=(dataset.root / RECORD).is_file())


def _check_source(source: Path, trained: Path, plan: Mapping[str, Any]) -> None:
    """Check that a data set is the one, or one of those, that were converted for a training; writes nothing.

    Args:
        source: the data set, or its folder of label maps.
        trained: the bundle.
        plan: its plan.

    Raises:
        TrainingError: it can't be read.
        InputError: `evaluation.changed`.
    """
    from segnets.errors import TrainingError as SegnetsError

    if source.is_relative_to(trained):
        return
    try:
        found = _identity(source, trained, plan)
    except (TrainingError, SegnetsError):
        if not (source.parent / "dataset.json").is_file():
            raise
        found = _identity(source.parent, trained, plan)
    data_sets = plan["converted"].get("data sets") or [plan]
    _check_same(found, [one["dataset"] for one in data_sets], trained)


def _identity(source: Path, trained: Path, plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the `identity` of a data set as it was read for a training that converted it."""
    from segnets.data import find_dataset

    made = plan["choices"]
    reading = Choices(options=tuple(made.get("options", ())), settings=made.get("settings", {})).reading
    found: list[Mapping[str, Any]] = []
    continued = Continued(lambda identity, _: found.append(identity), is_dry=True)
    if gather(source, trained / DATA, reading, continued=continued) is None:
        return identity_of(find_dataset(source, **reading))
    return found[0]


def _check_same(found: Mapping[str, Any], planned: Sequence[Mapping[str, Any]], trained: Path) -> None:
    """Check that a data set is one of those that a training was planned for.

    Args:
        found: its `identity`.
        planned: identities in the plan.
        trained: the bundle.

    Raises:
        InputError: `evaluation.changed`.
    """
    if found in planned:
        return
    counts = [one["cases"] for one in planned]
    is_other = found["cases"] not in counts
    what = f"{found['cases']} cases" if is_other else "other files, patients or parts, or another order"
    raise InputError(
        "evaluation.changed",
        f"found {what}; expected the {' or '.join(map(str, counts))} cases that {trained} was planned for, because "
        "others in this part may have been trained on; restore the data set as it was planned, or evaluate new cases "
        "in a folder of their own, without --part",
    )


def _plan(trained: Path) -> dict[str, Any]:
    if not (trained / PLAN).is_file():
        raise InputError("input.missing", f"there is no {trained / PLAN}; expected a folder that train wrote")
    plan: dict[str, Any] = json.loads((trained / PLAN).read_text(encoding="utf-8"))
    return plan


def _of_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of `find_dataset` and of `Split` in a written train.yaml."""
    import yaml

    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    reading = {name: config[name] for name in READING if config.get(name) is not None}
    split = {name: config["cases"][name] for name in _SPLIT if name in config["cases"]}
    return reading, {name: config[name] if value == f"@{name}" else value for name, value in split.items()}
