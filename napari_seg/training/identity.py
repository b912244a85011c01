"""Know the cases of a planned training again: a digest of what decides how they are named, paired and split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from napari_seg.errors import OutputError

if TYPE_CHECKING:
    from segnets.data import Dataset


class Row(NamedTuple):
    """What a plan records of a case; its files may change, which a run with checkpoints finds by their voxels.

    Attributes:
        name: name of the case.
        files: paths of its images and label maps below the data set.
        patient: its patient; only which cases have the same one is recorded.
        part: "training", "validation" or "test", if the data set states it; else "".
        fold: fold of a cross-validation, if the data set states it.
        labelled: values that are annotated in the case, if the data set declares it.
    """

    name: str
    files: tuple[str, ...]
    patient: str
    part: str = ""
    fold: int | None = None
    labelled: tuple[int, ...] | None = None


def identity(rows: Iterable[Row]) -> dict[str, Any]:
    """Return {"cases", "rows"}: the number of rows, and a digest of them in their order, which the split depends on."""
    first: dict[str, int] = {}
    content = [
        (name, files, first.setdefault(patient, number), *stated)
        for number, (name, files, patient, *stated) in enumerate(rows)
    ]
    return {"cases": len(content), "rows": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}


def identity_of(dataset: Dataset) -> dict[str, Any]:
    """Return the `identity` of a data set that is read as it is."""
    return identity(
        Row(
            name := case["name"],
            files,
            dataset.patients[name],
            dataset.parts.get(name, ""),
            dataset.folds.get(name),
            dataset.labelled.get(name),
        )
        for case, files in zip(dataset.cases, dataset.places, strict=True)
    )


def check_recorded(plan: Mapping[str, Any], where: Path) -> None:
    """Check that a plan records the rows of its data set.

    Args:
        plan: content of plan.json or comparison.json.
        where: its folder.

    Raises:
        OutputError: `run.outdated`.
    """
    if "rows" not in plan.get("dataset", {}):
        raise OutputError(
            "run.outdated",
            f"{where} was planned by a version that did not record the files and patients of its cases, so that they "
            "can't be compared; expected a plan of this version; continue with the version that planned it, or train "
            "again in a new folder with -o",
        )
