"""Write a planned bundle to disk: a complete bundle, derived from the shipped one."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from napari_seg.bundles.nnunet.as_bundle import NNUNET
from napari_seg.bundles.read import shipped_root
from napari_seg.bundles.spec import METADATA
from napari_seg.errors import BundleError, offered
from napari_seg.training.choices import ALL, IGNORE, PART, SOFT, Choices, check_names
from napari_seg.training.fingerprint import Fingerprint
from napari_seg.training.plan import TrainingPlan

CONFIGS = ("train", "evaluate", "inference")
_OF_COMMANDS = ("multi_gpu_train", "compare_largest")
"""Files that are merged over a config by a command of their own."""
CASCADE = "cascade"
"""Option of the second stage of a cascade, which `Choices.previous` chooses."""
PLAN = "plan.json"


def networks() -> list[str]:
    """Return the values of `--network`; call it within `with_segnets`."""
    import segnets

    found = [name for name in segnets.__all__ if "spatial_dims" in _parameters(getattr(segnets, name))]
    return [name for name in found if name != NNUNET]


def _parameters(network: Any) -> Any:
    return inspect.signature(network).parameters


def chosen_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the network that the user set as `network_def#NAME`."""
    plain = {name.removeprefix("+").replace("::", "#"): value for name, value in settings.items()}
    prefix = "network_def#"
    return {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}


def check_arguments(choices: Choices) -> None:
    """Check that the network has the arguments that the user set; call it within `with_segnets`.

    Raises:
        BundleError: `bundle.setting`.
    """
    import segnets
    from segnets.encoder import ResidualEncoder

    name = choices.network or "UNet"
    known, chosen = [*_parameters(getattr(segnets, name))], chosen_arguments(choices.settings)
    if "encoder_options" in known:  # which are further arguments
        known = list(dict.fromkeys([*known, *_parameters(ResidualEncoder)]))
        known.remove("encoder_options")
    if "_target_" in chosen:  # a network of the user
        return
    for argument in (one.partition("#")[0] for one in chosen):
        if argument not in known and not argument.startswith("_"):
            text = f"found network_def#{argument} in --set, which is no argument of {name}{offered(argument, known)}"
            raise BundleError("bundle.setting", text)


def options() -> dict[str, Path]:
    """Return the option files, by the name that `--option` takes."""
    return {name: path for name, path in _option_files().items() if name != CASCADE}


def _option_files() -> dict[str, Path]:
    files = sorted((shipped_root() / "configs").rglob("*.yaml"))
    return {path.stem: path for path in files if path.stem not in (*CONFIGS, *_OF_COMMANDS)}


def class_names(classes: dict[str, Any], regions: bool = False) -> list[str]:
    """Return the names of the network's output channels, background first unless they are regions.

    Args:
        classes: name -> label values; those of "background" and "ignore" have no class of their own.
        regions: the classes may overlap.
    """
    names = [name for name in classes if name not in ("background", IGNORE)]
    return names if regions else ["background", *names]


def region_rule(names: Sequence[str], regions: Mapping[str, int]) -> str:
    """Return the expression in a config that makes one label map of the masks of regions.

    `napari_seg.bundles.lambdas.label_rule` reads it back.

    Args:
        names: names of the network's channels.
        regions: name -> label, in ascending order of precedence.
    """
    rule = "0"
    for name, label in regions.items():
        rule = f"torch.where(x[[{names.index(name)}]] > 0, {label}, {rule})"
    return f"$lambda x: {rule}"


def write_bundle(
    root: Path,
    name: str,
    plan: TrainingPlan,
    found: Fingerprint,
    classes: dict[str, Any],
    choices: Choices,
    regions: Mapping[str, int] | None = None,
) -> None:
    """Write configs, metadata, documents and modules of a bundle; the weights come from training.

    Args:
        root: folder of the bundle; created if missing.
        name: title of the bundle.
        plan: planned settings.
        found: fingerprint of the data set.
        classes: name -> label values, in the order of the network's channels.
        choices: choices of the user; their settings override the plan.
        regions: name -> label in results, in ascending order of precedence; empty or None: classes do not overlap.

    Raises:
        BundleError: `bundle.option`, unknown option; `bundle.setting`, unknown config id; `bundle.name`;
            `bundle.network`, the network can't be built with these arguments.
    """
    check_names([name, *classes, *found.channels])
    shipped = shipped_root()
    root.mkdir(exist_ok=True)
    shutil.copytree(shipped / "segnets", root / "segnets", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(shipped / "configs", root / "configs")
    shutil.copy(shipped / "LICENSE", root / "LICENSE")
    for folder in ("docs", "models"):
        (root / folder).mkdir()
    regions = regions or {}
    names = class_names(classes, bool(regions))
    _write_configs(root / "configs", plan, found, classes, choices, region_rule(names, regions) if regions else "")
    trained_on = f"{found.trained_on} of " if choices.folds is None else ""  # the folds together see all
    how_many = f"{trained_on}{found.cases} cases"
    metadata = _metadata(name, plan, found, names, how_many, regions)
    if choices.network == NNUNET:
        metadata["napari_seg"] = {"match": "exact"}  # as it was trained
        if part := {key: choices.fine_tune[key] for key in PART if key in choices.fine_tune}:
            metadata["napari_seg"]["part_of"] = part
        metadata["required_packages_version"] |= {p: version(p) for p in ("dynamic_network_architectures", "scipy")}
    (root / METADATA).write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")
    (root / "docs" / "data_license.txt").write_text(_DATA_LICENSE, encoding="utf-8")
    readme = _README.format(name=name, description=metadata["description"], classes=metadata["label_classes"])
    if choices.folds is not None:
        readme = readme.replace(*_EVALUATED_ON_OTHERS)
        readme += _README_OF_FOLDS.format(folds=choices.folds)
    if choices.settings.get("fold") == ALL:
        readme = readme.replace(*_EVALUATED_ON_OTHERS).replace("training/model.pt", "training/model_final.pt")
        readme += _README_OF_ALL
    if choices.previous:
        readme += _README_OF_CASCADE
    if found.is_2d or len(found.channels) > 1:
        readme = readme.replace("predict SCAN", "predict IMAGE" if found.is_2d else "predict FOLDER_WITH_ALL_IMAGES")
    (root / "docs" / "README.md").write_text(readme, encoding="utf-8")
    _build_network(root)


def network_definition(plan: TrainingPlan, found: Fingerprint, choices: Choices) -> dict[str, Any]:
    """Return `network_def` of the configs, with the planned arguments that differ from the network's defaults."""
    import segnets

    name = choices.network or "UNet"
    known = _parameters(getattr(segnets, name))
    defaults = {argument: _as_list(known[argument].default) for argument in plan.network}
    definition: dict[str, Any] = {
        "_target_": f"segnets.{name}",
        "spatial_dims": plan.dims,
        "in_channels": len(found.channels),
        "out_channels": "@num_classes",
    }
    definition |= {argument: value for argument, value in plan.network.items() if value != defaults[argument]}
    if "window" in known:
        definition["window"] = max(choices.settings.get("patch_size", plan.settings["patch_size"]))
    return definition


def input_channels(found: Fingerprint, choices: Choices, outputs: int) -> int:
    """Return the channels of the network's image; those of the second stage of a cascade include a mask of each class.

    Args:
        found: fingerprint of the data set.
        choices: choices of the user.
        outputs: number of classes, background included.
    """
    return len(found.channels) + (outputs - 1 if choices.previous else 0)


def _as_list(value: Any) -> Any:
    return list(map(_as_list, value)) if isinstance(value, tuple | list) else value


def planned_network(plan: TrainingPlan, found: Fingerprint, choices: Choices, outputs: int) -> Any:
    """Build the network of a plan that is not written yet."""
    from monai.bundle import ConfigParser

    definition = network_definition(plan, found, choices) | {"in_channels": input_channels(found, choices, outputs)}
    parser = ConfigParser({"network_def": definition, "num_classes": outputs})
    _update(parser, {name: value for name, value in choices.settings.items() if _top(name) == "network_def"})
    return parser.get_parsed_content("network_def")


def _build_network(root: Path) -> None:
    """Check that the network of the written config can be built."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.yaml"))
    parser.read_meta(str(root / METADATA))
    try:
        parser.get_parsed_content("network_def")
    except Exception as error:  # a network may raise any error for unsuitable arguments
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        network = parser["network_def"]
        raise BundleError(
            "bundle.network", f"the network can't be built ({cause}); its network_def is {network}"
        ) from error


def _write_configs(
    folder: Path, plan: TrainingPlan, found: Fingerprint, classes: dict[str, Any], choices: Choices, region_rule: str
) -> None:
    import yaml
    from monai.bundle import ConfigParser

    if "labels" in map(_top, choices.settings):
        raise BundleError("bundle.setting", "found --set labels; expected the meaning of the label values in --labels")
    known = _option_files()
    unknown = [name for name in choices.options if name not in options()]
    if unknown:
        raise BundleError("bundle.option", f"found option {unknown[0]!r}{offered(unknown[0], options())}")
    used = _in_order(plan.options, choices.options)
    settings = {name: value for name, value in plan.settings.items() if name != "normalisation"}
    settings |= {"labels": classes} | choices.settings
    network_def = network_definition(plan, found, choices)
    ids: set[str] = set()
    for config in CONFIGS:
        path = folder / f"{config}.yaml"
        parser = ConfigParser(ConfigParser.load_config_file(path))
        parser["network_def"] = dict(network_def)
        for option in used:
            values = ConfigParser.load_config_file(known[option])
            _update(parser, values if config == "train" else _shared(values, set(parser.get())))
        _update(parser, {name: value for name, value in settings.items() if _top(name) in parser.get()})
        if region_rule and config == "inference":
            parser.get()["decision"]["transforms"][-1]["func"] = region_rule
        if "preprocessing" not in choices.settings:
            _set_normalisation(parser.get()["preprocessing"]["transforms"], plan.settings["normalisation"])
        if config == "evaluate" and choices.folds is not None:
            parser.get()["imports"].append("$import sys")
            parser.get()["initialize"].append(ONLY_OTHERS)
        ids |= set(parser.get())
        comment = f"# Made by napari-seg train from its own {path.name}; ../{PLAN} says why. "
        text = yaml.safe_dump(parser.get(), sort_keys=False, width=120, default_flow_style=None)
        path.write_text(comment + f"Options: {', '.join(used) or 'none'}.\n" + text, encoding="utf-8")
    if unknown_ids := [name for name in choices.settings if _top(name) not in ids]:
        wrong = unknown_ids[0]
        raise BundleError("bundle.setting", f"found id {wrong!r} in --set{offered(_top(wrong), sorted(ids))}")


def _in_order(planned: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Return the planned and the chosen options in the order of merging: a chosen loss replaces that of the labels."""
    of_labels = [name for name in ("regions", SOFT) if name in (*planned, *chosen)]
    return list(dict.fromkeys([*(name for name in planned if name not in of_labels), *of_labels, *chosen]))


def change_training(root: Path, values: dict[str, Any] | str) -> None:
    """Change values of a written train.yaml.

    Args:
        root: folder of the bundle.
        values: config id -> value, or the name of an option.
    """
    import yaml
    from monai.bundle import ConfigParser

    path = root / "configs" / "train.yaml"
    comment = path.read_text(encoding="utf-8").partition("\n")[0]
    parser = ConfigParser(ConfigParser.load_config_file(path))
    _update(parser, ConfigParser.load_config_file(options()[values]) if isinstance(values, str) else values)
    text = yaml.safe_dump(parser.get(), sort_keys=False, width=120, default_flow_style=None)
    path.write_text(f"{comment}\n{text}", encoding="utf-8")


def fine_tuning_rate(used: Iterable[str]) -> float:
    """Return a tenth of the learning rate in train.yaml or, if set there, in the last of the used options."""
    from monai.bundle import ConfigParser

    rate = ConfigParser.load_config_file(shipped_root() / "configs" / "train.yaml")["learning_rate"]
    known = options()
    for option in used:
        rate = ConfigParser.load_config_file(known[option]).get("learning_rate", rate) if option in known else rate
    return float(rate) / 10


def _top(name: str) -> str:
    return name.removeprefix("+").replace("::", "#").partition("#")[0]


def _update(parser: Any, values: dict[str, Any]) -> None:
    """Set ids in a parser as MONAI does when it merges files."""
    from monai.bundle.utils import merge_kv

    for name, value in values.items():
        merge_kv(parser, name, value)


def _shared(values: dict[str, Any], ids: set[str]) -> dict[str, Any]:
    """Return the values of an option that apply to a config with these ids, with the values that they refer to."""
    applying = {name for name in values if _top(name) in ids}
    while referenced := {
        name
        for name in values.keys() - applying
        if any(re.search(rf"@{_top(name)}\b", json.dumps(values[other])) for other in applying)
    }:
        applying |= referenced
    return {name: value for name, value in values.items() if name in applying}


def _set_normalisation(transforms: list[dict[str, Any]], normalisation: dict[str, Any]) -> None:
    for transform in transforms:
        if transform["_target_"].endswith("NormalizeIntensityd"):
            transform.clear()
            transform.update(normalisation)


ONLY_OTHERS = (
    "$@part == 'all' or @network_def#_target_ != 'segnets.Ensemble' or sys.exit('evaluation.seen: part is ' + @part + "
    "', but every case of the data set that the folds were made of has trained all of them but one; expected a data "
    "set of other patients and --part all; the scores of the cross-validation are in configs/metadata.json')"
)
"""Line in evaluate.yaml of an ensemble of folds: refuses to evaluate it on its own training cases."""


def _metadata(
    name: str,
    plan: TrainingPlan,
    found: Fingerprint,
    names: list[str],
    how_many: str,
    regions: Mapping[str, int],
) -> dict[str, Any]:
    """Return the metadata; authors, source and licence of the data are "not stated", for the owner to fill in."""
    metadata = json.loads((shipped_root() / METADATA).read_text(encoding="utf-8"))
    metadata.pop("napari_seg", None)
    classes = names if regions else names[1:]
    labels = {"background": 0, **regions} if regions else {label: number for number, label in enumerate(names)}
    listed = ", ".join(f"{number} {label}" for label, number in labels.items())
    kind = " of regions, each with a sigmoid" if regions else ""
    metadata |= {
        "version": "0.1.0",
        "changelog": {"0.1.0": "planned and trained by napari-seg"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {p: version(p) for p in ("nibabel", "pytorch-ignite", "tensorboard")},
        "name": name,
        "task": f"Segmentation of {', '.join(classes)}",
        "description": f"Finds {', '.join(classes)} in images of {', '.join(found.channels)}; trained on {how_many} "
        "by napari-seg's plan.",
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": "not stated",
        "data_type": "2D images" if found.is_2d else "nifti",
        "image_classes": ", ".join(found.channels),
        "label_classes": listed,
        "pred_classes": f"{len(names)} channels of logits{kind}: {', '.join(names)}",
        "eval_metrics": {},
        "intended_use": "Research only; not a medical device",
        "references": [],
    }
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    image["modality"] = found.modality
    image["num_channels"], pred["num_channels"] = len(found.channels), len(names)
    image["spatial_shape"] = pred["spatial_shape"] = list(plan.settings["patch_size"])
    image["channel_def"] = {str(n): channel for n, channel in enumerate(found.channels)}
    pred["channel_def"] = {str(n): label for n, label in enumerate(names)}
    return metadata


_DATA_LICENSE = """Before you share this bundle, state here: the data on which its weights were trained, who holds the
rights in the data, the licence of the data, and the licence of these weights.
"""

_README = """# {name}

{description} Classes: {classes}.

```bash
napari-seg predict SCAN --model . --trust -o results
python -m monai.bundle run training   --config_file configs/train.yaml     --dataset_dir DATASET --output_dir training
python -m monai.bundle run evaluating --config_file configs/evaluate.yaml  --dataset_dir DATASET --output_dir evaluation
python -m monai.bundle run inference  --config_file configs/inference.yaml --dataset_dir FOLDER  --output_dir results
```

`evaluating` and `inference` use `models/model.pt`; `--checkpoint training/model.pt` selects the weights of the
`training` command above.

`plan.json` gives each setting with its reason. Before you share the bundle, fill in `docs/data_license.txt`, and
authors, copyright and data_source in `configs/metadata.json`, and delete `training/` and, if it is there, `data/`: they
contain images of the data set.
"""

_README_OF_FOLDS = """
The network is the ensemble of {folds} folds. Each case of DATASET trained all networks but one, so the ensemble must be
evaluated on OTHERS, a data set of other patients. The Dice of the folds on their validation cases is in
`configs/metadata.json` (eval_metrics); it is slightly optimistic, because these cases also selected the best epoch.
"""

_README_OF_ALL = """
All cases of DATASET have trained the network, so it must be evaluated on OTHERS, a data set of other patients.
"""

_EVALUATED_ON_OTHERS = (
    "--dataset_dir DATASET --output_dir evaluation",
    "--dataset_dir OTHERS  --part all --output_dir evaluation",
)

_README_OF_CASCADE = """
The bundle is a cascade. The folder `previous` is the bundle of its first stage, a network at a lower resolution whose
labels are further channels of the image here; before you share the bundle, fill in the same files there. `napari-seg
predict` runs both. With MONAI's command, first run `inference` in `previous`, and then name its results,
`<image>_seg.nii.gz`, by `--previous_dir` in every command here:

```bash
cd previous
python -m monai.bundle run inference --config_file configs/inference.yaml --dataset_dir FOLDER --output_dir ../labels
cd ..
python -m monai.bundle run inference --config_file configs/inference.yaml --dataset_dir FOLDER --output_dir results \
    --previous_dir labels
```
"""
