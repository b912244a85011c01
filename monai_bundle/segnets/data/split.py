"""Split the cases of a data set into training, validation and test part, or into folds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segnets.data.layouts import find_dataset
from segnets.data.pairing import Case
from segnets.errors import TrainingError

Part = Literal["training", "validation", "test", "all"]

PATIENT = r"^(sub-[^_]+|(?:subj(?:ect)?|pat(?:ient)?)[-_]?\d+)"
"""Regular expression that finds the patient in usual names of cases, such as `sub-01_ses-2` or `patient001_frame01`."""

_NUMBERED = re.compile(r"(.*\d.*?)(?:[-_. ][a-z]*\d*|(?<=\d)[a-z])", re.IGNORECASE)


def datalist(
    dataset_dir: str | Path,
    part: Part,
    *,
    fold: int | None = None,
    folds: int = 5,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    patient: str | None = None,
    **layout: Any,
) -> list[Case]:
    """Return the cases of one part of a data set, as MONAI's data list.

    The split depends only on the names of the cases (or their order in dataset.json) and on the arguments, so training,
    evaluation and inference agree on it. All scans of a patient are in the same part.

    Args:
        dataset_dir: folder of the data set, in one of the layouts of `find_dataset`.
        part: "training", "validation" (chooses the best weights), "test" (never seen) or "all".
        fold: 0 to `folds` - 1: this fold is the validation part, the others are the training part, and the test part
            is empty. None: split by `fractions`.
        folds: number of folds, from 2 to the number of patients; every case is in validation in exactly one fold.
        fractions: fractions of the patients in training, validation and test. Training and validation get at least one
            patient each, unless their fraction is 0; so with fewer than 8 patients the test part is empty.
        seed: seed of the shuffle before the split.
        patient: regular expression; its match in a case's name identifies the patient. A case without a match is a
            patient of its own. None: `PATIENT`.
        layout: `layout`, `images_dir`, `labels_dir` and `channels` of `find_dataset`.

    Returns:
        `{"name", "image", "label"}` of each case; at least one.

    Raises:
        TrainingError: "split.part", "split.fold", "split.folds", "split.shares", "split.too_few", "split.empty_part";
            also the errors of `find_dataset`.
    """
    cases = find_dataset(dataset_dir, **layout).cases
    if part == "all":
        return list(cases)
    if fold is not None and folds < 2:
        raise TrainingError("split.folds", f"folds is {folds}; expected at least 2, since validation is one of them")
    patients = by_patient(cases, patient or PATIENT)
    needed = folds if fold is not None else 2
    if len(patients) < needed:
        raise TrainingError(
            "split.too_few",
            f"found {len(cases)} cases of {len(patients)} patients in {dataset_dir}; expected at least {needed} "
            "patients. If the names are grouped wrongly (all scans of sub-01 count as one patient), set patient to a "
            "pattern that matches each patient's name",
        )
    order = list(patients)
    np.random.RandomState(seed).shuffle(order)  # as MONAI's partition_dataset, which earlier versions used
    if fold is not None:
        if not 0 <= fold < folds:
            raise TrainingError("split.fold", f"fold is {fold}; expected 0 to {folds - 1} of {folds} folds")
        parts = {"training": [p for n, p in enumerate(order) if n % folds != fold], "validation": order[fold::folds]}
        parts["test"] = []
    else:
        first, second = _split_points(len(order), fractions)
        parts = {"training": order[:first], "validation": order[first:second], "test": order[second:]}
    if part not in parts:
        raise TrainingError("split.part", f"part is {part!r}; expected training, validation, test or all")
    if not parts[part]:
        advice = "add patients, or use folds, which validate every patient once"
        advice = "use the validation part, since folds have no test part" if fold is not None else advice
        raise TrainingError(
            "split.empty_part",
            f"{dataset_dir} has {len(order)} patients, {len(parts['training'])} in training, "
            f"{len(parts['validation'])} in validation and {len(parts['test'])} in test, none in {part}; {advice}",
        )
    return [case for name in parts[part] for case in patients[name]]


def by_patient(cases: Iterable[Case], patient: str = PATIENT) -> dict[str, list[Case]]:
    """Return patient -> cases, in their order; `patient` as in `datalist`."""
    patients: dict[str, list[Case]] = {}
    for case in cases:
        match = re.search(patient, case["name"], re.IGNORECASE)
        patients.setdefault(match[0] if match else case["name"], []).append(case)
    return patients


def may_share_patients(patients: Iterable[str]) -> bool:
    """Return whether some names differ only after a number that distinguishes others: rat1_a, rat1_b, rat2_a."""
    begin = [found[1] for name in patients if (found := _NUMBERED.fullmatch(name))]
    return len(set(begin)) > 1 and max(Counter(begin).values()) > 1


def _split_points(count: int, fractions: Sequence[float]) -> tuple[int, int]:
    """Return the indices among `count` patients at which training ends and at which validation ends."""
    if len(fractions) != 3 or min(fractions) < 0 or not fractions[0] > 0:
        raise TrainingError("split.shares", f"fractions are {list(fractions)}; expected three, as [0.8, 0.1, 0.1]")
    training, validation = (int(fraction / sum(fractions) * count + 0.5) for fraction in fractions[:2])
    if fractions[1] > 0:
        training, validation = min(max(training, 1), count - 1), max(validation, 1)
    return training, min(training + validation, count)
