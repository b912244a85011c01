"""Checks before a bundle runs: whether its code may, and whether its labels are the ones it promises.

Nothing of the bundle runs here.
"""

from __future__ import annotations

import shlex

from napari_seg.bundles.config import inference_config, read_config
from napari_seg.bundles.postprocessing import not_honoured, sees_images
from napari_seg.bundles.spec import WEIGHTS, Bundle, one_line, read_coarse
from napari_seg.errors import BundleError


def check_runnable(bundle: Bundle) -> None:
    """Check, before any long work, whether a bundle may run and will give what it promises; runs none of its code.

    Raises:
        BundleError: `bundle.untrusted`; `bundle.weights`, there are none; `bundle.postprocessing`, its labels follow
            from more than softmax and argmax, or than the thresholds that it declares; `bundle.dimensions`, it
            segments 2D images; `bundle.config`, the inference config can't be read.
    """
    if not bundle.trusted:
        raise BundleError(
            "bundle.untrusted",
            f"loading bundle {bundle.root.name!r} runs code that comes with it; if you trust its source, say so "
            "(--trust-bundle, or read_bundle(..., trust=True))",
        )
    path = inference_config(bundle.root)
    try:
        config = read_config(path)
        faults = not_honoured(config, bool(bundle.thresholds), bundle.background)
        is_for_images = sees_images(config)
    except Exception as error:  # a damaged file can raise anything
        cause = one_line(f"{type(error).__name__}: {error}", 200)
        text = f"{path.name} of bundle {bundle.root.name!r} can't be read ({cause}); expected a MONAI config"
        raise BundleError("bundle.config", text) from error
    if is_for_images:
        raise BundleError(
            "bundle.dimensions",
            f"bundle {bundle.root.name!r} segments 2D images, which napari-seg does not do yet; expected a network for "
            f"volumes, or for their slices; run it with MONAI: {command_of_monai(bundle)}",
        )
    if not bundle.network_segments:
        faults.append("a single channel, which argmax leaves all background")
    if faults:
        expected = "the thresholds of its metadata" if bundle.thresholds else "softmax and argmax"
        raise BundleError(
            "bundle.postprocessing",
            f"bundle {bundle.root.name!r} makes its labels by {', '.join(faults)}, which napari-seg does not do yet; "
            f"expected {expected} alone; run it with MONAI (python -m monai.bundle run), or, where its channels are "
            "independent of each other (sigmoid), declare their thresholds in metadata.json under napari_seg",
        )
    if not (bundle.root / WEIGHTS).is_file():
        raise BundleError("bundle.weights", f"bundle {bundle.root.name!r} has no {WEIGHTS.as_posix()}; train it first")
    if bundle.coarse is not None:
        check_runnable(read_coarse(bundle))


def command_of_monai(bundle: Bundle) -> str:
    """Return the command that runs a bundle by its own config; words in capitals are to be filled in."""
    path = inference_config(bundle.root)
    config = read_config(path)
    run_id = "inference " if "inference" in config else ""
    values = {"dataset_dir": "IMAGES", "output_dir": "RESULTS"}
    told = [f"--{name} {value}" for name, value in values.items() if name in config]
    return " ".join([f"python -m monai.bundle run {run_id}--config_file {shlex.quote(str(path))}", *told])
