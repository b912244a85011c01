"""Write a model of nnU-Net as a MONAI bundle, which runs without nnU-Net, and without napari-seg unless it averages."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from napari_seg.bundles.nnunet.configuration import Configuration, NnunetBundle, preprocessing_arguments
from napari_seg.bundles.nnunet.network import MODULE, OPERATIONS, channels, plain_arguments
from napari_seg.bundles.read import shipped_root
from napari_seg.bundles.skeleton import example_metadata
from napari_seg.bundles.spec import MEMBERS, METADATA, PREVIOUS, WEIGHTS, Bundle, EnsembleBundle
from napari_seg.bundles.store.licence import read_licence
from napari_seg.errors import BundleError, StoreError, one_line
from napari_seg.formats.atomic import not_written
from napari_seg.formats.endings import IMAGE2D_ENDINGS
from napari_seg.formats.image2d import COLOURS

if TYPE_CHECKING:
    import torch

_README = """\
# {name}

An nnU-Net model as a MONAI bundle, written by napari-seg {version}: trainer {trainer}, plans {plans}, configuration
{configuration}, folds {folds}. `scripts/nnunet.py` holds its preprocessing, and the average of folds and mirror images.

{commands}

needs `pip install monai {reader} scipy pytorch-ignite dynamic-network-architectures`. {files}
`napari-seg predict SCAN -o RESULTS --model THIS_FOLDER --trust` runs it too.

{notes}
"""

_COMMANDS = """\
    cd THIS_FOLDER
    python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir RESULTS"""

_COMMANDS_OF_CASCADE = """\
    cd THIS_FOLDER/previous
    python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir ../labels
    cd ..
    python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir RESULTS \\
        --previous_dir labels"""

_README_OF_ENSEMBLE = """\
# {name}

An nnU-Net ensemble as MONAI bundles, written by napari-seg {version}: {description}.

    napari-seg predict SCAN -o RESULTS --model THIS_FOLDER --trust

averages the probabilities of the bundles in `members/`. `python -m monai.bundle run` can't average them. It works in
the folder of a member, as the `docs/README.md` there says, and gives the result of this member alone.
"""


def convert(bundle: Bundle, folder: Path) -> None:
    """Write a model of nnU-Net as a MONAI bundle; if an error is raised, the folder stays empty.

    An ensemble becomes a bundle with a bundle for each configuration in it, which napari-seg averages.

    Args:
        bundle: a model of one configuration, of volumes or of slices, with labels or regions, or an ensemble of such. A
            cascade becomes a bundle with that of its previous stage in it.
        folder: a folder that does not exist or is empty.

    Raises:
        BundleError: `bundle.convert`, a bundle can't hold such a model; `bundle.name`, MONAI would run one of its names
            as code; as for `load_nnunet`.
        StoreError: `store.exists`, the folder holds something.
        OutputError: `output.not_written`; `output.disk_full`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError("store.exists", f"{folder} exists and is not empty; choose a new folder")
    models = [model for model in bundle.models if isinstance(model, NnunetBundle)]
    if reason := _why_not(bundle, models):
        text = f"{one_line(bundle.name, 120)!r} can't become a MONAI bundle: {reason}"
        raise BundleError("bundle.convert", f"{text}; expected configurations of nnU-Net, such as FOLDER:3d_fullres")
    if isinstance(bundle, EnsembleBundle):
        _convert_ensemble(bundle, models, folder)
    else:
        _convert_model(models[0], folder)


def _why_not(bundle: Bundle, models: list[NnunetBundle]) -> str:
    """Return why a bundle can't be converted; "" if it can."""
    if len(models) < len(bundle.models):
        return "it is no model of nnU-Net"
    if any(model.previous is not None and _is_of_images(model.configuration) for model in models):
        return "it is a cascade of 2D images"
    if len({model.root.name for model in models}) < len(models):
        return "it averages a configuration with itself"
    return ""


def _convert_ensemble(bundle: EnsembleBundle, models: list[NnunetBundle], folder: Path) -> None:
    """Write a bundle for each configuration, and the bundle around them; arguments as for `convert`."""
    names = [f"{MEMBERS}/{model.root.name}" for model in models]
    metadata = _metadata(models[0]) | {"name": bundle.name, "description": bundle.description}
    segments = [{"label": one.label, "name": one.name, "color": one.color} for one in bundle.segments]
    metadata["napari_seg"] = {"members": names, "network_segments": segments}
    texts = {
        METADATA.as_posix(): _readable(metadata),
        "docs/README.md": _README_OF_ENSEMBLE.format(
            name=bundle.name, description=bundle.description, version=version("napari-seg")
        ),
    }
    with _complete(folder, ("configs", "docs", MEMBERS)):
        for model, name in zip(models, names, strict=True):
            _convert_model(model, folder / name)
        _write_texts(folder, texts | _licence_text(models[0]))


def _convert_model(bundle: NnunetBundle, folder: Path) -> None:
    """Write the bundle of one configuration; arguments as for `convert`."""
    import torch

    from napari_seg.bundles.nnunet.load import load_nnunet

    metadata = _metadata(bundle)
    model = load_nnunet(bundle, torch.device("cpu"), torch.float32)
    preprocessing = shipped_root() / "segnets" / "nnunet_preprocessing.py"
    texts = {
        METADATA.as_posix(): _readable(metadata),
        "configs/inference.json": _readable(_inference(bundle, model.mirror_axes)),
        "scripts/__init__.py": "",
        "scripts/nnunet.py": preprocessing.read_text(encoding="utf-8"),
        "docs/README.md": _readme(bundle, model.mirror_axes),
    }
    inner = () if bundle.previous is None else (PREVIOUS,)
    with _complete(folder, ("configs", "docs", "models", "scripts", *inner)):
        if bundle.previous is not None:
            _convert_model(bundle.previous, folder / PREVIOUS)
        with (folder / WEIGHTS).open("wb") as file:  # torch raises no OSError if it opens the file itself
            torch.save(_weights(model.network), file)
        _write_texts(folder, texts | _licence_text(bundle))


def _licence_text(bundle: NnunetBundle) -> dict[str, str]:
    """Return the file of a model's licence and its content; empty if there is none."""
    text = read_licence(bundle.root, one_line(bundle.root.name, 120)).text
    return {"LICENSE": text + "\n"} if text else {}


def _write_texts(folder: Path, texts: dict[str, str]) -> None:
    for path, text in texts.items():
        (folder / path).write_text(text, encoding="utf-8")


@contextmanager
def _complete(folder: Path, parts: tuple[str, ...]) -> Iterator[None]:
    """Make the parts of a bundle as empty folders, and remove them and the licence if an error is raised within.

    Raises:
        OutputError: for an OSError.
    """
    try:
        for part in parts:
            (folder / part).mkdir(parents=True)
        yield
    except BaseException as error:
        for part in parts:
            shutil.rmtree(folder / part, ignore_errors=True)
        (folder / "LICENSE").unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise not_written(str(error.filename or folder), error) from error
        raise


def _readable(content: dict[str, Any]) -> str:
    """Return JSON, with lists of numbers and texts on one line."""
    text = json.dumps(content, indent=4)
    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _weights(network: torch.nn.Module) -> dict[str, Any]:
    """Return the weights of all folds, by their names in `NnunetNetwork`."""
    import torch

    from napari_seg.bundles.nnunet.load import FoldAverage, SliceNetwork

    network = network.network if isinstance(network, SliceNetwork) else network
    networks = network.networks if isinstance(network, FoldAverage) else torch.nn.ModuleList([network])
    return {f"networks.{name}": value for name, value in networks.state_dict().items()}


def _is_of_images(configuration: Configuration) -> bool:
    """Return whether nnU-Net reads the images of a model as 2D images, such as PNG."""
    return configuration.reader == "NaturalImage2DIO"


def _ending(configuration: Configuration) -> str:
    """Return the ending of a model's images, without its dot; an ending that nnU-Net does not read becomes PNG's."""
    if not _is_of_images(configuration):
        return "nii.gz"
    ending = configuration.file_ending
    return ending[1:] if ending in IMAGE2D_ENDINGS else "png"


def _readme(bundle: NnunetBundle, mirror_axes: tuple[int, ...]) -> str:
    configuration, channels = bundle.configuration, len(bundle.channel_names)
    ending = _ending(configuration)
    files = f"IMAGES holds a `.{ending}` file a case."
    if "_0000" in _images(configuration):
        files = f"A case is {channels} files with nnU-Net's numbers: `case_0000.{ending}`, `case_0001.{ending}`."
    notes = []
    if bundle.previous is not None:
        notes.append(
            "The model is a cascade: the labels that the model in `previous` finds, `IMAGE_seg.nii.gz`, are further "
            "channels of its image, so both commands need the same images. IMAGES and RESULTS are whole paths."
        )
    notes += ["MONAI lays and weights windows a little differently from nnU-Net: some voxels get another label."]
    if mirror_axes:
        notes.append(
            "Logits are averaged over mirror images, as nnU-Net does; `--mirror_axes []` leaves that out, which takes "
            f"1/{2 ** len(mirror_axes)} of the time and changes more labels."
        )
    if configuration.region_labels:
        order = ", ".join(one_line(name, 120) for name, _ in configuration.labels)
        notes.append(f"Regions may overlap; a voxel gets the label of the last of those that are there: {order}.")
    return _README.format(
        name=bundle.name,
        version=version("napari-seg"),
        trainer=configuration.trainer or "unknown",
        plans=configuration.plans or "unknown",
        configuration=configuration.name,
        folds=", ".join(fold.removeprefix("fold_") for fold in bundle.folds),
        reader="pillow" if _is_of_images(configuration) else "nibabel",
        files=files,
        commands=_COMMANDS if bundle.previous is None else _COMMANDS_OF_CASCADE,
        notes="\n".join(fill(note, 120, initial_indent="- ", subsequent_indent="  ") for note in notes),
    )


def _metadata(bundle: NnunetBundle) -> dict[str, Any]:
    configuration = bundle.configuration
    regions = [name for name, _ in configuration.labels] if configuration.region_labels else []
    finds = regions or [segment.name for segment in bundle.segments]
    metadata = example_metadata(bundle.name, finds, bundle.modality, bundle.channel_names)
    packages = ("dynamic_network_architectures", "pillow" if _is_of_images(configuration) else "nibabel", "scipy")
    metadata |= {
        "description": bundle.description,
        "authors": "unknown; see the nnU-Net model",
        "copyright": "see LICENSE, or the source of the nnU-Net model",
        "required_packages_version": {package: version(package) for package in packages},
        "napari_seg": {"match": "exact"} | ({} if bundle.previous is None else {PREVIOUS: PREVIOUS}),
    }
    shapes = metadata["network_data_format"]
    names = (bundle.name, bundle.modality, *finds, *bundle.channel_names)
    if acting := next((name for name in names if name.startswith(("$", "@", "%"))), ""):
        text = f"found the name {one_line(acting, 120)!r}, which MONAI would run or look up"
        raise BundleError("bundle.name", f"{text}; expected names that do not begin with $, @ or %")
    for one in (shapes["inputs"]["image"], shapes["outputs"]["pred"]):
        one["spatial_shape"] = _window(configuration)
    if regions:
        channel_def = {str(number): name for number, name in enumerate(regions)}
        shapes["outputs"]["pred"] |= {"num_channels": len(regions), "channel_def": channel_def}
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


def _window(configuration: Configuration) -> list[int]:
    return [*[1] * configuration.is_2d, *configuration.patch_size]


def _images(configuration: Configuration) -> str:
    """Return the expression for the files of all cases; several channels are files with nnU-Net's numbers."""
    count, ending = len(configuration.channel_names), _ending(configuration).removesuffix(".gz")
    if _is_of_images(configuration):
        count = 1 if count == COLOURS else count
    if count == 1:
        return f"$sorted(glob.glob(os.path.join(@dataset_dir, '*.{ending}*')))"
    others = f"[path.replace('_0000.{ending}', '_{{:04d}}.{ending}'.format(n)) for n in range({count})]"
    return f"$[{others} for path in sorted(glob.glob(os.path.join(@dataset_dir, '*_0000.{ending}*')))]"


def _cases(configuration: Configuration) -> str:
    """Return the expression for the files of each case; in a cascade also that of the previous stage's labels."""
    if not configuration.previous_stage:
        return "$[{'image': path} for path in @images]"
    first = "path[0]" if "_0000" in _images(configuration) else "path"
    name = f"os.path.basename({first}).removesuffix('.gz').removesuffix('.nii')"
    labels = f"os.path.join(@previous_dir, {name} + '_seg.nii.gz')"
    return f"$[{{'image': path, '{PREVIOUS}': {labels}}} for path in @images]"


def _decision(configuration: Configuration) -> list[dict[str, Any]]:
    """Return the transforms from logits to labels; of several regions in a voxel, the last one wins."""
    if not configuration.region_labels:
        return [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}]
    labels = "0"
    for channel, label in enumerate(configuration.region_labels):
        labels = f"torch.where(x[[{channel}]] > 0, {label}, {labels})"
    return [
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
        {"_target_": "Lambdad", "keys": "pred", "func": f"$lambda x: {labels}"},
    ]


def _inference(bundle: NnunetBundle, mirror_axes: tuple[int, ...]) -> dict[str, Any]:
    configuration = bundle.configuration
    reader, ending = ("PILReader", ".png") if _is_of_images(configuration) else ("NibabelReader", ".nii.gz")
    is_cascade = bool(configuration.previous_stage)
    keys = ["image", PREVIOUS] if is_cascade else "image"
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/results'",
        **({"previous_dir": f"$@bundle_root + '/{PREVIOUS}/results'"} if is_cascade else {}),
        "images": _images(configuration),
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "mirror_axes": list(mirror_axes),
        "network_of_a_fold": _network(configuration),
        "network_def": {
            "_target_": "scripts.nnunet.NnunetNetwork",
            "networks": ["%network_of_a_fold"] * len(bundle.folds),
            "mirror_axes": "@mirror_axes",
            "sees_slices": configuration.is_2d,
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": keys, "reader": reader},
                {"_target_": "EnsureChannelFirstd", "keys": keys},
                {"_target_": "scripts.nnunet.NnunetPreprocessd", **preprocessing_arguments(configuration)},
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": _window(configuration),
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
                *_decision(configuration),
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_ext": ending,
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": _cases(configuration),
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
