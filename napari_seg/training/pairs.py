"""Score pairs of configurations, whose probabilities are averaged, on the validation cases of their folds.

As in nnU-Net (Isensee et al. 2021, Nature Methods 18:203) an ensemble of two configurations can be better than each of
them. Each case is segmented once by each configuration, by the network of the fold that did not train it, and every
pair is decided on the image's grid as `predict` decides it. So only the probabilities of one case are kept, and each
case is written before the next one begins.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from napari_seg.bundles.spec import PREVIOUS, WEIGHTS
from napari_seg.errors import counted
from napari_seg.formats.atomic import atomic_write
from napari_seg.training.choices import digest
from napari_seg.training.comparison import name_of_pair
from napari_seg.training.held_out import HeldOut
from napari_seg.training.history import RUN, read_case_scores, read_lines
from napari_seg.training.postprocessing import METRIC, LargestGain, measure_gains, with_kept
from napari_seg.training.run import weights_of
from napari_seg.training.scores import CASES, Cases, read_scores
from napari_seg.training.segnets_modules import with_segnets


@dataclass(frozen=True)
class Pair:
    """Scores of two configurations together.

    Attributes:
        members: names of the configurations.
        cases: scores of all cases, with the largest components that are kept.
        gains: gains by the largest components.
    """

    members: tuple[str, str]
    cases: Cases
    gains: Sequence[LargestGain]

    @property
    def name(self) -> str:
        """Name of the pair, such as "2d+3d"."""
        return name_of_pair(self.members)


def score_pairs(
    out: Path,
    data: Path,
    folders: Mapping[str, Path],
    folds: int,
    report: Callable[[str], None],
    stop_file: Path,
    values_of: Mapping[str, Mapping[str, Any]],
) -> tuple[list[Pair], dict[str, float]]:
    """Score all pairs of configurations; cases that were scored before are read.

    Args:
        out: folder of the comparison.
        data: folder of the data set.
        folders: configuration -> folder of its bundle, whose folds are finished.
        folds: number of folds.
        report: function that prints a line of progress.
        stop_file: file that stops the work.
        values_of: configuration -> values of this start for the evaluation of its folds, see `window_values`.

    Returns:
        The pairs; and configuration -> median seconds of a network for a case.

    Raises:
        Cancelled: the file appeared; scored cases are kept.
        EnvironmentFault: `environment.memory`, a case does not fit in memory.
    """
    pairs = list(combinations(folders, 2))
    found, seconds = [], dict[str, list[float]]()
    for fold in range(folds):
        _score_fold(out, data, folders, fold, folds, report, stop_file, values_of)
    for pair in pairs:
        of_folds = [_folder(out, pair, fold) for fold in range(folds)]
        gains = measure_gains(of_folds)
        found.append(Pair(pair, {case: one for of in of_folds for case, one in with_kept(of, gains).items()}, gains))
        for of_case in (one for of in of_folds for one in read_case_scores(of, CASES, "seconds").values()):
            for name, value in of_case.items():
                seconds.setdefault(name, []).append(value)
    return found, {name: median(values) for name, values in seconds.items()}


def _folder(out: Path, pair: Sequence[str], fold: int) -> Path:
    return out / RUN / name_of_pair(pair) / f"fold_{fold}"


def _score_fold(
    out: Path,
    data: Path,
    folders: Mapping[str, Path],
    fold: int,
    folds: int,
    report: Callable[[str], None],
    stop_file: Path,
    values_of: Mapping[str, Mapping[str, Any]],
) -> None:
    """Score the pairs on the validation cases of a fold, as far as they are not scored with its present weights."""
    weights = {name: _weights(folder, fold) for name, folder in folders.items()}
    of_pairs = {pair: {name: weights[name] for name in pair} for pair in combinations(folders, 2)}
    known: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for pair, of_pair in of_pairs.items():
        lines = read_lines(_folder(out, pair, fold) / CASES)
        known[pair] = {line["case"]: line for line in lines if line.get("weights") == of_pair}
    cases = read_scores(next(iter(folders.values())) / f"fold_{fold}")
    missing = [case for case in cases if not all(case in scored for scored in known.values())]
    if not missing:
        return
    report(f"pairs of configurations on fold {fold} of {folds}: {counted(len(missing), 'case')}")
    with with_segnets():
        scorer = _Scorer(data, folders, fold, folds, stop_file, values_of)
        for case in missing:
            scores, seconds = scorer.score(case)
            for pair, scored in known.items():
                cost = {name: seconds[name] for name in pair}
                scored[case] = {"case": case, **scores[pair], "seconds": cost, "weights": of_pairs[pair]}
                path = _folder(out, pair, fold) / CASES
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, "".join(json.dumps(line) + "\n" for line in scored.values()))


def _weights(folder: Path, fold: int) -> str:
    """Return the digest of the weights of a fold, and of those of the first stage of a cascade."""
    own = digest(weights_of(folder / f"fold_{fold}") or folder)
    first = folder / PREVIOUS / WEIGHTS
    return f"{own} {digest(first)}" if first.is_file() else own


class _Scorer(HeldOut):
    """Scores pairs on the validation cases of a fold; used within `with_segnets`.

    The cases are read and compared by the configs of the first configuration, as its evaluation does it.
    """

    def __init__(
        self,
        data: Path,
        folders: Mapping[str, Path],
        fold: int,
        folds: int,
        stop_file: Path,
        values_of: Mapping[str, Mapping[str, Any]],
    ) -> None:
        from segnets.metrics import Dice

        super().__init__(data, folders, fold, folds, stop_file, values_of, largest=[], compare_largest=True)
        self.as_labels = self.parser.get_parsed_content("postprocessing")
        names = self.parser.get_parsed_content("class_values").classes
        self.names = [names[number] for number in sorted(names, key=int) if int(number)]
        self.dice = Dice(len(self.names))

    def score(self, case: str) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, float]]:
        """Return pair -> scores of a case, and configuration -> seconds of its network."""
        from napari_seg.inference.decide.average import ProbabilityAverage
        from napari_seg.inference.ensemble import add_probabilities

        data, volume = self.read(case)
        averages: dict[str, ProbabilityAverage] = {}
        scores: dict[tuple[str, str], dict[str, Any]] = {}
        seconds: dict[str, float] = {}
        with ExitStack() as stack:
            for name, bundle in self.bundles.items():
                settings, begin = self.settings(name, case, volume), time.perf_counter()
                average = ProbabilityAverage(
                    volume.grid, (0, 0, 0), volume.grid.shape, bundle.out_channels, bundle.output, self.budget
                )
                stack.enter_context(average)
                labels: Any = np.zeros(volume.grid.shape, np.uint8 if bundle.out_channels <= 256 else np.int16)
                add_probabilities(volume, settings, average, labels, self.on_step)
                seconds[name] = round(time.perf_counter() - begin, 4)
                for other, earlier in averages.items():
                    labels.fill(0)
                    average.decide(labels, {n: n for n in range(1, bundle.out_channels)}, None, earlier)
                    scores[other, name] = self._compared(labels, data)
                averages[name] = average
        return scores, seconds

    def _compared(self, labels: np.ndarray, data: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
        """Return the Dice of a label map as it is, and with the largest component of each structure alone."""
        import torch

        found = self.as_labels({**data, "pred": torch.from_numpy(labels.copy())[None]})
        each = {"mean_dice": found["pred"], METRIC: found["pred_largest"]}
        values = {key: self.dice.of_case(one, found["label"].as_tensor()).tolist() for key, one in each.items()}
        plain = {
            key: [round(one, 6) if math.isfinite(one) else None for one in of_key] for key, of_key in values.items()
        }
        return {key: dict(zip(self.names, of_key, strict=True)) for key, of_key in plain.items()}
