"""One bundle run by MONAI and by napari-seg, each a process from file to file, and how far the results agree."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measuring import NAPARI_SEG, Watched, watch
from numpy.typing import NDArray

RUN_IDS = ("run", "evaluating", "inference")
AS_WRITTEN = ("--windows", "bundle", "--no-crop", "--backend", "torch")


def read_plain(config: Path) -> dict[str, Any]:
    """Return a config as plain data."""
    import yaml

    return yaml.safe_load(config.read_text())


def run_monai(root: Path, config: Path, overrides: Mapping[str, Any], output: Path) -> Watched:
    """Run a bundle with MONAI's command line.

    Args:
        root: the bundle's folder.
        config: its inference config.
        overrides: config entries that are replaced.
        output: folder for its results.

    Raises:
        SystemExit: it failed.
    """
    shutil.rmtree(output, ignore_errors=True)
    run_id = next(name for name in RUN_IDS if name in read_plain(config))
    words: list[object] = [sys.executable, "-P", "-m", "monai.bundle", "run", run_id, "--config_file", config]
    words += ["--meta_file", root / "configs" / "metadata.json", "--bundle_root", root, "--output_dir", output]
    for name, value in overrides.items():
        words += [f"--{name}", value if isinstance(value, str) else repr(value)]
    # a bundle's `scripts` lie in its root
    return watch(words, output.with_name(f"{output.name}_log"), {"PYTHONPATH": str(root)})


def run_napari_seg(root: Path, inputs: Sequence[object], output: Path, options: Sequence[str]) -> Watched:
    """Run a bundle with `napari-seg predict`.

    Args:
        root: the bundle's folder.
        inputs: the scan, or `--channel NAME=FILE` for each of several.
        output: folder for its results.
        options: further words of the command.

    Raises:
        SystemExit: it failed.
    """
    shutil.rmtree(output, ignore_errors=True)
    words = [
        *NAPARI_SEG,
        "predict",
        *inputs,
        "-o",
        output,
        "--bundle",
        root,
        "--device",
        "cpu",
    ]
    environment = {"NAPARI_SEG_MODELS": str(output.parent / "store")}
    return watch([*words, *options], output.with_name(f"{output.name}_log"), environment)


def error_of(folder: Path) -> str:
    """Return the last lines that say why a command failed, in one line."""
    text = "\n".join((folder / name).read_text(errors="replace") for name in ("stdout.txt", "stderr.txt"))
    lines = [line.strip() for line in text.splitlines() if re.search(r"\b[a-z]+\.[a-z0-9_]+:|Error", line)]
    return (lines or ["no message"])[-1].split(";")[0][:300]


def labels_of(folder: Path, scan: Path, stem: str) -> NDArray[np.int64]:
    """Return the label map (I, J, K) that lies in a folder, on the scan's voxels.

    Args:
        folder: a program's results.
        scan: the scan's file.
        stem: how the label map's name begins; the reference may write others.

    Raises:
        SystemExit: there is none, or it does not lie where the scan does.
    """
    import nibabel
    from PIL import Image

    found = sorted(path for ending in ("*.nii.gz", "*.png") for path in folder.rglob(f"{stem}{ending}"))
    found = [path for path in found if not path.name.endswith("_seg.png")]
    if len(found) != 1:
        raise SystemExit(f"found {[path.name for path in found]} in {folder}; expected one label map")
    if found[0].suffix == ".png":  # MONAI writes labels times 255
        values = np.asarray(Image.open(found[0]))
        return (values if values.ndim == 2 else values[..., 0]).T[..., None].astype(np.int64) // 255
    image = nibabel.load(found[0])
    array = np.asanyarray(image.dataobj)
    array = array.reshape(array.shape[:3] if array.ndim >= 3 else (*array.shape, 1))
    if scan.suffix != ".png":
        expected = nibabel.load(scan)
        if array.shape != expected.shape or not np.allclose(image.affine, expected.affine, atol=1e-3):
            raise SystemExit(f"{found[0]} does not lie on the scan's grid")
    whole = np.round(array)
    if not np.array_equal(whole, array):
        print(f"{found[0].name}: {np.mean(whole != array):.2%} of the values are no whole numbers", file=sys.stderr)
    return whole.astype(np.int64)


def agreement(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> dict[str, Any]:
    """Return the fraction of equal voxels, and mean and least Dice of all labels but 0.

    Args:
        ours: (I, J, K).
        theirs: (I, J, K) the reference.
    """
    labels = sorted({*np.unique(ours).tolist(), *np.unique(theirs).tolist()} - {0})
    count = max(labels, default=0) + 1
    mine, other = (np.bincount(one.ravel(), minlength=count) for one in (ours, theirs))
    both = np.bincount(ours[ours == theirs].ravel(), minlength=count)
    dice = [2 * both[n] / (mine[n] + other[n]) for n in labels]
    return {
        "equal": float(np.mean(ours == theirs)),
        "dice": float(np.mean(dice)) if dice else None,
        "least_dice": float(np.min(dice)) if dice else None,
        "labels": int((other[1:] > 0).sum()),
    }
