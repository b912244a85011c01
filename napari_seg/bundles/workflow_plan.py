"""Overrides for the inference config of a bundle that MONAI runs; found from plain data, nothing runs here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_seg.bundles.config.read import inference_config, merged_config, read_config
from napari_seg.bundles.config.references import resolved
from napari_seg.bundles.dimensions import REFERENCE_KEYS
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import BundleError, one_line

RUN_IDS = ("run", "evaluating", "inference")
"""Ids of the expressions that run a config, the first one that it has counts."""

_EVALUATOR = "evaluator"
_READERS = {"LoadImaged", "LoadImageD", "LoadImageDict"}
_WRITERS = {"SaveImaged", "SaveImageD", "SaveImageDict", "SegmentationSaver"}

_MAX_LINE = 300


@dataclass(frozen=True)
class WorkflowPlan:
    """Overrides that napari-seg passes to a config, found from its plain data.

    Attributes:
        run_id: id of the expression that segments; "" if only the evaluator is there.
        data_id: id of the list of cases.
        image_keys: keys under which a case holds its images.
        label_keys: keys under which a case holds reference label maps.
        writers: ids of writers whose files may be the result.
        other_writers: ids of writers of images and reference label maps.
        loaders: ids of data loaders, and the entries that only hold for several processes.
        ids: ids at the top of the config.
    """

    run_id: str
    data_id: str
    image_keys: tuple[str, ...]
    label_keys: tuple[str, ...]
    writers: tuple[str, ...]
    other_writers: tuple[str, ...]
    loaders: dict[str, dict[str, Any]]
    ids: frozenset[str]

    def overrides(self, case: dict[str, Any], root: Path, folder: Path, device: Any) -> dict[str, Any]:
        """Return the entries that differ from the config: places, the case and the device, and nothing else.

        Args:
            case: key -> file or files of the case.
            root: the bundle's root.
            folder: folder of this run.
            device: device of torch.
        """
        places = {"bundle_root": str(root), "dataset_dir": str(folder / "images"), "output_dir": str(folder / "result")}
        found: dict[str, Any] = {id: value for id, value in places.items() if id in self.ids}
        found |= {"device": device} if "device" in self.ids else {}
        found |= {f"{id}::output_dir": str(folder / "result") for id in self.writers}
        found |= {f"{id}::output_dir": str(folder / "other") for id in self.other_writers}
        for id, entries in self.loaders.items():
            found |= {f"{id}::{name}": value for name, value in entries.items()}
        if not self.run_id:
            found[RUN_IDS[0]] = [f"$@{_EVALUATOR}.run()"]
        return found | {self.data_id: [case]}


def plan_workflow(bundle: Bundle) -> WorkflowPlan:
    """Return what a bundle's config is told; nothing is evaluated.

    Raises:
        BundleError: `bundle.workflow`, the config has no place for a case, nothing that runs, or no reader of images;
            `bundle.config`, it can't be read.
    """
    path = inference_config(bundle.root)
    try:
        config = merged_config(read_config(path))
    except Exception as error:  # a damaged file can raise anything
        cause = one_line(f"{type(error).__name__}: {error}", _MAX_LINE)
        text = f"{path.name} of bundle {bundle.root.name!r} can't be read ({cause}); expected a MONAI config"
        raise BundleError("bundle.config", text) from error
    run_id = next((id for id in RUN_IDS if id in config), "")
    components = list(_components(config))
    datasets = [id for id, name, entry in components if name.endswith("Dataset") and "data" in entry]
    keys = [
        key
        for _, name, entry in components
        if name in _READERS
        for key in _listed(config, entry.get("keys"))
        if isinstance(key, str)
    ]
    keys = list(dict.fromkeys(keys))
    writers = {id: _listed(config, entry.get("keys")) for id, name, entry in components if name in _WRITERS}
    others = {id for id, saved in writers.items() if saved and all(key in {*keys, *REFERENCE_KEYS} for key in saved)}
    missing = [
        what
        for what, is_there in (
            (f"none of the ids {', '.join(RUN_IDS)}, {_EVALUATOR}", bool(run_id) or _EVALUATOR in config),
            ("no Dataset with data", bool(datasets)),
            ("no LoadImaged with keys", any(key not in REFERENCE_KEYS for key in keys)),
        )
        if not is_there
    ]
    if len(datasets) > 1 and "dataset" not in datasets:
        missing.append(f"several data sets ({', '.join(datasets)})")
    if missing:
        raise BundleError(
            "bundle.workflow",
            f"{path.name} of bundle {bundle.root.name!r} has {' and '.join(missing)}, so it is unclear which scan "
            "to segment; expected one Dataset, read by LoadImaged and run by an evaluator; run it with MONAI",
        )
    return WorkflowPlan(
        run_id=run_id,
        data_id=("dataset" if "dataset" in datasets else datasets[0]) + "::data",
        image_keys=tuple(key for key in keys if key not in REFERENCE_KEYS),
        label_keys=tuple(key for key in keys if key in REFERENCE_KEYS),
        writers=tuple(id for id in writers if id not in others),
        other_writers=tuple(sorted(others)),
        loaders={id: _in_this_process(entry) for id, name, entry in components if name.endswith("DataLoader")},
        ids=frozenset(config),
    )


def _components(config: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield id, name and entry of all components of a config, in its order."""
    waiting: list[tuple[str, Any]] = [(str(key), value) for key, value in reversed(config.items())]
    seen: set[int] = set()
    while waiting:
        place, value = waiting.pop()
        if not isinstance(value, dict | list) or id(value) in seen:
            continue
        seen.add(id(value))  # aliases in YAML can repeat one entry any number of times
        if isinstance(value, dict) and "_target_" in value:
            yield place, str(value["_target_"]).rpartition(".")[2], value
        inner: Sequence[tuple[Any, Any]] = list(value.items() if isinstance(value, dict) else enumerate(value))
        waiting += [(f"{place}::{key}", one) for key, one in reversed(inner)]


def _in_this_process(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a data loader that reads in its own process."""
    several = {"num_workers": 0, "persistent_workers": False, "prefetch_factor": None}
    return {name: value for name, value in several.items() if name in entry}


def _listed(config: dict[str, Any], value: Any) -> list[Any]:
    """Return the values of an argument that holds one value or several, with references resolved."""
    value = resolved(config, value)
    values = value if isinstance(value, list) else [value]
    return [resolved(config, one) for one in values if one is not None]
