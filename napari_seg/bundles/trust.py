"""Checks before a bundle runs: is its code trusted, and does the engine support its postprocessing?

Nothing of the bundle runs here.
"""

from __future__ import annotations

import shlex

from napari_seg.bundles.config import inference_config, read_config
from napari_seg.bundles.postprocessing import is_for_2d_images, unsupported_steps
from napari_seg.bundles.spec import WEIGHTS, Bundle, read_coarse
from napari_seg.errors import BundleError, one_line


def check_runnable(bundle: Bundle) -> None:
    """Check that a bundle is trusted, complete and supported, before any long work and without running its code.

    Raises:
        BundleError: `bundle.untrusted`; `bundle.weights`, they are missing; `bundle.postprocessing`, it does more than
            softmax and argmax, or than the declared thresholds; `bundle.dimensions`, the bundle segments 2D images;
            `bundle.config`, the inference config can't be read.
    """
    if not bundle.trusted:
        raise BundleError(
            "bundle.untrusted",
            f"loading bundle {bundle.root.name!r} runs code that comes with it; if you trust its source, allow that "
            "with --trust-bundle, or read_bundle(..., trust=True)",
        )
    path = inference_config(bundle.root)
    try:
        config = read_config(path)
        unsupported = unsupported_steps(config, bool(bundle.thresholds), bundle.background)
        is_2d = is_for_2d_images(config)
    except Exception as error:  # a damaged file can raise anything
        cause = one_line(f"{type(error).__name__}: {error}", 200)
        text = f"{path.name} of bundle {bundle.root.name!r} can't be read ({cause}); expected a MONAI config"
        raise BundleError("bundle.config", text) from error
    if is_2d:
        raise BundleError(
            "bundle.dimensions",
            f"bundle {bundle.root.name!r} segments 2D images, which napari-seg does not support yet; expected a "
            f"network for volumes, or for their slices; run it with MONAI: {command_of_monai(bundle)}",
        )
    if not bundle.network_segments:
        unsupported.append("the argmax of a single channel, which is all background")
    if unsupported:
        expected = "the thresholds of its metadata" if bundle.thresholds else "softmax and argmax"
        raise BundleError(
            "bundle.postprocessing",
            f"bundle {bundle.root.name!r} makes its labels by {', '.join(unsupported)}, which napari-seg does not "
            f"support yet; expected {expected} alone; run it with MONAI (python -m monai.bundle run), or, where its "
            "channels are independent of each other (sigmoid), declare their thresholds in metadata.json under "
            "napari_seg",
        )
    if not (bundle.root / WEIGHTS).is_file():
        raise BundleError("bundle.weights", f"bundle {bundle.root.name!r} has no {WEIGHTS.as_posix()}; train it first")
    if bundle.coarse is not None:
        check_runnable(read_coarse(bundle))


def command_of_monai(bundle: Bundle) -> str:
    """Return the command that runs a bundle in MONAI; the user replaces the words in capitals."""
    path = inference_config(bundle.root)
    config = read_config(path)
    run_id = "inference " if "inference" in config else ""
    values = {"dataset_dir": "IMAGES", "output_dir": "RESULTS"}
    options = [f"--{name} {value}" for name, value in values.items() if name in config]
    return " ".join([f"python -m monai.bundle run {run_id}--config_file {shlex.quote(str(path))}", *options])
