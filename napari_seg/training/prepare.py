"""Prepare a training: check the data set, plan the training, and write the bundle."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.errors import BundleError, OutputError, TrainingError
from napari_seg.training.choices import Choices, check_folds, check_names, check_packages, check_same, identity
from napari_seg.training.run import RUN, writing
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.write import PLAN

if TYPE_CHECKING:
    from segnets.data import Dataset

    from napari_seg.training.fingerprint import Fingerprint

_UNFINISHED = f"{PLAN}.unfinished"
"""Marker of an incomplete bundle; after a kill, the next run starts it again."""
_OWN = ("segnets", "configs", "docs", "models", RUN, "LICENSE")


def plan_bundle(
    dataset_dir: Path,
    out: Path,
    choices: Choices,
    *,
    fold: int | None = None,
    dry_run: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Return the plan of the bundle in `out` (the content of plan.json); write the bundle first if it does not exist.

    All pairs of the data set are checked first. plan.json is written last: a bundle with plan.json is complete. A
    failed run leaves nothing behind; after a kill, the next run starts again.

    Args:
        dataset_dir: data set in one of the layouts of `segnets.data.find_dataset`.
        out: folder of the bundle: missing, empty, or planned before for the same data set.
        choices: choices of the user. For an existing bundle they must agree with its plan, except for settings that may
            change at each start (`changed_settings`).
        fold: the only fold to train.
        dry_run: plan, and write nothing.
        trust: allow an existing bundle to run its own code.

    Raises:
        TrainingError: the data set is not suitable for training (`dataset.*`, `data.faults`, `labels.*`,
            `split.too_few`).
        BundleError: an unknown network, option or config id; `bundle.folds`, fewer than two folds; `bundle.fold`,
            no such fold; `bundle.untrusted`, the existing bundle contains other code.
        EnvironmentFault: `environment.package`, an option needs a package that is not installed.
        OutputError: `output.exists`, `out` contains other files; `output.not_written`, `output.disk_full`.
    """
    with with_segnets(), writing(out):
        from segnets.data import Split, find_dataset

        from napari_seg.training.trust import check_code

        if (out / PLAN).is_file():
            written: dict[str, Any] = json.loads((out / PLAN).read_text(encoding="utf-8"))
            before = Choices(settings=written["choices"].get("settings", {}))
            dataset = find_dataset(dataset_dir, **before.reading | choices.reading)
            check_same(written, identity(dataset), choices, str(out))
            check_folds(written["choices"].get("folds"), fold)
            if not trust:
                check_code(out, choices)
            check_packages(written["choices"].get("options", ()))
            return written
        dataset = find_dataset(dataset_dir, **choices.reading)
        existing = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if (out.exists() and not out.is_dir()) or (existing and not {_UNFINISHED} <= existing <= {_UNFINISHED, *_OWN}):
            raise OutputError(
                "output.exists",
                f"{out} contains files that napari-seg train did not write; choose a new or empty folder",
            )
        check_folds(choices.folds, fold)
        split = {} if choices.folds is None else {"fold": 0, "folds": choices.folds}
        training = Split(dataset, **split)("training")
        trained_on = len(training) if choices.folds is None else None
        if dry_run:
            with tempfile.TemporaryDirectory() as folder:
                return _make(dataset, Path(folder), out.name, choices, trained_on)
        is_new = not out.exists()
        _clear(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / _UNFINISHED).touch()
        try:
            return _make(dataset, out, out.name, choices, trained_on)
        except BaseException:
            _clear(out)
            if is_new:
                out.rmdir()
            raise


def _clear(out: Path) -> None:
    for name in _OWN:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    (out / _UNFINISHED).unlink(missing_ok=True)


def _make(dataset: Dataset, root: Path, name: str, choices: Choices, trained_on: int | None) -> dict[str, Any]:
    import torch
    from segnets.data import ClassValues, check
    from segnets.data.file_facts import read_all

    from napari_seg.training.fingerprint import fingerprint
    from napari_seg.training.plan import make_plan
    from napari_seg.training.write import class_names, fine_tuning_rate, networks, write_bundle

    if choices.network not in (None, *networks()):
        raise BundleError(
            "bundle.network_name", f"found network {choices.network!r}; expected one of {', '.join(networks())}"
        )
    check_packages(choices.options)
    check_names([name, *choices.labels, *dataset.labels, *dataset.channels])
    classes = choices.labels or dataset.labels
    names = {str(number): label for number, label in enumerate(class_names(classes))} if classes else None
    values_of = ClassValues(dataset, names, choices.labels or None) if names else None
    facts = read_all(dataset.cases, root / RUN / "cache")
    check(dataset, values_of, allow_empty=choices.settings.get("allow_empty", False), facts=facts)
    found = fingerprint(dataset, facts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = make_plan(found, dims=choices.dims, device=device, chosen=choices.settings)
    values = {label: list(of_label) for label, of_label in _classes(found, classes).items()}
    if choices.fine_tune:
        why = "a tenth of the usual rate, so that the initial weights are not lost"
        plan.set("learning_rate", fine_tuning_rate(choices.options), why)
    write_bundle(root, name, plan, found, values, choices, trained_on)
    written = {
        "dataset": identity(dataset),
        "choices": choices.as_dict(),
        "fingerprint": found.as_dict(),
        "labels": values,
        "options": {option: plan.why[option] for option in plan.options},
        "settings": {key: {"value": value, "why": plan.why[key]} for key, value in plan.settings.items()},
    }
    (root / _UNFINISHED).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    (root / _UNFINISHED).replace(root / PLAN)
    return written


def _classes(found: Fingerprint, classes: dict[str, Any]) -> dict[str, Any]:
    if classes:
        return classes
    if not 0 < len(found.values) <= 50:
        raise TrainingError(
            "labels.unnamed",
            f"the data set has no label names, and its label maps contain {len(found.values)} values other than 0; "
            "name them, for example --labels liver=1 tumour=2,3 vessel=10-19",
        )
    return {f"label {value}": [value] for value in found.values}
