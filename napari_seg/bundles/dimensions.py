"""The images that an inference config takes: their dimensions and their keys; plain data, nothing runs."""

from __future__ import annotations

from typing import Any, Literal

from napari_seg.bundles.config.references import parts, resolved


def image_dimensions(config: dict[str, Any], spatial_shape: Any = None) -> Literal[2, 3]:
    """Return 2 if the transforms and the network take 2D images (C, I, J), 3 if they take volumes or their slices.

    Args:
        config: from `read_config`.
        spatial_shape: of the network's image, from the metadata; None if it has none.
    """
    return _dimensions(config, spatial_shape)[0] or 3


def takes_2d_images(config: dict[str, Any], spatial_shape: Any = None) -> bool | None:
    """Return whether the network takes 2D images, be they slices of a volume; None if nothing shows it.

    The arguments are as above. A network in a bundle's own code can show its dimensions nowhere. One whose windows are
    one slice thick takes an image as a volume of one slice.
    """
    dimensions, inferers = _dimensions(config, spatial_shape)
    found = (dimensions, _network_dimensions(config, spatial_shape))
    if "SliceInferer" in inferers or 2 in found or 1 in _window_size(config):
        return True
    return False if 3 in found else None


def _window_size(config: dict[str, Any]) -> list[Any]:
    """Return the size of the windows; empty if the inferer states none."""
    inferer = resolved(config, config.get("inferer"))
    size = resolved(config, inferer.get("roi_size")) if isinstance(inferer, dict) else None
    return list(size) if isinstance(size, list | tuple) else []


def _dimensions(config: dict[str, Any], spatial_shape: Any) -> tuple[Literal[2, 3] | None, list[str]]:
    """Return the dimensions of the images, None if nothing shows them, and the names of the inferer's components."""
    waiting, seen, names = [resolved(config, config.get("inferer"))], set(), []
    while waiting:
        entry = waiting.pop()
        if id(entry) in seen or not isinstance(entry, dict):
            continue
        seen.add(id(entry))
        names.append(str(entry.get("_target_", "")).rpartition(".")[2])
        size = resolved(config, entry.get("roi_size"))
        if names == ["SlidingWindowInferer"] and isinstance(size, list | tuple):
            return 2 if len(size) == 2 else 3, names
        waiting += [resolved(config, value) for value in entry.values()]
    if set(names) - {"SimpleInferer", "SlidingWindowInferer"}:
        return None, names  # slices of a volume, or a way of the bundle's own
    return _network_dimensions(config, spatial_shape), names


def _network_dimensions(config: dict[str, Any], spatial_shape: Any) -> Literal[2, 3] | None:
    network = resolved(config, config.get("network_def"))
    if isinstance(network, dict):
        dimensions = [resolved(config, network.get(key)) for key in ("spatial_dims", "dimensions")]
        if found := next((n for n in dimensions if n in (2, 3)), None):
            return 2 if found == 2 else 3
    axes = len(spatial_shape) if isinstance(spatial_shape, list) else 0
    return 2 if axes == 2 else 3 if axes == 3 else None


REFERENCE_KEYS = frozenset(["label", "labels", "gt", "mask"])
"""Keys of reference label maps, which a new scan does not have."""


def image_keys(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys of the images that the preprocessing reads, such as one for each phase of a contrast agent.

    Args:
        config: from `read_config`.
    """
    entry = resolved(config, config.get("preprocessing"))
    steps = resolved(config, entry.get("transforms")) if isinstance(entry, dict) else entry
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and str(step.get("_target_")).rpartition(".")[2].lower().startswith("loadimaged"):
            keys = resolved(config, step.get("keys"))
            found = [resolved(config, key) for key in (keys if isinstance(keys, list) else [keys])]
            return tuple(str(key) for key in found if key not in REFERENCE_KEYS)
    return ()


def adds_guidance(config: dict[str, Any]) -> bool:
    """Return whether transforms add channels of a user's clicks to the image, which no file holds.

    Args:
        config: from `read_config`.
    """
    return any(
        isinstance(part, dict) and "AddGuidanceSignal" in str(part.get("_target_", "")) for part in parts(config)
    )
