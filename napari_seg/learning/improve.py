"""Improve a model with accepted cases: fine-tune a copy of it, compare both, and offer the better one.

The old model stays as it is, and nothing is put in its place. A killed improvement goes on where it was: its cases are
those of its round, and its training resumes from the last checkpoint.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from napari_seg.bundles.digest import has_digest, model_digest
from napari_seg.bundles.places import store_root
from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.bundles.spec import METADATA, Bundle
from napari_seg.bundles.totalsegmentator.table import title_of
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.bundles.trust import remember
from napari_seg.errors import BundleError, Cancelled
from napari_seg.formats.atomic import atomic_write
from napari_seg.learning.compare import MEAN, ComparedStructure, Scores, compared, evaluate
from napari_seg.learning.inherit import OTHERS, inherited_choices, learning_model, lineage, others_of
from napari_seg.learning.parentage import (
    check_classes,
    check_replayed_classes,
    copy_documents,
    inherited_metadata,
    read_metadata,
)
from napari_seg.learning.rounds import (
    accepted_since,
    check_replayed,
    close_round,
    content_of_round,
    corrected_of,
    left_out_of,
    open_round,
    reserved,
)
from napari_seg.learning.training_set import TrainingSet
from napari_seg.progress import Progress, ignore_progress
from napari_seg.training.history import RUN, ended_since, read_state
from napari_seg.training.prepare import data_folder, plan_bundle
from napari_seg.training.process import run
from napari_seg.training.report import write_report
from napari_seg.training.run import STOP, ship, training_command, writing
from napari_seg.training.write import PLAN, fine_tuning_rate

COMPARISON = Path(RUN, "improvement.jsonl")
"""File in the folder of an improved model that holds the comparison, in one line; it is no part of the model."""

LAST = "model_final.pt"
"""Weights of the last step: no validation case chooses among weights, so that the comparison is fair."""

_SETTINGS: dict[str, Any] = {"val_cases": 4, "warmup_share": 0.1, "allow_empty": True}
"""A few validation cases show the course of the training; a person may have removed all that a model found."""

_RATE = 3.5
"""Learning rate, in units of that of `--fine-tune`, a tenth of the usual one: a budget of minutes has few steps."""

_ROUND = re.compile(r"[-_ ]round[-_ ]?\d+$")


@dataclass(frozen=True)
class Improvement:
    """Result of an improvement: an offer.

    Attributes:
        output: folder of the new model.
        parent: name of the old model.
        round: number of improvements from the first model on.
        cases: number of accepted cases that trained the new model.
        rows: a row for each structure, and last their mean.
        minutes: minutes of training, summed over all starts.
        left_out: name of an accepted case that could not be used -> reason.
    """

    output: Path
    parent: str
    round: int
    cases: int
    rows: tuple[ComparedStructure, ...]
    minutes: float
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_better(self) -> bool:
        """Return whether the new model has the higher mean Dice on the validation part."""
        mean = next((row for row in self.rows if row.structure == MEAN), None)
        return mean is not None and mean.difference > 0

    @property
    def is_clear(self) -> bool:
        """Return whether the interval of the difference of the means excludes 0; False without an interval."""
        mean = next((row for row in self.rows if row.structure == MEAN), None)
        return mean is not None and (mean.low > 0 or mean.high < 0)

    @property
    def has_few_patients(self) -> bool:
        """Return whether the validation cases are of too few patients to tell a difference from chance."""
        mean = next((row for row in self.rows if row.structure == MEAN), None)
        return mean is None or math.isnan(mean.low)


def next_output(bundle: Bundle) -> Path:
    """Return a free folder for an improved model: beside the old one, or in the store.

    In the store are those of the shipped model and of models of other programs.
    """
    return next(out for out in _outputs(bundle) if not out.exists())


def begun_output(bundle: Bundle) -> Path | None:
    """Return the folder of a model that was begun to improve another one and is not compared yet; None without one.

    Args:
        bundle: the old model.
    """
    for out in takewhile(Path.exists, _outputs(bundle)):
        with suppress(BundleError):
            parent = {} if (out / COMPARISON).exists() else lineage(read_bundle(out)).get("parent", {})
            if isinstance(parent, dict) and has_digest(bundle, str(parent.get("digest"))):
                return out
    return None


def is_begun(out: Path) -> bool:
    """Return whether a folder holds the plan of a fine-tuning, which `improve` continues, and no comparison yet."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        plan = json.loads((out / PLAN).read_bytes())
        return bool(plan["choices"].get("fine_tune")) and not (out / COMPARISON).exists()
    return False


def _outputs(bundle: Bundle) -> Iterator[Path]:
    """Yield the folders of the next models, taken or free, in their order."""
    place, name = bundle.root.resolve().parent, bundle.root.name
    if bundle.root.resolve() == shipped_root().resolve():
        place, name = store_root(), "hippocampus"
    elif bundle.kind != "monai":  # the folders of other programs stay as they are
        title = title_of(bundle.task) if isinstance(bundle, TaskBundle) else bundle.name
        place, name = store_root(), re.sub(r"\W+", "_", title).strip("_")
    name = _ROUND.sub("", name) or "model"
    for number in count(int(lineage(bundle).get("round", 0)) + 1):
        yield place / f"{name}_round{number}"


def improve(
    folder: Path,
    model: Bundle | str | Path,
    out: Path,
    *,
    max_minutes: float,
    replay: Sequence[Path] = (),
    settings: dict[str, Any] | None = None,
    trust: bool = False,
    report: Callable[[str], None] = lambda text: None,
    progress: Progress = ignore_progress,
) -> Improvement:
    """Fine-tune a copy of a model on the training part of a training set, and compare both on its validation part.

    Call it again with the same folders to go on after a stop. It blocks for the time of the training, which runs in a
    process of its own; a file `stop` in `out` makes that save and end.

    Args:
        folder: training set of accepted cases.
        model: the old model; one that `inherited_choices` accepts.
        out: folder of the new model: missing, empty, or begun before.
        max_minutes: minutes of training, summed over all starts; the comparison comes on top.
        replay: data sets of the earlier training, mixed in so that it is not forgotten.
        settings: config id -> value that overrides this function's.
        trust: let the old model run code of its own in the comparison.
        report: function that prints a line of progress.
        progress: called while scans are located and both models are compared.

    Raises:
        InputError: `accept.not_a_set`, `improve.too_few`, `improve.channels`; `improve.seen`, validation cases are
            among the replayed ones; `improve.classes`, the replayed data sets have other classes than a model in
            boxes. Accepted cases that can't be read are left out.
        BundleError: `improve.model`, `bundle.untrusted`, and as for `plan_bundle`.
        TrainingError, OutputError: as for `reserved`, `plan_bundle` and `train`.
        Cancelled: it was interrupted; the message says whether it saved.
    """
    given = read_bundle(model, trust=True) if trust else read_bundle(model)
    out = out.resolve()
    bundle = learning_model(given, lambda: corrected_of(folder, out))
    chosen = inherited_choices(bundle, out)
    rate = {"learning_rate": _RATE * fine_tuning_rate(chosen.options)}
    choices = replace(chosen, settings=chosen.settings | _SETTINGS | rate | (settings or {}))
    check_replayed_classes(bundle, replay)
    with reserved(folder, out):
        listed = open_round(folder, bundle, out, report, progress)
        try:
            content = content_of_round(listed)
            if newer := accepted_since(folder, listed):
                text = f"{newer} cases were accepted since this round began and are left out"
                report(f"{text}; to learn from them too, choose another folder for the new model")
            report(f"comparing on {len(content.part_of('validation'))} validation cases: the old model")
            before = evaluate(folder, content, bundle, progress)
            limits = {"max_minutes": max_minutes}
            plan = plan_bundle(listed, out, choices, replay=replay, trust=trust, limits=limits, report=report)
            check_classes(bundle, plan["labels"])
            data = data_folder(listed, out, plan)
            if replay:
                check_replayed(folder, content_of_round(listed, with_left_out=True), data)
            origin = _describe(out, given, bundle, content, len(replay))
        except BaseException:
            if not (out / PLAN).is_file():  # a planned training goes on with this list
                close_round(listed)
            raise
        kind = "cases" if bundle.localiser is None else "crops"
        start = f"fine-tuning {model} " if (model := plan["choices"]["fine_tune"].get("model")) else "fine-tuning "
        report(f"{start}on {plan['parts']['training']} {kind} for up to {max_minutes:g} minutes")
        with writing(out):
            _train(out, data, plan, max_minutes)
            report("comparing: the new model")
            new = read_bundle(out, trust=True)  # what was trained here runs this version's code only
            after = evaluate(folder, content, new, progress)
            patients = {case.name: case.patient for case in content.cases}
            rows = tuple(compared(before, after, patients))
            left_out = left_out_of(listed)
            result = Improvement(out, given.name, origin["round"], origin["cases"], rows, _minutes(out), left_out)
            _write(result, before, after)
            with suppress(OSError, BundleError):  # then its next use asks for consent
                remember(new)
        return result


def _train(out: Path, dataset: Path, plan: dict[str, Any], max_minutes: float) -> None:
    """Train, or go on; the weights of the last step become those of the bundle."""
    start = time.time()
    command = training_command(out, dataset, fine_tune=plan["choices"]["fine_tune"], max_minutes=max_minutes)
    try:
        run(command, out / STOP, out / RUN)
    except Cancelled:
        ended = ended_since(out / RUN, start)
        if ended is None or not ended.is_finished:
            raise
    finally:
        write_report(out)
    ship(out, out / RUN / LAST, {})


def _describe(out: Path, given: Bundle, bundle: Bundle, content: TrainingSet, replayed: int) -> dict[str, Any]:
    """Write into the metadata of a planned model where it comes from, and return that.

    Args:
        out: folder of the planned model.
        given: the model that is improved.
        bundle: the one that learns, which may be a part of it.
        content: training set.
        replayed: number of replayed data sets.
    """
    earlier = lineage(bundle)
    origin: dict[str, Any] = {
        "parent": {"name": given.name, "version": given.version, "digest": model_digest(given)},
        "round": int(earlier.get("round", 0)) + 1,
        "cases": len(content.part_of("training")),
        "validation cases": len(content.part_of("validation")),
        "replayed data sets": replayed,
        "earlier": [*earlier.get("earlier", ()), *([earlier["parent"]] if "parent" in earlier else [])],
    }
    if others := others_of(bundle):
        origin[OTHERS] = sorted(others)
    metadata = read_metadata(out)
    ours: dict[str, Any] = metadata.get("napari_seg", {})
    if ours.get("improved") != origin:
        metadata["version"] = f"0.{origin['round'] + 1}.0"
        old = f"{given.name} {given.version}".rstrip()
        text = f"round {origin['round']}: {old} fine-tuned on {origin['cases']} accepted cases"
        metadata["changelog"] = {metadata["version"]: text}
        metadata |= inherited_metadata(bundle)
        metadata["napari_seg"] = {**ours, **metadata.get("napari_seg", {}), "improved": origin}
        with writing(out):
            copy_documents(bundle, out)
            atomic_write(out / METADATA, json.dumps(metadata, indent=4) + "\n")
    return origin


def _minutes(out: Path) -> float:
    progress = read_state(out / RUN).progress
    return 0.0 if progress is None else round(progress.seconds / 60, 2)


def _write(result: Improvement, before: Scores, after: Scores) -> None:
    """Write the comparison beside the new model."""
    rows = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(row).items()}
        for row in result.rows
    ]
    content = {"round": result.round, "parent": result.parent, "cases": result.cases, "minutes": result.minutes}
    content["left_out"] = dict(result.left_out)
    scores = {"before": _plain(before), "after": _plain(after)}
    atomic_write(result.output / COMPARISON, json.dumps({**content, "rows": rows, "scores": scores}) + "\n")


def _plain(scores: Scores) -> dict[str, dict[str, float | None]]:
    return {c: {n: None if math.isnan(v) else round(v, 4) for n, v in one.items()} for c, one in scores.items()}


def read_improvement(out: Path) -> Improvement | None:
    """Return the comparison of an improved model; None if there is none."""
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        content = json.loads((out / COMPARISON).read_bytes())
        rows = tuple(
            ComparedStructure(**{key: _number(value) for key, value in row.items()}) for row in content["rows"]
        )
        left_out = dict(content.get("left_out", {}))
        return Improvement(
            out, content["parent"], content["round"], content["cases"], rows, content["minutes"], left_out
        )
    return None


def _number(value: Any) -> Any:
    return math.nan if value is None else value
