"""Write a model of nnU-Net as a MONAI bundle, which runs without nnU-Net and without napari-seg."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from napari_seg.bundles.nnunet.configuration import (
    Configuration,
    NnunetBundle,
    preprocessing_arguments,
    why_not_single,
)
from napari_seg.bundles.nnunet.load import load_nnunet
from napari_seg.bundles.nnunet.network import MODULE, OPERATIONS, channels, plain_arguments
from napari_seg.bundles.read import shipped_root
from napari_seg.bundles.skeleton import example_metadata
from napari_seg.bundles.spec import METADATA, WEIGHTS, Bundle
from napari_seg.bundles.store.licence import read_licence
from napari_seg.errors import BundleError, StoreError, one_line

_README = """\
# {name}

An nnU-Net model as a MONAI bundle, written by napari-seg {version}. Its preprocessing is `scripts/nnunet.py`.

    cd THIS_FOLDER
    python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir RESULTS

needs `pip install monai nibabel scipy pytorch-ignite dynamic-network-architectures`. A scan of several channels is
several files with nnU-Net's numbers: `case_0000.nii.gz`, `case_0001.nii.gz`.
`napari-seg predict SCAN -o RESULTS --model THIS_FOLDER --trust` runs it too.

Labels differ from nnU-Net's own at the borders of windows, which MONAI weights a little differently, and there are no
mirror images. Trained by {trainer}, plans {plans}, configuration {configuration}; folds: {folds}.
"""


def convert(bundle: Bundle, folder: Path) -> None:
    """Write a model of nnU-Net as a MONAI bundle; if an error is raised, the folder stays empty.

    Args:
        bundle: a model of one configuration for volumes, with labels.
        folder: a folder that does not exist or is empty.

    Raises:
        BundleError: `bundle.convert`, a bundle can't hold such a model; `bundle.name`, MONAI would run one of its names
            as code; as for `load_nnunet`.
        StoreError: `store.exists`, the folder holds something.
        OSError: it could not be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError("store.exists", f"{folder} exists and is not empty; choose a new folder")
    if reason := why_not_single(bundle):
        text = f"{one_line(bundle.name, 120)!r} can't become a MONAI bundle: it {reason}"
        raise BundleError(
            "bundle.convert", f"{text}; expected a model of volumes that finds labels, such as FOLDER:3d_fullres"
        )
    assert isinstance(bundle, NnunetBundle)
    inference, metadata = _inference(bundle), _metadata(bundle)
    model = load_nnunet(bundle, torch.device("cpu"), torch.float32)
    configuration = bundle.configuration
    name = one_line(bundle.root.name, 120)
    preprocessing = shipped_root() / "segnets" / "nnunet_preprocessing.py"
    texts = {
        METADATA.as_posix(): json.dumps(metadata, indent=4) + "\n",
        "configs/inference.json": json.dumps(inference, indent=4) + "\n",
        "scripts/__init__.py": "",
        "scripts/nnunet.py": preprocessing.read_text(encoding="utf-8"),
        "docs/README.md": _README.format(
            name=bundle.name,
            version=version("napari-seg"),
            trainer=configuration.trainer or "an unknown trainer",
            plans=configuration.plans,
            configuration=configuration.name,
            folds=", ".join(fold.removeprefix("fold_") for fold in bundle.folds),
        ),
    }
    if licence := read_licence(bundle.root, name).text:
        texts["LICENSE"] = licence + "\n"
    parts = ("configs", "docs", "models", "scripts")
    try:
        for part in parts:
            (folder / part).mkdir(parents=True)
        with (folder / WEIGHTS).open("wb") as file:  # torch raises no OSError if it opens the file itself
            torch.save(model.network.state_dict(), file)
        for path, text in texts.items():
            (folder / path).write_text(text, encoding="utf-8")
    except BaseException:
        for part in parts:
            shutil.rmtree(folder / part, ignore_errors=True)
        (folder / "LICENSE").unlink(missing_ok=True)
        raise


def _metadata(bundle: NnunetBundle) -> dict[str, Any]:
    configuration = bundle.configuration
    finds = [segment.name for segment in bundle.segments]
    metadata = example_metadata(bundle.name, finds, bundle.modality, bundle.channel_names)
    packages = ("dynamic_network_architectures", "nibabel", "scipy")
    metadata |= {
        "description": bundle.description,
        "authors": "unknown; see the nnU-Net model",
        "copyright": "see LICENSE, or the source of the nnU-Net model",
        "required_packages_version": {package: version(package) for package in packages},
    }
    shapes = metadata["network_data_format"]
    names = (bundle.name, bundle.modality, *finds, *bundle.channel_names)
    if acting := next((name for name in names if name.startswith(("$", "@", "%"))), ""):
        text = f"found the name {one_line(acting, 120)!r}, which MONAI would run or look up"
        raise BundleError("bundle.name", f"{text}; expected names that do not begin with $, @ or %")
    for one in (shapes["inputs"]["image"], shapes["outputs"]["pred"]):
        one["spatial_shape"] = list(configuration.patch_size)
    return metadata


def _network(configuration: Configuration) -> dict[str, Any]:
    arguments = {
        key: f"$torch.nn.{value}" if key in OPERATIONS and value else value
        for key, value in plain_arguments(configuration).items()
    }
    inputs, outputs = channels(configuration)
    return {
        "_target_": f"{MODULE}.{configuration.network_class}",
        "input_channels": inputs,
        "num_classes": outputs,
        **arguments,
        "deep_supervision": False,
    }


def _images(count: int) -> str:
    """Return the expression for the files of all cases; several channels are files with nnU-Net's numbers."""
    if count == 1:
        return "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))"
    others = f"[path.replace('_0000.nii', '_{{:04d}}.nii'.format(n)) for n in range({count})]"
    return f"$[{others} for path in sorted(glob.glob(os.path.join(@dataset_dir, '*_0000.nii*')))]"


def _inference(bundle: NnunetBundle) -> dict[str, Any]:
    configuration = bundle.configuration
    network = _network(configuration)
    if len(bundle.folds) > 1:
        network = {"_target_": "scripts.nnunet.MeanOfNetworks", "networks": [network] * len(bundle.folds)}
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/results'",
        "images": _images(len(configuration.channel_names)),
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "scripts.nnunet.NnunetPreprocessd", **preprocessing_arguments(configuration)},
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(configuration.patch_size),
            "sw_batch_size": 1,
            "overlap": bundle.overlap,
            "mode": "gaussian",
            "sigma_scale": 0.125,
            "padding_mode": "constant",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "resample": False,
                },
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @images]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": f"$@bundle_root + '/{WEIGHTS.as_posix()}'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }
