"""Combine several data sets into one: one table of classes, and cases that know which of them are annotated.

Classes are equal if their names are, regardless of upper and lower case. The combined data set is a dataset.json in the
Decathlon's layout that lists the images where they are, and label maps of its own with the values of the common table.
Each case lists in "labelled" the classes that its data set knows: background in it may be any of the others, so it
gives no gradient to them (`segnets.losses.MaskedLoss`).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_seg.errors import InputError, Notice, OutputError, TrainingError
from napari_seg.formats.atomic import atomic_file, atomic_write
from napari_seg.formats.image2d import is_image2d, read_label_image2d
from napari_seg.formats.in_worker import read_in_worker
from napari_seg.formats.nifti import write_map
from napari_seg.formats.scan import Scan
from napari_seg.training.choices import IGNORE, SOFT
from napari_seg.training.fingerprint import named_modality
from napari_seg.training.gather.classes import Source, annotated_values, is_complete, number_classes
from napari_seg.training.gather.frames import Fault
from napari_seg.training.gather.gather import (
    Continued,
    Gathered,
    gather,
    list_faults,
    refuse_unpaired,
)
from napari_seg.training.gather.pair import PassedOver, unread_files
from napari_seg.training.gather.patients import (
    CaseSource,
    as_paths,
    count_equal_names,
    folder_of,
    number_patients,
)
from napari_seg.training.gather.write import RECORD, check_no_link, make_folders
from napari_seg.training.identity import Row, identity, identity_of
from napari_seg.training.label_table import BACKGROUND
from napari_seg.training.segnets_modules import in_options
from napari_seg.volume import Volume, as_labels, labels_in, smallest_label_type

if TYPE_CHECKING:
    from segnets.data import Dataset

Part = Literal["training", "validation", "test"]
_NOT_TRAINED: tuple[Part, ...] = ("validation", "test")

_VERSION = 1
_LABELS = "labelsTr"


def combine(
    dataset_dirs: Sequence[Path],
    into: Path,
    reading: Mapping[str, Any],
    labels: Mapping[str, Sequence[Any]],
    report: Callable[[str], None] = lambda text: None,
    marker: Path | None = None,
    continued: Continued | None = None,
    replayed: int = 0,
) -> Gathered:
    """Combine data sets into one; call it within `with_segnets`.

    Each is found and, if training does not read it as it is, converted as if it were alone. Patients of different data
    sets are different, except for those of one folder or with an image in common (`number_patients`).

    Args:
        dataset_dirs: two or more data sets.
        into: folder of the combined data set; what it contains already is not written again.
        reading: keyword arguments of `find_dataset`, for each of them.
        labels: classes of the training, by the names in the data sets (`named_labels`); "ignore" holds values. Without
            names in any data set they hold the values, which must mean the same in all.
        report: function that prints a line of progress.
        marker: file to create before the first case is written.
        continued: how to continue a planned training.
        replayed: number of data sets, the last ones, whose cases are replayed (`segnets.data.EpochSampler`).

    Raises:
        TrainingError: `dataset.combined`, the data sets do not fit together; `labels.unnamed`, one does not name its
            classes; `labels.unknown`, `labels` holds a word that is no class; `labels.nowhere`, no data set has all
            names of a class; `data.faults`, label maps with unknown values; and those of `gather`.
        OutputError: the combined data set could not be written.
    """
    from segnets.data import find_dataset
    from segnets.data.patients import MAY_SHARE, may_share_patients

    if len({path.resolve() for path in dataset_dirs}) < len(dataset_dirs):
        raise TrainingError("dataset.combined", "one data set is given twice; give each of them once")
    if reading.get(SOFT):
        text = "found the option soft for several data sets, whose label maps are numbered anew; expected one data set"
        raise TrainingError("dataset.combined", text)
    check_no_link(into)
    datasets: list[Dataset] = []
    left: list[PassedOver] = []
    notices: list[Notice] = []
    unused: list[str] = []
    known: list[dict[str, Any]] = []
    origins: list[Mapping[str, CaseSource]] = []
    for number, path in enumerate(dataset_dirs, 1):
        folder = into / f"set{number}"
        check = partial(_check_set, number, continued.data_sets[number - 1]) if continued else None
        of_set = replace(continued, check=check) if continued and check else None
        converted = gather(path, folder, reading, report, marker, own=into.parent, continued=of_set)
        found = find_dataset(path, **reading) if converted is None else find_dataset(folder, "decathlon")
        datasets.append(found)
        known.append(identity_of(found) if converted is None else converted.identity)
        if converted is None:
            refuse_unpaired(found)
            if check:
                check(known[-1], ())
            folder = folder_of(path)
            listed = [(case["name"], as_paths(case["image"])) for case in found.cases]
            origins.append({name: CaseSource(folder, found.patients[name], images) for name, images in listed})
        else:
            origins.append(converted.sources)
        texts = [*(found.unused if converted is None else converted.unused)]
        texts += ["its folds are not used, because several data sets are combined"] if found.folds else []
        unused += [f"data set {number}: {text}" for text in texts]
        left += unread_files(found.unread) if converted is None else converted.passed_over
        notices += () if converted is None else converted.notices
        if found.layout != "voc" and may_share_patients(found.patients.values()):
            report(f"data set {number}: {in_options(MAY_SHARE)}")
    channels = _channels(datasets, report)
    names = {name.casefold(): name for dataset in reversed(datasets) for name in dataset.labels}
    sources, table, ignored = number_classes(datasets, labels)
    complete = {
        name: [str(source.number) for source in sources if is_complete(name, words, source.known)]
        for name, words in labels.items()
        if len(words) > 1 and name not in (IGNORE, BACKGROUND)
    }
    for name, found_in in complete.items():
        if not found_in:
            words = ", ".join(map(str, labels[name]))
            raise TrainingError(
                "labels.nowhere",
                f"no data set has all of {words}, so none annotates all of {name!r}; names of one structure in several "
                "data sets have to be equal: name it alike in each dataset.json or labels.json",
            )
    cases = _named_cases(sources)
    patients = _patients(origins, report)
    of_parts, divided = _parts(sources, patients, replayed)
    parts = {cases[case]: part for case, part in of_parts.items()}
    of_cases = {
        name: f"patient {patients[number, sources[number - 1].dataset.cases[own]['name']]}"
        for (number, own), name in cases.items()
    }
    described = tuple(
        _describe(source, of_set, source.number > len(sources) - replayed)
        for source, of_set in zip(sources, known, strict=True)
    )
    of_all = identity(Row(name, (), who, parts.get(name, "")) for name, who in of_cases.items())
    if continued:
        continued.check(of_all, described)
        if continued.is_dry:
            return Gathered(into, of_all, tuple(left), (), described)
    if marker is not None:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    make_folders(into, _LABELS)
    written, faults = _write_labels(sources, cases, into, report, keep=continued is not None)
    if faults:
        raise TrainingError("data.faults", list_faults(faults, len(cases)))
    named = {
        names.get(name, name): [value for of_value, value in table.items() if name in of_value]
        for name in dict.fromkeys(name for of_value in table for name in sorted(of_value))
    }
    for name, found_in in complete.items():
        report(f"{name} ({', '.join(map(str, labels[name]))}) is annotated in data set {', '.join(found_in)}")
    training = []
    for (number, own), name in cases.items():
        source, case = sources[number - 1], sources[number - 1].dataset.cases[own]
        entry = {"name": name, "image": _image(case["image"], source.dataset.channels, channels)}
        entry |= {"label": written[name], "patient": of_cases[name]}
        labelled = annotated_values(source, table, labels)
        if (stated := source.dataset.labelled.get(case["name"])) is not None:
            labelled &= {source.values[value] for value in stated if value in source.values}
        entry |= {"split": parts[name]} if parts else {}
        entry |= {"replay": True} if number > len(sources) - replayed else {}
        training.append(entry | ({"labelled": sorted(labelled)} if labelled < set(table.values()) else {}))
    description: dict[str, Any] = {
        "description": "several data sets, combined by napari-seg train",
        "modality": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, **named} | ({"ignore": [ignored]} if ignored is not None else {}),
        "training": training,
    }
    atomic_write(into / "dataset.json", json.dumps(description, indent=1) + "\n")
    return Gathered(into, of_all, tuple(left), tuple(dict.fromkeys(notices)), described, unused=(*unused, *divided))


def _parts(
    sources: Sequence[Source], patients: Mapping[tuple[int, str], int], replayed: int
) -> tuple[dict[tuple[int, int], Part], list[str]]:
    """Return (number of the data set, index of the case) -> its part, and notes; empty if no data set states parts.

    A data set that states none is divided as if it were alone, into the parts that others state, so that these say
    something about its classes. Replayed cases without a part train. A patient who is also in a data set that states
    parts is in the part that is stated there.

    Args:
        sources: the data sets.
        patients: (number of the data set, name of the case) -> number of the patient.
        replayed: number of data sets, the last ones, whose cases are replayed.
    """
    from segnets.data import Split

    stated = {part for source in sources for part in source.dataset.parts.values()}
    found: dict[tuple[int, int], Part] = {}
    of_patient: dict[int, Part] = {}
    notes = []
    by_fractions = []
    for source in sources if stated else ():
        if not source.dataset.parts and source.number <= len(sources) - replayed:
            by_fractions.append(source)
            continue
        for index, case in enumerate(source.dataset.cases):
            found[source.number, index] = part = source.dataset.parts.get(case["name"], "training")
            of_patient.setdefault(patients[source.number, case["name"]], part)
    for source in by_fractions:
        who = {case["name"]: patients[source.number, case["name"]] for case in source.dataset.cases}
        others = [case for case in source.dataset.cases if who[case["name"]] not in of_patient]
        named = {name: str(number) for name, number in who.items()}
        split = Split(replace(source.dataset, cases=tuple(others), patients=named))
        if len({who[case["name"]] for case in others}) > 1:
            for kind in _NOT_TRAINED:
                if kind in stated and split.count(kind):
                    of_patient |= dict.fromkeys((who[case["name"]] for case in split(kind)), kind)
        own = {
            (source.number, index): of_patient.setdefault(who[case["name"]], "training")
            for index, case in enumerate(source.dataset.cases)
        }
        counts = Counter(own.values())
        listed = f"{counts['training']} of its cases are for the training, {counts['validation']} for the validation"
        if "validation" not in stated:  # the split of all cases divides them
            listed = f"{counts['training']} of its cases are for training and validation"
        notes.append(f"data set {source.number} states no split: {listed} and {counts['test']} for the test")
        found |= own
    return found, notes


def _check_set(number: int, planned: Mapping[str, Any], found: Mapping[str, Any], _: Sequence[dict[str, Any]]) -> None:
    """Check that a data set is the one that was planned, before anything of it is converted.

    Args:
        number: its number.
        planned: its description in the plan.
        found: its `identity`.

    Raises:
        OutputError: `output.exists`.
    """
    if planned["dataset"] != found:
        raise OutputError(
            "output.exists",
            f"data set {number} has other cases, files, patients or parts than when the training was planned, or "
            "another order; give the same ones in the same order, or choose a new folder with -o",
        )


def _describe(source: Source, identity: dict[str, Any], is_replayed: bool) -> dict[str, Any]:
    """Return the identity, the number of cases, the classes, and where each value came from, for plan.json."""
    names = {name.casefold(): name for name in source.dataset.labels}
    return {
        "dataset": identity,
        "cases": len(source.dataset.cases),
        "classes": sorted(names.get(name, name) for name in source.known),
        "values": {str(value): new for value, new in sorted(source.values.items()) if value},
        **({"replayed": True} if is_replayed else {}),
    }


def _channels(datasets: Sequence[Dataset], report: Callable[[str], None]) -> tuple[str, ...]:
    """Return the names of the channels of all data sets; empty if none names them.

    Raises:
        TrainingError: `dataset.combined`, they differ, or some data sets hold 2D images and others volumes.
    """
    if len({dataset.is_2d for dataset in datasets}) > 1:
        listed = ", ".join(
            f"data set {n} {'2D images' if one.is_2d else 'volumes'}" for n, one in enumerate(datasets, 1)
        )
        raise TrainingError("dataset.combined", f"found {listed}; expected one of them in all data sets")
    known = [(n, dataset.channels) for n, dataset in enumerate(datasets, 1) if dataset.channels]
    if not known:
        return ()
    first, channels = known[0]
    for number, others in known[1:]:
        listed = f"data set {first} has {', '.join(channels)}, data set {number} {', '.join(others)}"
        same = sorted(map(str.casefold, channels)) == sorted(map(str.casefold, others))
        if len(channels) != len(others) or (len(channels) > 1 and not same) or _differ_in_modality(channels, others):
            raise TrainingError(
                "dataset.combined",
                f"the channels differ: {listed}; expected the same in all data sets; choose them with --channels, "
                "leave one data set out, or correct the names in dataset.json if they mean the same",
            )
        cases = datasets[number - 1].cases
        if tuple(map(str.casefold, others)) == tuple(map(str.casefold, channels)):
            continue
        if len(channels) == 1:
            report(f"{listed}: taken for the same channel")
        elif not all(isinstance(case["image"], list) for case in cases):
            raise TrainingError(
                "dataset.combined",
                f"the channels have another order: {listed}, in one file; expected the same order; save them again",
            )
    return channels


def _differ_in_modality(channels: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether the names of channels state different modalities."""
    first, second = named_modality(channels), named_modality(others)
    return first is not None and second is not None and first != second


def _image(image: Any, own: Sequence[str], channels: Sequence[str]) -> Any:
    """Return the files of an image as absolute paths, in the order of the channels of all data sets."""
    files = [Path(path).absolute().as_posix() for path in (image if isinstance(image, list) else [image])]
    if len(files) == len(own) == len(channels) > 1:
        order = [name.casefold() for name in own]
        files = [files[order.index(name.casefold())] for name in channels]
    return files if isinstance(image, list) else files[0]


def _named_cases(sources: Sequence[Source]) -> dict[tuple[int, int], str]:
    """Return (number of the data set, index of the case) -> name of a case, fit for files, equal only if repeated.

    A name that several data sets have gets the number of its data set.
    """
    plain = {}
    for source in sources:
        for index, case in enumerate(source.dataset.cases):
            name = unicodedata.normalize("NFC", re.sub(r"[^\w.-]+", "_", case["name"])).strip("._-") or "case"
            plain[source.number, index] = name
    in_sets = Counter(name for _, name in {(number, name.casefold()) for (number, _), name in plain.items()})
    return {
        (number, index): f"set{number}_{name}" if in_sets[name.casefold()] > 1 else name
        for (number, index), name in plain.items()
    }


def _patients(sources: Sequence[Mapping[str, CaseSource]], report: Callable[[str], None]) -> dict[tuple[int, str], int]:
    """Return (number of the data set, name of the case) -> number of the patient."""
    patients = number_patients(
        {(number, name): source for number, of_set in enumerate(sources, 1) for name, source in of_set.items()}
    )
    if count := count_equal_names(patients):
        report(
            f"{count} names of cases are in several data sets with different images: they count as different patients; "
            "if they are the same ones, combine the label maps of each case first"
        )
    return patients


def _write_labels(
    sources: Sequence[Source],
    cases: Mapping[tuple[int, int], str],
    folder: Path,
    report: Callable[[str], None],
    keep: bool,
) -> tuple[dict[str, str], list[Fault]]:
    """Write the label maps with their new values, except for those that are there already.

    Args:
        sources: the data sets.
        cases: (number of the data set, index of the case) -> name.
        folder: folder of the combined data set.
        report: function that prints a line of progress.
        keep: keep label maps that have changed as they were written.

    Returns:
        Name of a case -> its label map, relative to the folder; and the faults.

    Raises:
        OutputError: `output.not_written`, `output.disk_full`, `output.not_equal`.
    """
    record: dict[str, dict[str, str]] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        record = dict(content["label maps"]) if content["version"] == _VERSION else {}
    files: dict[str, str] = {}
    faults: list[Fault] = []
    counts = Counter(name.casefold() for name in cases.values())
    to_write: list[tuple[Source, str, Path, str]] = []
    kept: dict[str, dict[str, str]] = {}
    for (number, index), name in cases.items():
        source, case = sources[number - 1], sources[number - 1].dataset.cases[index]
        if counts[name.casefold()] > 1:
            faults.append(("name.twice", name, "several cases have this name; rename or remove the others"))
            continue
        label, key = Path(case["label"]), _key(Path(case["label"]), source.values)
        files[name] = f"{_LABELS}/{name}{'.png' if is_image2d(label) else '.nii.gz'}"
        if (record.get(name, {}).get("key") == key or (keep and name in record)) and (folder / files[name]).is_file():
            kept[name] = record[name]
        else:
            to_write.append((source, name, label, key))
    for name in record.keys() - kept.keys():
        (folder / _LABELS / Path(record[name]["file"]).name).unlink(missing_ok=True)
    if renumbered := sum(source.is_renumbered for source, *_ in to_write):
        report(f"renumbering {renumbered} label maps")
    for source, name, label, key in to_write:
        try:
            _write_label(label, folder / files[name], source)
        except InputError as error:
            faults.append((error.code, name, error.message))
            continue
        kept[name] = {"key": key, "file": files[name]}
    atomic_write(folder / RECORD, json.dumps({"version": _VERSION, "label maps": kept}, indent=1) + "\n")
    return files, faults


def _key(label: Path, values: Mapping[int, int]) -> str:
    """Return a digest of the path, size and time of a label map, and of its new values."""
    status = label.stat()
    text = f"{label.absolute()} {status.st_size} {status.st_mtime_ns} {sorted(values.items())}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _write_label(label: Path, target: Path, source: Source) -> None:
    """Write a label map with the values of the combined data set; if they are the same, as a copy.

    Raises:
        InputError: it can't be read; `label.values`, it holds values that its data set does not name.
    """
    from segnets.data.file_facts import read_facts

    if not source.is_renumbered and label.name.lower().endswith((".nii.gz", ".png")):
        _check_values(map(int, read_facts(str(label), True).get("values", ())), source)
        with atomic_file(target, target.suffix) as hidden:
            shutil.copyfile(label, hidden)
        return
    if is_image2d(label):
        volume = read_in_worker(_read_2d, [label])
    else:
        volume = Scan(label.name, "nifti", (label,)).read(one_slice=True)
    array = as_labels(volume.array[0], label.name)
    present = labels_in(array)
    _check_values(present, source)
    new = np.zeros(max(present) + 1, smallest_label_type(max(source.values.values())))
    new[present] = [source.values[value] for value in present]
    if is_image2d(label):
        with atomic_file(target, ".png") as hidden:
            Image.fromarray(np.ascontiguousarray(_pixels(new[array]))).save(hidden)
    else:
        write_map(new[array], volume.grid, target)


def _check_values(present: Iterable[int], source: Source) -> None:
    """Check that a data set names the values in one of its label maps.

    Raises:
        InputError: `label.values`.
    """
    if unknown := sorted(set(present) - source.values.keys()):
        expected = ", ".join(map(str, sorted(source.values)))
        text = f"values {', '.join(map(str, unknown[:6]))}; expected {expected}, which data set {source.number} names"
        raise InputError("label.values", f"{text}; correct them, or name them in its labels.json")


def _read_2d(files: Sequence[Path]) -> Volume:
    return read_label_image2d(files[0])


def _pixels(labels: NDArray) -> NDArray:
    """Return the pixels of a label map (I, J, 1) of a 2D image."""
    return labels[..., 0].T
