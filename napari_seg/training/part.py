"""Find the label maps of one part of a data set, as training splits it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from napari_seg.errors import InputError
from napari_seg.training.choices import Choices
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.write import PLAN


def part_of(
    dataset_dir: Path, part: Literal["training", "validation", "test"], trained: Path | None = None
) -> tuple[Path, set[str]]:
    """Return the folder of a data set's label maps, and the names of those in one part, without endings.

    Args:
        dataset_dir: folder of the data set, or its folder of label maps.
        part: the part.
        trained: a bundle that `napari-seg train` wrote; its plan says how the data set is read and whether it has
            folds. None: as `napari-seg train` does by default.

    Raises:
        TrainingError: the data set can't be read (`dataset.*`) or has no such part (`split.*`).
        InputError: `input.missing`, `trained` has no plan; `input.folders`, the label maps lie in several folders.
    """
    choices, split = Choices(), {}
    if trained is not None:
        if not (trained / PLAN).is_file():
            raise InputError("input.missing", f"there is no {trained / PLAN}; expected a folder that train wrote")
        made = json.loads((trained / PLAN).read_text(encoding="utf-8"))["choices"]
        choices = Choices(settings=made.get("settings", {}))
        split = {name: choices.settings[name] for name in ("fold", "folds") if name in choices.settings}
        split |= {"fold": 0, "folds": made["folds"]} if made.get("folds") else {}
    with with_segnets():
        from segnets.data import Split, find_dataset
        from segnets.data.pairing import stem
        from segnets.errors import TrainingError as SegnetsError

        try:
            dataset = find_dataset(dataset_dir, **choices.reading)
        except SegnetsError:
            if not (dataset_dir.parent / "dataset.json").is_file():
                raise
            dataset = find_dataset(dataset_dir.parent, **choices.reading)
        cases = Split(dataset, **split)(part)
        paths = [Path(case["label"]) for case in cases]
        folders = {path.parent for path in paths}
        if len(folders) > 1:
            raise InputError(
                "input.folders", f"the label maps lie in {len(folders)} folders; expected all of them in one"
            )
        return folders.pop(), {stem(path) for path in paths}
