"""Metadata of a MONAI bundle, which becomes a `Bundle`; nothing of the bundle runs here.

The metadata of a bundle is plain JSON (`configs/metadata.json`). Its network and transforms are in
`configs/inference.yaml` (or `.json`). Parsing those with MONAI runs code from the bundle (GHSA-873f-pvrv-4x83), so it
happens only for a bundle that the user trusts (see `trust.py` and `load.py`).

In addition to MONAI's metadata a bundle may declare, under the key `napari_seg`:

    segments           [{label, name, color, plausible_ml, in_one_piece, terms}]: the structures in the result. terms
                       are coded terms for DICOM: {category, kind, modifier}, each [value, scheme, meaning]
    network_segments   the same for the labels of the network; default: the names in channel_def
    min_confidence     mean probability; below it a result gets a notice
    localiser          regions of a larger scan in which the network looks (see `localise.py`)
    thresholds         for a network with independent channels (sigmoid): probability of each channel above which its
                       structure is present; where several are present, the last one wins
    tta                default test-time averaging: "shifts", "mirror" or "none"
    match              "exact" if `--match auto` lays the windows of this bundle as MONAI does; default "fast"
    part_of            {task, part}: the model of a task of TotalSegmentator that this bundle was made from, so that the
                       task can run with it; see `totalsegmentator/improved.py`
    coarse             {bundle, margin_mm}: a fast bundle inside this one, run first; the network then looks only
                       around what that one finds
    previous           folder of a bundle inside this one, run first; its labels are further channels of the network's
                       image, one for each class, which are not counted in num_channels
    members            folders of bundles inside this one, which has no network of its own: their probabilities are
                       averaged on the scan's grid; see `ensemble.py`
    largest            with members: labels of which only the largest island is kept, whatever the members keep
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from napari_seg.bundles.config.read import inference_config, merged_config, read_config
from napari_seg.bundles.config.resolve import Resolver
from napari_seg.bundles.dimensions import adds_guidance, image_dimensions, image_keys, takes_2d_images
from napari_seg.bundles.output import Output, independent_channels
from napari_seg.bundles.postprocessing import read_output
from napari_seg.bundles.spec import Bundle, CoarseSpec, LocaliserSpec, PartOf, RegionSpec
from napari_seg.bundles.tta import TTA
from napari_seg.errors import one_line
from napari_seg.volume import MAX_LABEL, Segment, Term, distinct_color

MAX_METADATA_BYTES = 2**22
"""Size limit of a metadata.json; published ones have some 10 KB."""

MAX_CHANNELS = 4096
"""Limit for the channels of an image or a network, and for the segments of a bundle."""

MAX_ACCURACY = 1e9
"""Limit for a reported accuracy."""

MAX_NAME = 120
MAX_TEXT = 2000
"""Length limits of names and of longer texts, in characters; longer ones are cut."""


def bundle_of(root: Path, metadata: dict[str, Any], *, trusted: bool) -> Bundle:
    """Return a bundle as its metadata describes it.

    Args:
        root: the bundle's folder.
        metadata: content of its metadata.json.
        trusted: whether its code may run.

    Raises:
        Exception: whatever an entry that can't be used raises.
    """
    if not isinstance(metadata.get("network_data_format"), dict):
        raise ValueError("it has no network_data_format")
    images = _images(metadata["network_data_format"]["inputs"])
    pred = _prediction(metadata["network_data_format"]["outputs"])
    ours = metadata.get("napari_seg", {})
    channels = _channels(pred["num_channels"])
    names = _channel_names(pred)  # results list segments by name
    input_names = _input_names(root, images)
    thresholds = tuple(float(value) for value in ours.get("thresholds", ()))
    if thresholds and len(thresholds) != channels:
        raise ValueError(f"expected a threshold for each of {channels} channels, not {len(thresholds)}")
    if not all(0 < value < 1 for value in thresholds):
        raise ValueError(f"thresholds are probabilities between 0 and 1, not {thresholds}")
    background = names.get(0, "")
    output, dimensions, takes_one_slice = _output(root, metadata, images, channels, thresholds, background)
    channels_of_labels = output.channels_of_labels(max(channels, *(n + 1 for n in names)) if names else channels)
    network_segments = _segments(ours.get("network_segments", ())) or tuple(
        Segment(label, names.get(channel) or f"segment {label}", distinct_color(label))
        for label, channel in channels_of_labels.items()
        if channel in names or not names
    )

    def text(key: str, max_length: int = MAX_TEXT) -> str:
        return one_line(metadata.get(key) or "", max_length)

    return Bundle(
        root=root,
        name=text("name", MAX_NAME) or one_line(root.name, MAX_NAME),
        version=text("version", MAX_NAME),
        description=text("description"),
        modality=one_line(next(iter(images.values())).get("modality") or "", MAX_NAME),
        in_channels=len(input_names),
        network_segments=network_segments,
        segments=_segments(ours.get("segments", ())) or network_segments,
        trusted=trusted,
        min_confidence=_number(ours.get("min_confidence", 0.0)),
        localiser=_localiser(ours["localiser"]) if "localiser" in ours else None,
        thresholds=thresholds,
        coarse=CoarseSpec(str(ours["coarse"]["bundle"]), _number(ours["coarse"]["margin_mm"]))
        if "coarse" in ours
        else None,
        images=text("image_classes"),
        licence="; ".join(filter(None, map(text, ("license", "copyright", "data_source")))),
        accuracy=_accuracy(metadata.get("eval_metrics")),
        intended_use=text("intended_use"),
        tta=_tta(ours.get("tta")),
        is_exact=ours.get("match") == "exact",
        background=background,
        output=output,
        spatial_dims=dimensions,
        takes_one_slice=takes_one_slice,
        out_channels=channels,
        channel_names=input_names,
        part_of=PartOf(*(one_line(ours["part_of"][key], MAX_TEXT) for key in ("task", "part")))
        if "part_of" in ours
        else None,
    )


def _images(inputs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return name -> entry of the images among a network's inputs: "image" alone if there is one of this name."""
    images = {one_line(name, MAX_NAME): one for name, one in inputs.items() if one.get("type", "image") == "image"}
    images = {"image": inputs["image"]} if "image" in inputs else images
    if not images:
        names = one_line(", ".join(inputs), MAX_NAME) or "none"
        raise ValueError(f"its inputs are {names}; expected an image to segment, not noise to make images from")
    return images


def _prediction(outputs: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of the output that holds the structures: "pred", or the only one of a segmentation."""
    segmentations = [one for one in outputs.values() if one.get("format") == "segmentation"]
    found = [outputs["pred"]] if "pred" in outputs else segmentations or list(outputs.values())
    if len(found) != 1:
        names = one_line(", ".join(outputs), MAX_NAME) or "none"
        raise ValueError(f"its outputs are {names}; expected pred, or one with the format segmentation")
    return found[0]


def _input_names(root: Path, images: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Return a unique name for each channel of the images, in their order; its number where it has no name.

    Where the metadata does not name all channels of one image, the config may read a file for each, or the others are
    a user's clicks, which no file holds.
    """
    names: list[str] = []
    for image, entry in images.items():
        count, stated = _channels(entry["num_channels"]), _channel_names(entry)
        own = [stated.get(number, "") for number in range(count)]
        if len(images) > 1:  # such as one image a phase of a contrast agent
            own = [image] if count == 1 else [f"{image} {name or number}" for number, name in enumerate(own)]
        names += own
        if len(names) > MAX_CHANNELS:
            raise ValueError(f"its images have more than {MAX_CHANNELS} channels")
    if "" in names:
        with suppress(Exception):  # a foreign file can hold anything; it is checked before the bundle runs
            config = merged_config(read_config(inference_config(root)))
            keys = image_keys(config)
            if len({*keys}) == len(names):
                return tuple(one_line(key, MAX_NAME) for key in keys)
            if adds_guidance(config) and any(names):
                names = [name for name in names if name]
    return tuple(name or str(number) for number, name in enumerate(names))


def _channel_names(entry: dict[str, Any]) -> dict[int, str]:
    """Return number -> unique name of the channels that a channel_def or label_def of the metadata names."""
    key = "channel_def" if entry.get("channel_def") else "label_def"
    names = {int(number): one_line(name, MAX_NAME) for number, name in (entry.get(key) or {}).items()}
    if names and not 0 <= min(names) <= max(names) < MAX_CHANNELS:
        raise ValueError(f"{key} names channel {max(names)}; expected 0 to {MAX_CHANNELS - 1}")
    counts = Counter(names.values())
    return {number: f"{name} ({number})" if counts[name] > 1 else name for number, name in names.items()}


def _output(
    root: Path,
    metadata: dict[str, Any],
    images: dict[str, Any],
    channels: int,
    thresholds: tuple[float, ...],
    background: str,
) -> tuple[Output, Literal[2, 3], bool | None]:
    """Return how a bundle's channels become labels, the dimensions of its images, and whether it takes a slice.

    An odd config gets the defaults.
    """
    found: Output | tuple[str, ...] = ()
    dimensions: Literal[2, 3] = 3
    takes_one_slice = None
    with suppress(Exception):  # a foreign file can hold anything; it is checked before the bundle runs
        config = Resolver(read_config(inference_config(root)), root, None, metadata).entries
        shape = next(iter(images.values())).get("spatial_shape")
        dimensions, takes_one_slice = image_dimensions(config, shape), takes_2d_images(config, shape)
        found = read_output(config, channels, thresholds, background)
    if isinstance(found, Output):
        return found, dimensions, takes_one_slice
    declared = Output(decision="thresholds", channels=independent_channels(thresholds, "none"))
    return declared if thresholds else Output(), dimensions, takes_one_slice


def _channels(value: Any) -> int:
    count = int(value)
    if not 1 <= count <= MAX_CHANNELS:
        raise ValueError(f"num_channels is {count}; expected 1 to {MAX_CHANNELS}")
    return count


def _tta(value: Any) -> TTA | None:
    if value not in (None, *get_args(TTA)):
        raise ValueError(f"tta is {value!r}; expected one of {', '.join(get_args(TTA))}")
    return value


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"found the number {number}; expected a finite one")
    return number


def _accuracy(entry: Any) -> tuple[tuple[str, float], ...]:
    """Return the numbers in the metadata's eval_metrics; anything else is left out."""
    if not isinstance(entry, dict):
        return ()
    numbers = {one_line(name, MAX_NAME).replace("_", " "): value for name, value in list(entry.items())[:MAX_CHANNELS]}
    return tuple(
        (name, float(value))
        for name, value in numbers.items()
        if isinstance(value, int | float) and abs(value) < MAX_ACCURACY
    )


def _segments(entries: Sequence[dict[str, Any]]) -> tuple[Segment, ...]:
    if len(entries) > MAX_CHANNELS:
        raise ValueError(f"it declares {len(entries)} segments; expected at most {MAX_CHANNELS}")
    return tuple(map(_segment, entries))


def _segment(entry: dict[str, Any]) -> Segment:
    label = int(entry["label"])
    if not 1 <= label <= MAX_LABEL:
        raise ValueError(f"a segment has label {label}; expected 1 to {MAX_LABEL}")
    low, high = entry.get("plausible_ml", (None, None))
    red, green, blue = (min(max(int(value), 0), 255) for value in entry["color"])
    terms = entry.get("terms", {}).items()
    return Segment(
        label=label,
        name=one_line(entry["name"], MAX_NAME) or f"segment {label}",
        color=(red, green, blue),
        plausible_ml=None if low is None else (_number(low), _number(high)),
        in_one_piece=bool(entry.get("in_one_piece", False)),
        **{name: Term(*(one_line(word, MAX_NAME) for word in term)) for name, term in terms},
    )


def _localiser(entry: dict[str, Any]) -> LocaliserSpec:
    return LocaliserSpec(
        template=str(entry["template"]),
        crop_below_mm=_number(entry["crop_below_mm"]),
        min_similarity=_number(entry["min_similarity"]),
        usual_similarity=_number(entry.get("usual_similarity", entry["min_similarity"])),
        spacing_mm=_triple(entry["spacing_mm"]),
        regions=tuple(
            RegionSpec(
                name=one_line(region["name"], MAX_NAME),
                center_mm=_triple(region["center_mm"]),
                size_mm=_triple(region["size_mm"]),
                mirror=bool(region["mirror"]),
                labels={int(network): int(result) for network, result in region["labels"].items()},
            )
            for region in entry["regions"]
        ),
    )


def _triple(values: list[float]) -> tuple[float, float, float]:
    x, y, z = (_number(value) for value in values)
    return x, y, z
