"""Choose the postprocessing of an ensemble on its folds: the largest connected component of a structure.

As in nnU-Net (Isensee et al. 2021, Nature Methods 18:203), a structure keeps only its largest component if that helps
in the cross-validation; here it must also make no fold worse. A structure of two islands, such as both kidneys, loses
by it and stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from napari_seg.training.scores import Cases, read_scores

METRIC = "dice_of_largest"
"""Name of the Dice with the largest component of each structure in the evaluation of a fold."""
OPTION = "compare_largest"
"""Option of the evaluation that measures it."""
STEP = "monai.transforms.KeepLargestConnectedComponentd"


@dataclass(frozen=True)
class LargestGain:
    """Gain by keeping only the largest connected component of a structure.

    Attributes:
        structure: its name.
        gain: mean gain in Dice over the cases of all folds; 0 without a case.
        folds: mean gain of each fold.
    """

    structure: str
    gain: float
    folds: tuple[float, ...]

    @property
    def is_kept(self) -> bool:
        """Return whether it helps, and makes no fold worse."""
        return self.gain > 0 and min(self.folds) >= 0

    def describe(self) -> str:
        """Return the gain and the decision in words."""
        worse = sum(gain < 0 for gain in self.folds)
        reason = "" if self.is_kept else f", worse on {worse} of {len(self.folds)} folds"
        decision = "kept" if self.is_kept else "not kept"
        return f"{self.structure}: largest component alone {decision}: Dice {self.gain:+.4f}{reason}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the metadata."""
        return {"structure": self.structure, "gain": round(self.gain, 4), "kept": self.is_kept}


def measure_gains(folders: Sequence[Path]) -> list[LargestGain]:
    """Return the gain for each structure that some result has in several components.

    Args:
        folders: folders of the folds, which are evaluated; if an older version has evaluated one, there are no gains.
    """
    compared = [(read_scores(folder), read_scores(folder, METRIC)) for folder in folders]
    if not all(any(largest.values()) for _, largest in compared):
        return []
    names = dict.fromkeys(name for plain, _ in compared for scores in plain.values() for name in scores)
    found = []
    for name in names:
        of_folds = [_differences(plain, largest, name) for plain, largest in compared]
        every = [value for values in of_folds for value in values]
        if any(every):
            found.append(LargestGain(name, mean(every), tuple(mean(values) if values else 0.0 for values in of_folds)))
    return found


def _differences(plain: Cases, largest: Cases, name: str) -> list[float]:
    pairs = [(scores.get(name, math.nan), largest.get(case, {}).get(name, math.nan)) for case, scores in plain.items()]
    return [after - before for before, after in pairs if math.isfinite(after - before)]


def with_kept(folder: Path, gains: Sequence[LargestGain]) -> dict[str, dict[str, float]]:
    """Return the scores of a fold with the largest components that are kept."""
    largest, kept = read_scores(folder, METRIC), {gain.structure for gain in gains if gain.is_kept}
    return {
        case: {name: largest[case][name] if name in kept else dice for name, dice in scores.items()}
        for case, scores in read_scores(folder).items()
    }


def set_largest(config: dict[str, Any], numbers: Sequence[int]) -> None:
    """Keep the largest component of some classes alone, and of no others, in a written evaluate.yaml or inference.yaml.

    Args:
        config: content of the file, which is changed.
        numbers: numbers of the classes.
    """
    if "largest" in config:  # evaluate.yaml
        config["largest"] = list(numbers)
        return
    steps = [step for step in config["postprocessing"]["transforms"] if not _is_step(step)]
    if numbers:
        step = {"_target_": STEP, "keys": "pred", "applied_labels": list(numbers)}
        steps.insert(steps.index("@decision") + 1, step)
    config["postprocessing"]["transforms"] = steps


def _is_step(step: Any) -> bool:
    return isinstance(step, dict) and step.get("_target_") == STEP
