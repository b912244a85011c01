"""A data set -> a bundle that is ready to train, trained by its own configs and MONAI's own command.

fingerprint   what the data set is like
plan          what follows from it, by stated rules
choices       what the person decides instead
make          the bundle on disk
run           its training, by MONAI's own command
process       that command in a process of its own
trust         whether a bundle that is there holds no code but ours
folds         cross-validation and the ensemble of its folds
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.bundles.modules import shipped_modules
from napari_seg.errors import BundleError, OutputError, TrainingError
from napari_seg.training.choices import Choices, anew, check_folds, check_names, check_packages, check_same, identity
from napari_seg.training.make import PLAN
from napari_seg.training.run import RUN, writing

if TYPE_CHECKING:
    from segnets.data import Dataset

    from napari_seg.training.fingerprint import Fingerprint

__all__ = ["Choices", "anew", "plan_bundle", "with_segnets"]

_UNFINISHED = f"{PLAN}.unfinished"
"""Marks a folder whose bundle is being made, so that it may be begun anew after a kill."""
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
    """The plan of a bundle in `out`, which is made if it is not there; what plan.json holds.

    Every pair of the data set is checked first. The bundle is whole once it has its plan.json, and nothing is left of
    one that failed; one that was killed is begun anew.

    Args:
        dataset_dir: in one of the layouts of `segnets.data.find_dataset`.
        out: the bundle's folder: missing, empty, or planned before for the same data set.
        choices: what the person decides; of a bundle that is there, they may only repeat what it was planned with, and
            say what each start may set `anew`.
        fold: the only one of the folds that is wanted.
        dry_run: plan, and leave nothing behind.
        trust: a bundle that is there may run code of its own.

    Raises:
        TrainingError: the data set can't be trained on (`dataset.*`, `data.faults`, `labels.*`, `split.too_few`).
        BundleError: a network, option or id that there is not; `bundle.folds`, fewer than two;
            `bundle.fold`, there is no such fold; `bundle.untrusted`, the bundle holds code of its own.
        EnvironmentFault: `environment.package`, an option needs one that is not installed.
        OutputError: `output.exists`, `out` holds something else; `output.not_written`, `output.disk_full`.
    """
    with with_segnets(), writing(out):
        from segnets.data import datalist, find_dataset

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
        held = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if (out.exists() and not out.is_dir()) or (held and not {_UNFINISHED} <= held <= {_UNFINISHED, *_OWN}):
            raise OutputError(
                "output.exists",
                f"{out} holds something that was not planned here; choose a folder that is new or empty",
            )
        check_folds(choices.folds, fold)
        split = {} if choices.folds is None else {"fold": 0, "folds": choices.folds}
        patient = choices.settings.get("patient")
        training = datalist(dataset_dir, "training", **split, patient=patient, **choices.reading)
        trained_on = len(training) if choices.folds is None else None
        if dry_run:
            with tempfile.TemporaryDirectory() as folder:
                return _make(dataset, dataset_dir, Path(folder), out.name, choices, trained_on)
        is_new = not out.exists()
        _clear(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / _UNFINISHED).touch()
        try:
            return _make(dataset, dataset_dir, out, out.name, choices, trained_on)
        except BaseException:
            _clear(out)
            if is_new:
                out.rmdir()
            raise


def _clear(out: Path) -> None:
    for name in _OWN:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    (out / _UNFINISHED).unlink(missing_ok=True)


def _make(
    dataset: Dataset, dataset_dir: Path, root: Path, name: str, choices: Choices, trained_on: int | None
) -> dict[str, Any]:
    import torch
    from segnets.data import check

    from napari_seg.training.fingerprint import fingerprint
    from napari_seg.training.make import class_names, fine_tuning_rate, networks, write_bundle
    from napari_seg.training.plan import make_plan

    if choices.network not in (None, *networks()):
        raise BundleError(
            "bundle.network_name", f"there is no network {choices.network!r}; there are {', '.join(networks())}"
        )
    check_packages(choices.options)
    check_names([name, *choices.labels, *dataset.labels, *dataset.channels])
    classes = choices.labels or dataset.labels
    names = {str(number): label for number, label in enumerate(class_names(classes))} if classes else None
    cache_dir = root / RUN / "cache"
    checking = {name: choices.settings[name] for name in ("allow_empty", "patient") if name in choices.settings}
    check(dataset_dir, names, choices.labels or None, cache_dir=cache_dir, **checking, **choices.reading)
    found = fingerprint(dataset, cache_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = make_plan(found, dims=choices.dims, device=device, chosen=choices.settings)
    values = {label: list(of_label) for label, of_label in _classes(found, classes).items()}
    if choices.fine_tune:
        why = "a tenth of the recipe's, or the weights to begin from are forgotten first"
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
            f"the data set names no labels, and its label maps hold {len(found.values)} values beside 0; say what they "
            "mean, as --labels liver=1 tumour=2,3 vessel=10-19",
        )
    return {f"label {value}": [value] for value in found.values}


@contextmanager
def with_segnets() -> Iterator[None]:
    """Where the shipped bundle's own modules can be imported; their errors leave as this package's."""
    with shipped_modules().importable():
        from segnets.errors import TrainingError as BundlesError

        try:
            yield
        except BundlesError as error:
            kind = OutputError if error.code.startswith("output.") else TrainingError
            raise kind(error.code, error.message) from error
