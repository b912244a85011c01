"""Seeded weights for a bundle whose published ones can't be had: labels that follow the intensities, not noise.

The network is built from the bundle's own config, so this runs code of the bundle. The targets are ranges of the
smoothed intensity: background below a quantile, and the other classes above it, from dark to bright. The last layer
learns them, or the whole network where that is cheap; then its bias is raised until every class wins somewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

BACKGROUND = 0.6
"""Fraction of the voxels that the targets call background."""

CROP = {3: 32, 2: 256}
"""Voxels along each axis of what is learnt from, by the number of axes."""

MIN_FRACTION = 2e-4
"""Fraction of the voxels where each class wins at least."""


def make_weights(
    root: Path, config: Path, overrides: Mapping[str, Any], *, train_all: bool, sigmoid: bool, key: str | None
) -> dict[str, float]:
    """Write the weights that a bundle's config loads, and return how far the network follows its targets.

    Args:
        root: the bundle's folder; also what the config calls `bundle_root`.
        config: its inference config.
        overrides: config entries that are replaced, with the data among them.
        train_all: train all layers, not only the last.
        sigmoid: each channel is a structure, none of them background.
        key: entry of the checkpoint that holds the state dictionary; None: the checkpoint is the state dictionary.
    """
    import torch

    sys.path.insert(0, str(root))
    parser = _parser(root, config, overrides)
    if "arch_ckpt_path" in parser.get():
        path = Path(parser.get_parsed_content("arch_ckpt_path"))
        path.parent.mkdir(exist_ok=True)
        torch.save(architecture_code(), path)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two wait for each other where the machine is busy
    network = parser.get_parsed_content("network_def")
    loaded = parser.get_parsed_content("dataset")[0]
    image = torch.as_tensor(np.asarray(loaded["image"], dtype=np.float32))[None]
    score = fit(network, _window(image, parser), train_all=train_all, sigmoid=sigmoid)
    path = Path(parser.get_parsed_content(_checkpoint_id(parser.get())))
    path.parent.mkdir(exist_ok=True)
    state = network.state_dict()
    torch.save({key: state} if key else state, path)
    return score


def architecture_code(blocks: int = 12, depths: int = 4) -> dict[str, Any]:
    """Return what DiNTS's search saves: which paths between resolutions are active, and the operation of each.

    The paths lead down to the coarsest resolution and up again.
    """
    paths = 3 * depths - 2
    active = [(2,), (3, 5), (3, 6), (3, 6, 8), (3, 6, 9), (3, 6, 7), (3, 6), (3, 6), (3, 4), (3,), (1,), (0,)]
    path_in = [(n + 1) // 3 - 1 + (n + 1) % 3 for n in range(paths)]
    path_out = [(n + 1) // 3 for n in range(paths)]
    arch_code_a = np.zeros((blocks, paths))
    node_a = np.zeros((blocks + 1, depths), int)
    for block, chosen in enumerate(active):
        for path in chosen:
            arch_code_a[block, path] = 1
            node_a[block + 1, path_out[path]] = 1
            if block == 0:
                node_a[0, path_in[path]] = 1
    operations = np.random.default_rng(0).integers(1, 5, (blocks, paths))
    return {
        "node_a": node_a,
        "arch_code_a": arch_code_a,
        "arch_code_a_max": arch_code_a,
        "arch_code_c": operations,
        "iter_num": 18590,
        "epochs": 100,
        "best_dsc": np.float64(0.5),
        "best_path": 18590,
    }


def fit(network: Any, image: Any, *, train_all: bool, sigmoid: bool, steps: int = 80) -> dict[str, float]:
    """Train a network on one window so that its channels follow the intensity, and return the reached accuracy.

    Args:
        network: with random weights; changed in place.
        image: (1, C, I, J[, K]) a window as the network gets it.
        train_all: train all layers, not only the last.
        sigmoid: each channel is a structure, none of them background.
        steps: training steps of the last layer, or of all layers on a part of the window.
    """
    import torch

    _calibrate(network, image)
    last, features = _last_layer(network, image)
    channels, crop = last.out_channels, CROP[image.ndim - 2]
    middle = _middle(image, crop) if train_all else image
    run: Callable = network if train_all else last
    given = middle if train_all else _middle(features, crop)
    target = targets(middle, channels, sigmoid)
    if not train_all:
        with torch.no_grad():
            ratio = last(given).shape[2] // given.shape[2]  # 2 after a transposed convolution
        shape = [length * ratio for length in features.shape[2:]]
        target = _middle(_resized(target, shape), crop * ratio)
    parameters = list((network if train_all else last).parameters())
    for parameter in network.parameters():
        parameter.requires_grad_(any(parameter is one for one in parameters))
    optimizer = torch.optim.Adam(parameters, lr=0.01 if train_all else 0.05)
    network.train(train_all)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = run(given)
        if sigmoid:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        else:
            loss = torch.nn.functional.cross_entropy(logits, target[:, 0].long())
        loss.backward()
        optimizer.step()
    if train_all:  # the statistics of its layers have changed
        _calibrate(network, image)
    with torch.no_grad():
        logits = network.eval()(image)
    shift = present_shift(logits) if sigmoid else winning_shift(logits)
    last.bias.data += shift
    logits = logits + shift.reshape(1, -1, *[1] * (logits.ndim - 2))
    labels = (logits > 0) if sigmoid else logits.argmax(1, keepdim=True)
    hits = (labels == targets(image, channels, sigmoid)).float().mean()
    return {"accuracy": float(hits), "loss": float(loss.detach())}


def targets(image: Any, channels: int, sigmoid: bool) -> Any:
    """Return labels (1, 1, ...) by ranges of the smoothed intensity, or a mask for each range (1, channels, ...).

    Args:
        image: (1, C, I, J[, K]).
        channels: of the network's output.
        sigmoid: return masks.
    """
    import torch
    from scipy.ndimage import gaussian_filter

    smooth = torch.as_tensor(gaussian_filter(image[0].mean(0).numpy(), 1.5))
    ranges = channels + 1 if sigmoid else channels  # background included
    places = torch.linspace(BACKGROUND, 1, ranges)[:-1]
    cuts = torch.quantile(smooth.flatten()[:: max(1, smooth.numel() // 100_000)], places)
    labels = torch.bucketize(smooth, cuts)[None, None].float()
    return torch.cat([labels == n for n in range(1, ranges)], 1).float() if sigmoid else labels


def winning_shift(logits: Any) -> Any:
    """Return what to add to each channel so that it wins somewhere; channels that win already keep their values.

    Args:
        logits: (1, channels, ...).
    """
    import torch

    flat = logits[0].flatten(1)
    flat = flat[:, :: max(1, flat.shape[1] // 50_000)]
    shift = torch.zeros(flat.shape[0])
    count = max(3, int(MIN_FRACTION * flat.shape[1]))
    for _ in range(5):
        moved = flat + shift[:, None]
        wins = torch.bincount(moved.argmax(0), minlength=len(shift))
        missing = (wins < count).nonzero().flatten().tolist()
        if not missing:
            break
        best = moved.amax(0)
        for channel in missing:
            shift[channel] += torch.topk(moved[channel] - best, count).values[-1].neg() + 1e-3
    return shift


def present_shift(logits: Any) -> Any:
    """Return what to add to each channel so that it is positive in 5 to 30 % of the voxels.

    Args:
        logits: (1, channels, ...).
    """
    import torch

    flat = logits[0].flatten(1)
    flat = flat[:, :: max(1, flat.shape[1] // 50_000)]
    few, many = torch.quantile(flat, 0.95, dim=1), torch.quantile(flat, 0.7, dim=1)
    return (-few).clamp(min=0) + (-many).clamp(max=0)


def _calibrate(network: Any, image: Any) -> None:
    """Set the statistics of batch normalisation from the window and its mirror image."""
    import torch

    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    network.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for window in (image, image.flip(2)):
            network(window)


def _last_layer(network: Any, image: Any) -> tuple[Any, Any]:
    """Return the last convolution with as many channels as the output, and its input for a window."""
    import torch

    seen: list[tuple[Any, Any]] = []

    def remember(module: Any, inputs: Any, output: Any) -> None:
        seen[:] = [*seen[-3:], (module, inputs[0].detach())]

    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.modules.conv._ConvNd)]
    hooks = [module.register_forward_hook(remember) for module in convolutions]
    with torch.no_grad():
        channels = network.eval()(image).shape[1]
    for hook in hooks:
        hook.remove()
    found = [pair for pair in seen if pair[0].out_channels == channels and pair[0].bias is not None]
    return found[-1]


def _resized(target: Any, shape: Any) -> Any:
    import torch

    return torch.nn.functional.interpolate(target, size=tuple(shape), mode="nearest")


def _middle(array: Any, size: int) -> Any:
    """Return the middle of an array, at most `size` along each spatial axis."""
    for axis in range(2, array.ndim):
        length = min(size, array.shape[axis])
        array = array.narrow(axis, (array.shape[axis] - length) // 2, length)
    return array


def _window(image: Any, parser: Any) -> Any:
    """Return the middle of an image as one window of the bundle's inferer, padded where it is smaller."""
    import torch

    inferer = parser.get_parsed_content("inferer")
    size = getattr(inferer, "roi_size", None)
    if size is None:
        return image
    if len(size) == image.ndim - 3:  # slices of a volume
        image = image[..., image.shape[-1] // 2]
    size = [min(length, 128) for length in size]
    for axis, length in enumerate(size, start=2):
        start = max(0, (image.shape[axis] - length) // 2)
        image = image.narrow(axis, start, min(length, image.shape[axis]))
    missing = [length - found for length, found in zip(size, image.shape[2:], strict=True)]
    padding = [part for space in reversed(missing) for part in (space // 2, space - space // 2)]
    return torch.nn.functional.pad(image, padding)


def _parser(root: Path, config: Path, overrides: Mapping[str, Any]) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(config))
    parser.read_meta(str(root / "configs" / "metadata.json"))
    parser.update({"bundle_root": str(root), **overrides})
    return parser


def _checkpoint_id(config: Mapping[str, Any]) -> str:
    """Return the id of the path of the checkpoint that a config loads."""
    entries = {"checkpointloader": config.get("checkpointloader")}
    entries |= {f"handlers#{n}": entry for n, entry in enumerate(config.get("handlers", []))}
    for name, entry in entries.items():
        if isinstance(entry, dict) and entry.get("_target_") == "CheckpointLoader":
            return f"{name}#load_path"
    raise SystemExit("found no CheckpointLoader in the config")
