"""The models of a run: checked before the run, and watched while it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from napari_seg.bundles.digest import earlier_digest, model_digest, model_stamp
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.trust import check_runnable
from napari_seg.cohort.case import Case
from napari_seg.cohort.fit import check_fit
from napari_seg.cohort.rows import ModelRow
from napari_seg.errors import CohortError, NapariSegError
from napari_seg.inference.fitness import fitted_options
from napari_seg.inference.options import SegmentOptions

CODES_OF_ALL_CASES = (
    "bundle.config",
    "bundle.foreign_expression",
    "bundle.foreign_target",
    "bundle.link",
    "bundle.metadata",
    "bundle.nnunet",
    "bundle.no_postprocessing",
    "bundle.postprocessing",
    "bundle.structures",
    "bundle.task",
    "bundle.too_large",
    "bundle.torchscript",
    "bundle.trust_changed",
    "bundle.tta",
    "bundle.unknown",
    "bundle.unreadable",
    "bundle.untrusted",
    "bundle.weights",
    "bundle.weights_unsafe",
    "environment.backend",
    "environment.device",
    "environment.precision",
    "environment.template",
    "output.disk_full",
)
"""Codes of errors that every other case of the model, or of the run, would have too."""

_STAMP_SECONDS = 5.0
"""Seconds between two checks that a model is still the one that was read."""


@dataclass
class UsedModel:
    """A model of the run: its bundle, its digest, what its files look like, its scans, its number in the manifest."""

    bundle: Bundle
    digest: str
    stamp: tuple
    checked: float
    scans: int
    number: int = 0
    fault: NapariSegError | None = None

    def check(self) -> None:
        """Check now and then that the files of the model have not changed since it was read.

        Raises:
            CohortError: `cohort.changed`.
        """
        if time.monotonic() - self.checked > _STAMP_SECONDS:
            self.checked = time.monotonic()
            if model_stamp(self.bundle) != self.stamp:
                text = f"the files of {self.bundle.name!r} changed during the run; run again with --redo"
                raise CohortError("cohort.changed", text)


def ends_run(error: NapariSegError, models: int) -> bool:
    """Return whether a run of some models can't go on after an error that every case of one of them would have."""
    return models == 1 or not error.code.startswith("bundle.")


def check_models(cases: Iterable[Case], options: SegmentOptions) -> list[tuple[Bundle, int]]:
    """Return the models of the cases, each with its number of cases, after checking that it may run.

    Raises:
        BundleError: a model is untrusted or fits no scan, or has no structures or steps that the options require.
    """
    of_each: dict[int, list[Case]] = {}
    for case in cases:
        of_each.setdefault(id(case.bundle), []).append(case)
    found = []
    for its_cases in of_each.values():
        bundle = its_cases[0].bundle
        assert bundle is not None
        check_runnable(bundle)
        check_fit(bundle, its_cases)
        fitted_options(options, bundle)
        found.append((bundle, len(its_cases)))
    return found


def used_models(cases: Iterable[Case], options: SegmentOptions) -> dict[int, UsedModel]:
    """Return the models of the cases by the identity of their bundles, after `check_models`."""
    return {
        id(bundle): UsedModel(bundle, model_digest(bundle), model_stamp(bundle), time.monotonic(), count)
        for bundle, count in check_models(cases, options)
    }


def with_present_digests(models: Sequence[ModelRow], bundles: Mapping[str, Bundle]) -> list[ModelRow]:
    """Return models of a manifest; those that an earlier version of napari-seg noted have the digests of this one.

    Args:
        models: the models.
        bundles: digest -> bundle of the run.
    """
    renewed = {
        (bundle.name, earlier_digest(bundle)): digest
        for digest, bundle in bundles.items()
        if any(one.name == bundle.name and one.digest not in bundles for one in models)
    }
    return [replace(one, digest=renewed.get((one.name, one.digest), one.digest)) for one in models]
