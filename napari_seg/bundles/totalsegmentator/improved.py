"""A task of TotalSegmentator with an improved model in the place of the one that it was made from.

The improved model is a bundle of `napari-seg train` with the network and the preprocessing of the old one. In the task
its weights alone count: it sees the task's image and is run in nnU-Net's way, so that before its first step of training
it gives the labels of the old model.
"""

from __future__ import annotations

from dataclasses import replace

from napari_seg.bundles.config.read import inference_config, read_config
from napari_seg.bundles.nnunet.as_bundle import TAKEN, bundle_config
from napari_seg.bundles.spec import WEIGHTS, Bundle
from napari_seg.bundles.totalsegmentator.part_model import PartModel, part_model
from napari_seg.bundles.totalsegmentator.table import described, model_name, title_of
from napari_seg.bundles.totalsegmentator.task import ImprovedPart, TaskBundle
from napari_seg.errors import BundleError, listed, one_line


def with_improved(task: TaskBundle, bundle: Bundle) -> TaskBundle:
    """Return a task with an improved model in the place of the one that it was made from; nothing of it runs.

    Structures, labels and colours stay those of the task.

    Args:
        task: the task, in which other models may have been replaced before.
        bundle: the improved model.

    Raises:
        BundleError: `bundle.part`, it was made from no model of the task, from one that another improved model stands
            for, or it finds other structures or sees other images than that one.
    """
    made_from = bundle.part_of and bundle.part_of.part
    number = next((n for n, part in enumerate(task.task.parts) if model_name(part) == made_from), None)
    if number is None:
        raise _refusal(task, bundle, f"was made from {made_from or 'no model of TotalSegmentator'}")
    part, model = task.task.parts[number], task.parts[number]
    if isinstance(model, ImprovedPart):
        raise _refusal(task, bundle, f"was made from the same model of the task as {model.bundle.name!r}")
    old = part_model(task.task, part, model)
    if reason := _why_not(bundle, old):
        raise _refusal(task, bundle, reason)
    label_of, old_label = dict(part.labels), {one.name.casefold(): one.label for one in old.segments}
    pairs = ((one.label, old_label[one.name.casefold()]) for one in bundle.network_segments)
    labels = tuple((label, label_of[own]) for label, own in pairs if own in label_of)
    improved = ImprovedPart(
        root=bundle.root,
        name=bundle.name,
        version=bundle.version,
        description=bundle.description,
        modality=model.modality,
        in_channels=model.in_channels,
        network_segments=bundle.network_segments,
        segments=bundle.network_segments,
        kind="nnunet",
        channel_names=model.channel_names,
        out_channels=model.out_channels,
        configuration=model.configuration,
        folds=(WEIGHTS.parent.name,),
        checkpoint=WEIGHTS.name,
        overlap=model.overlap,
        bundle=bundle,
        replaced=model,
    )
    parts, rules = list(task.parts), list(task.task.parts)
    parts[number], rules[number] = improved, replace(part, labels=labels)
    changed = replace(task, parts=tuple(parts), task=replace(task.task, parts=tuple(rules)))
    names = listed([one.bundle.name for one in changed.improved])
    return replace(
        changed,
        name=one_line(f"{title_of(task.task)}, with {names}", 120),
        description=f"{described(task.task)}; with {names} in place of the models that these were made from",
    )


def _why_not(bundle: Bundle, old: PartModel) -> str:
    """Return why an improved model can't take the place of the old one; "" if it can."""
    if not (bundle.root / WEIGHTS).is_file():
        return "has no weights, because it is not trained yet"
    names = {one.name.casefold(): one.name for one in bundle.network_segments}
    expected = {one.name.casefold(): one.name for one in old.segments}
    if added := listed([name for key, name in names.items() if key not in expected]):
        return f"also finds {added}, which the task has no label for"
    if lacking := listed([name for key, name in expected.items() if key not in names]):
        return f"does not find {lacking}"
    if [one.label for one in bundle.network_segments] != list(range(1, bundle.out_channels)):
        return "finds structures that may overlap"
    try:
        config = read_config(inference_config(bundle.root))
    except Exception as error:  # a foreign file can hold anything
        return f"has a config that can't be read ({one_line(f'{type(error).__name__}: {error}', 200)})"
    taken = bundle_config(old.configuration)
    others = [key for key in TAKEN if config.get(key) != taken[key]]
    return f"has another {' and another '.join(others)}" if others else ""


def _refusal(task: TaskBundle, bundle: Bundle, found: str) -> BundleError:
    text = f"{one_line(bundle.name, 120)!r} can't run in the task {task.task.name!r}: it {found}"
    return BundleError(
        "bundle.part",
        f"{text}; expected a model that 'napari-seg improve' made from one of the task's, with its structures, network "
        f"and preprocessing; --model {bundle.root} runs it alone",
    )
