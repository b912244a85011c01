"""What an improved model takes over from the model that it begins from: network, spacing, patch and preprocessing.

The training itself is this version's: no module of the old model and no expression that only its configs hold runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from napari_seg.bundles.nnunet.as_bundle import NNUNET, TAKEN, taken
from napari_seg.bundles.nnunet.configuration import NnunetBundle
from napari_seg.bundles.spec import METADATA, WEIGHTS, Bundle
from napari_seg.bundles.totalsegmentator.part_model import PartModel, part_with
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.errors import BundleError
from napari_seg.training.choices import Choices, describe_weights
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.start import named_part, nnunet_choices, trainable
from napari_seg.training.trust import check_taken
from napari_seg.training.write import PLAN, networks, options

OTHERS = "structures of other models"
"""Key in the lineage of a model of one part of a task: names of the structures that other parts find."""

_MAX_BYTES = 1 << 24


def learning_model(bundle: Bundle, corrected: Callable[[], Collection[str]]) -> Bundle:
    """Return the model that learns: of a task of TotalSegmentator, the one that finds the corrected structures.

    Args:
        bundle: the model that is improved.
        corrected: returns the names of these structures; called for a task only.

    Raises:
        BundleError: as `check_improvable`.
        InputError: `improve.parts`, several models of the task find them.
    """
    check_improvable(bundle)
    if isinstance(bundle, TaskBundle):
        return part_with(bundle, corrected())
    found = bundle if bundle.kind == "monai" else trainable(bundle)
    assert isinstance(found, Bundle)
    return found


def others_of(bundle: Bundle) -> frozenset[str]:
    """Return the structures of a training set that are background for a model, because others of its task find them."""
    names = bundle.others if isinstance(bundle, PartModel) else lineage(bundle).get(OTHERS, ())
    return frozenset(map(str, names))


def inherited_choices(bundle: Bundle, out: Path) -> Choices:
    """Return the choices of a training that continues a model.

    Args:
        bundle: the model, from `learning_model`.
        out: folder of the new model.

    Raises:
        BundleError: as `check_improvable`; `bundle.untrusted`, its config holds foreign code.
        TrainingError: `weights.missing`.
    """
    content = check_improvable(bundle)
    if isinstance(bundle, NnunetBundle):
        return nnunet_choices(bundle, out)
    name = content["network_def"]["_target_"].removeprefix("segnets.")
    with with_segnets():
        if name not in (*networks(), NNUNET):
            raise _refusal(bundle, f"its network is segnets.{name}")
        settings = taken(content)
        check_taken(bundle.root, settings)
        known = options()
    chosen = _plan(bundle).get("choices", {})
    used = tuple(option for option in chosen.get("options", ()) if option in known)
    return Choices(
        network=None if name == "UNet" else name,
        dims=content["network_def"].get("spatial_dims"),
        size=chosen.get("size"),
        options=used,
        settings=settings,
        fine_tune=describe_weights(bundle.root / WEIGHTS, out) | named_part(bundle),
    )


def check_improvable(bundle: Bundle) -> dict[str, Any]:
    """Return the config for inference of a model that can be improved; of an ensemble, with its first network.

    A model of nnU-Net has none; then the result is empty. The config is read as data, and nothing of it runs, so that a
    person can be told before any work.

    Args:
        bundle: the model.

    Raises:
        BundleError: `improve.model`, only models whose network this program can train are improved: networks of
            `segnets` or of nnU-Net with classes that exclude each other.
    """
    import yaml

    if bundle.kind != "monai":
        if isinstance(reason := trainable(bundle), str):
            raise _refusal(bundle, f"it {reason}")
        return {}
    if bundle.coarse is not None:
        raise _refusal(bundle, "it is run where another model finds something")
    if bundle.previous is not None:
        stage = f"it needs the result of a previous stage; improve one of its networks, such as {bundle.previous.root}"
        raise _refusal(bundle, stage)
    path = bundle.root / "configs" / "inference.yaml"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too large")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if content["network_def"]["_target_"] == "segnets.Ensemble":
            content["network_def"] = content["network_def"]["network"]
        target = str(content["network_def"]["_target_"])
        if not all(content[key] for key in TAKEN):
            raise ValueError("incomplete")
    except (OSError, ValueError, TypeError, LookupError, RecursionError, yaml.YAMLError) as error:
        raise _refusal(bundle, f"it has no configs/{path.name} as napari-seg train writes it") from error
    if not target.startswith("segnets."):
        raise _refusal(bundle, f"its network is {target}")
    if content.get("regions"):
        raise _refusal(bundle, "its structures overlap, which accepted label maps can't hold")
    return dict(content)


def _refusal(bundle: Bundle, found: str) -> BundleError:
    return BundleError(
        "improve.model",
        f"model {bundle.name!r} can't be improved: {found}; expected a model of napari-seg train or nnU-Net. "
        "To begin a new one, train on the folder of accepted cases",
    )


def _plan(bundle: Bundle) -> dict[str, Any]:
    """Return the plan of a model; empty if it has none."""
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads((bundle.root / PLAN).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def lineage(bundle: Bundle) -> dict[str, Any]:
    """Return what the metadata of an improved model say about its origin; empty for another model."""
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        content = json.loads((bundle.root / METADATA).read_text(encoding="utf-8"))["napari_seg"]["improved"]
        return dict(content)
    return {}
