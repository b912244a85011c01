"""Which cases a run trains on, which choose the best weights, and which it never sees."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segnets.data.layouts import Case, find_dataset
from segnets.errors import TrainingError

Part = Literal["training", "validation", "test", "all"]

PATIENT = r"^(sub-[^_]+|(?:subj(?:ect)?|pat(?:ient)?)[-_]?\d+)"

_NUMBERED = re.compile(r"(.*\d.*?)(?:[-_. ][a-z]*\d*|(?<=\d)[a-z])", re.IGNORECASE)


def datalist(
    dataset_dir: str | Path,
    part: Part,
    *,
    fold: int | None = None,
    folds: int = 5,
    shares: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    patient: str | None = None,
    **layout: Any,
) -> list[Case]:
    """The cases of one part of a data set, as MONAI's data list.

    The split depends on the cases' names (on their order in dataset.json, if they are listed there) and the arguments
    alone, so that training, evaluation and inference agree on it. The scans of one patient are always in one part.

    Args:
        dataset_dir: in one of the layouts of `find_dataset`.
        part: "training", "validation" (chooses the best weights), "test" (never seen) or "all".
        fold: 0 to `folds` - 1: that fold is validation, the others are training, and there is no test part.
        folds: number of folds, 2 to the number of patients; over them, every case is in validation once.
        shares: of the patients, in training, validation and test, if no fold is given. Training and validation get
            at least one patient each, unless their share is 0; so fewer than 8 patients leave none for the test.
        seed: of the shuffle before the split.
        patient: regular expression; what it finds in a case's name says whose scan it is. Names without it, and by
            default all that are not like `sub-01_ses-2` or `patient001_frame01`, are a patient each.
        layout: `layout`, `images_dir`, `labels_dir` and `channels`, as of `find_dataset`.

    Returns:
        `{"name", "image", "label"}` a case; at least one.

    Raises:
        TrainingError: "split.part", "split.fold", "split.folds", "split.shares", "split.too_few", "split.empty_part",
            and those of `find_dataset`.
    """
    cases = find_dataset(dataset_dir, **layout).cases
    if part == "all":
        return list(cases)
    if fold is not None and folds < 2:
        raise TrainingError("split.folds", f"folds is {folds}; expected 2 at least, as validation is one of them")
    patients = by_patient(cases, patient or PATIENT)
    needed = folds if fold is not None else 2
    if len(patients) < needed:
        raise TrainingError(
            "split.too_few",
            f"{len(cases)} cases of {len(patients)} patients in {dataset_dir}; at least {needed} patients are needed. "
            "If the names mislead (scans of sub-01 are one patient's), set patient to a pattern that tells them apart",
        )
    order = list(patients)
    np.random.RandomState(seed).shuffle(order)  # as MONAI's partition_dataset: splits of earlier versions stay
    if fold is not None:
        if not 0 <= fold < folds:
            raise TrainingError("split.fold", f"fold is {fold}; expected 0 to {folds - 1} of {folds} folds")
        parts = {"training": [p for n, p in enumerate(order) if n % folds != fold], "validation": order[fold::folds]}
        parts["test"] = []
    else:
        first, second = _bounds(len(order), shares)
        parts = {"training": order[:first], "validation": order[first:second], "test": order[second:]}
    if part not in parts:
        raise TrainingError("split.part", f"part is {part!r}; expected training, validation, test or all")
    if not parts[part]:
        advice = "more patients, or folds, which validate every patient once"
        advice = "validation, for folds have no other part" if fold is not None else advice
        raise TrainingError(
            "split.empty_part",
            f"{dataset_dir} has {len(order)} patients, {len(parts['training'])} in training, "
            f"{len(parts['validation'])} in validation and {len(parts['test'])} in test, none in {part}; take {advice}",
        )
    return [case for name in parts[part] for case in patients[name]]


def by_patient(cases: Iterable[Case], patient: str = PATIENT) -> dict[str, list[Case]]:
    """Patient -> cases, in their order; `patient` as of `datalist`."""
    patients: dict[str, list[Case]] = {}
    for case in cases:
        whose = re.search(patient, case["name"], re.IGNORECASE)
        patients.setdefault(whose[0] if whose else case["name"], []).append(case)
    return patients


def may_share_patients(patients: Iterable[str]) -> bool:
    """Whether some differ only in what stands last, after a number that tells others apart: rat1_a, rat1_b, rat2_a."""
    begin = [found[1] for name in patients if (found := _NUMBERED.fullmatch(name))]
    return len(set(begin)) > 1 and max(Counter(begin).values()) > 1


def _bounds(count: int, shares: Sequence[float]) -> tuple[int, int]:
    """Where training ends and where validation ends among `count` patients."""
    if len(shares) != 3 or min(shares) < 0 or not shares[0] > 0:
        raise TrainingError("split.shares", f"shares are {list(shares)}; expected three, as [0.8, 0.1, 0.1]")
    training, validation = (int(share / sum(shares) * count + 0.5) for share in shares[:2])
    if shares[1] > 0:
        training, validation = min(max(training, 1), count - 1), max(validation, 1)
    return training, min(training + validation, count)
