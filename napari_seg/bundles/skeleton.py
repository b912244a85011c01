"""Write a new bundle to start from: complete but for its weights, for napari-seg and for MONAI alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from napari_seg.bundles.spec import METADATA
from napari_seg.errors import StoreError

_INFERENCE = """\
# How napari-seg segments a scan, and how MONAI does without it:
# python -m monai.bundle run --config_file configs/inference.yaml --dataset_dir IMAGES --output_dir RESULTS

imports:
  - $import glob
  - $import os

bundle_root: .
dataset_dir: $@bundle_root + '/images'
output_dir: $@bundle_root + '/results'
images: $sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))
device: "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"

# the network that was trained; another one of MONAI is named in the same way
network_def:
  _target_: UNet
  spatial_dims: 3
  in_channels: {channels}
  out_channels: {classes}
  channels: [16, 32, 64, 128, 256]
  strides: [2, 2, 2, 2]
  num_res_units: 2
  norm: INSTANCE
network: $@network_def.to(@device)

# as in training: orientation, voxel size in mm, and intensities
preprocessing:
  _target_: Compose
  transforms:
    - _target_: LoadImaged
      keys: image
    - _target_: EnsureChannelFirstd
      keys: image
    - _target_: Orientationd
      keys: image
      axcodes: RAS
    - _target_: Spacingd
      keys: image
      pixdim: [1.5, 1.5, 1.5]
      mode: bilinear
{intensities}    - _target_: EnsureTyped
      keys: image

# windows of the size of the training patches
inferer:
  _target_: SlidingWindowInferer
  roi_size: [96, 96, 96]
  sw_batch_size: 1
  overlap: 0.5
  mode: gaussian

# from the network's channels to labels on the grid of the scan
postprocessing:
  _target_: Compose
  transforms:
    - _target_: Activationsd
      keys: pred
      softmax: true
    - _target_: Invertd
      keys: pred
      transform: '@preprocessing'
      orig_keys: image
      nearest_interp: false
      to_tensor: true
    - _target_: AsDiscreted
      keys: pred
      argmax: true
    - _target_: SaveImaged
      keys: pred
      output_dir: '@output_dir'
      output_postfix: seg
      resample: false

# of a model of several images, `image` is the list of a case's files in the order of the channels
dataset:
  _target_: Dataset
  data: "$[{{'image': path}} for path in @images]"
  transform: '@preprocessing'
dataloader:
  _target_: DataLoader
  dataset: '@dataset'
  batch_size: 1

handlers:
  - _target_: CheckpointLoader
    load_path: $@bundle_root + '/models/model.pt'
    load_dict:
      model: '@network'
    map_location: '@device'

evaluator:
  _target_: SupervisedEvaluator
  device: '@device'
  val_data_loader: '@dataloader'
  network: '@network'
  inferer: '@inferer'
  postprocessing: '@postprocessing'
  val_handlers: '@handlers'

run:
  - $@evaluator.run()
"""

_CT = """\
    - _target_: ScaleIntensityRanged
      keys: image
      a_min: -200
      a_max: 300
      b_min: 0.0
      b_max: 1.0
      clip: true
"""

_OTHER = """\
    - _target_: NormalizeIntensityd
      keys: image
      nonzero: true
      channel_wise: true
"""

_README = """\
# {name}

What is to be filled in:

1. `configs/metadata.json`: what the model segments, on which images it was trained, who made it.
2. `configs/inference.yaml`: the network, voxel size, intensities and window size as in training.
3. `models/model.pt`: the weights, `torch.save(network.state_dict(), "models/model.pt")`.
4. `LICENSE`: the terms for the weights; `docs/data_license.txt`: those of the training data.

`napari-seg models check FOLDER` says what is missing. `napari-seg predict SCAN -o RESULTS --model FOLDER` runs it, and
`napari-seg models add FOLDER` installs it.
"""


def write_skeleton(
    folder: Path, finds: Sequence[str] = ("structure",), modality: str = "MR", channels: Sequence[str] = ("image",)
) -> Path:
    """Write a bundle without weights into a new folder, and return it.

    Args:
        folder: a folder that does not exist or is empty.
        finds: names of the structures, in the order of their labels.
        modality: DICOM's code of the images.
        channels: names of the images that one case consists of.

    Raises:
        StoreError: `store.exists`, the folder holds something; `store.name`, a name is empty, a number or given twice.
        OSError: it could not be written.
    """
    for names, example in ((finds, "--finds liver tumor"), (channels, "--channels T1 T1c T2 FLAIR")):
        if (
            not names
            or len({name.lower() for name in names}) < len(names)
            or not all(name.strip() and name.isprintable() for name in names)
        ):
            raise StoreError("store.name", f"found the names {', '.join(map(repr, names))}; expected different ones")
        if odd := next((name for name in names if name.isdigit() or "," in name), ""):
            text = f"found the name {odd!r}; expected names with spaces between them, such as {example}"
            raise StoreError("store.name", text)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError("store.exists", f"{folder} exists and is not empty; choose a new folder")
    intensities = _CT if modality == "CT" else _OTHER
    inference = _INFERENCE.format(channels=len(channels), classes=len(finds) + 1, intensities=intensities)
    for name, text in (
        (METADATA.as_posix(), json.dumps(example_metadata(folder.name, finds, modality, channels), indent=4) + "\n"),
        ("configs/inference.yaml", inference),
        ("docs/README.md", _README.format(name=folder.name)),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "models").mkdir()
    return folder


def example_metadata(name: str, finds: Sequence[str], modality: str, channels: Sequence[str]) -> dict[str, Any]:
    """Return metadata of a bundle, in which some entries are to be filled in; arguments as for `write_skeleton`."""
    tensor = {"type": "image", "dtype": "float32", "spatial_shape": ["16*n", "16*n", "16*n"], "is_patch_data": True}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": f"first version, {datetime.now(UTC).date().isoformat()}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "name": name,
        "task": f"segmentation of {', '.join(finds)}",
        "description": f"Segments {', '.join(finds)}.",
        "authors": "to be filled in",
        "copyright": "to be filled in",
        "intended_use": "Research; not for diagnosis.",
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "modality": modality,
                    "num_channels": len(channels),
                    "value_range": [],
                    "channel_def": {str(number): name for number, name in enumerate(channels)},
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "segmentation",
                    "num_channels": len(finds) + 1,
                    "value_range": [0, 1],
                    "channel_def": {str(number): name for number, name in enumerate(("background", *finds))},
                }
            },
        },
    }
