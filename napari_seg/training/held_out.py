"""Run the networks of a fold on the cases that it did not train, by the engine as `predict` runs them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import METADATA
from napari_seg.errors import Cancelled
from napari_seg.formats.nifti import read_nifti
from napari_seg.geometry import Grid
from napari_seg.inference.options import SegmentOptions
from napari_seg.memory import default_budget
from napari_seg.training.history import RUN
from napari_seg.volume import Segmentation, Volume

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

    from napari_seg.inference.settings import RegionSettings

_OPTIONS = SegmentOptions(match="exact", precision="float32", backend="torch")
"""Windows as the configs lay them; the number format becomes that of the evaluation of a fold."""


def labels_file(root: Path, case: str) -> Path:
    """Return the file of the labels that the first stage of a cascade found in a case of its training.

    Args:
        root: folder of the second stage's bundle.
        case: name of the case.
    """
    return root / RUN / "previous" / f"{case}_seg.nii.gz"


class HeldOut:
    """The validation cases of a fold, and the networks of this fold; used within `with_segnets`.

    Attributes:
        bundles: configuration -> its bundle.
        cases: name -> index in `dataset`.
        dataset: the cases as the evaluation reads them, on the grids of their files.
        parser: `evaluate.yaml` of the first configuration.
        budget: highest memory that the process may use.
    """

    def __init__(
        self,
        data: Path,
        folders: Mapping[str, Path],
        fold: int,
        folds: int,
        stop_file: Path,
        values_of: Mapping[str, Mapping[str, Any]],
        **values: Any,
    ) -> None:
        """Read the cases, and what the bundles declare.

        Args:
            data: folder of the data set.
            folders: configuration -> folder of its bundle, whose folds are finished.
            fold: index of the fold.
            folds: number of folds.
            stop_file: file that stops the work.
            values_of: configuration -> values of this start for the evaluation of its folds, see `window_values`.
            values: further values of `evaluate.yaml`.
        """
        parser = _evaluation(next(iter(folders.values())))
        values |= {"dataset_dir": str(data), "fold": fold, "folds": folds}
        values["preprocessing#transforms"] = parser["preprocessing#transforms"][:1]  # reads the image
        for name, value in values.items():
            parser[name] = value
        self.parser = parser
        self.dataset = parser.get_parsed_content("dataset")
        self.cases = {case["name"]: number for number, case in enumerate(self.dataset.data)}
        self.bundles = {name: read_bundle(folder, trust=True) for name, folder in folders.items()}  # planned here
        self.budget = default_budget()
        self._folders, self._fold, self._stop_file, self._values_of = folders, fold, stop_file, values_of
        self._settings: dict[str, RegionSettings] = {}

    def read(self, case: str) -> tuple[dict[str, Any], Volume]:
        """Return what the evaluation reads of a case, and its image."""
        data = self.dataset[self.cases[case]]
        image = data["image"]
        return data, Volume(np.asarray(image), Grid(tuple(image.shape[1:]), np.asarray(image.affine)))

    def settings(self, name: str, case: str, volume: Volume) -> RegionSettings:
        """Return how the fold's network of a configuration is run on a case; the model is loaded once."""
        from napari_seg.inference.members import one_network
        from napari_seg.inference.settings import set_up

        if name not in self._settings:
            options = replace(_OPTIONS, memory_bytes=self.budget)
            settings = set_up(volume, self.bundles[name], options, self.on_step)
            settings = replace(settings, model=one_network(settings.model, self._fold))
            self._settings[name] = _as_evaluated(settings, self._values_of.get(name, {}))
        previous = None
        if self.bundles[name].previous is not None:
            found = read_nifti(labels_file(self._folders[name], case))
            previous = Segmentation(found.array[0].astype(np.uint16), found.grid, ())
        settings = self._settings[name]
        return replace(settings, previous=previous, notices=[], run={}, began=time.perf_counter())

    def on_step(self, stage: str, done: int, total: int) -> None:
        """Stop if the file appeared; a `Progress`.

        Raises:
            Cancelled: `run.stopped`.
        """
        check_stop(self._stop_file)


def check_stop(stop_file: Path) -> None:
    """Stop, and remove the file that stops the work, if it is there.

    Raises:
        Cancelled: `run.stopped`.
    """
    if stop_file.exists():
        stop_file.unlink()
        text = "stopped; the finished cases are kept; run the same command again to continue"
        raise Cancelled("run.stopped", text)


def _evaluation(root: Path) -> ConfigParser:
    """Return the config that evaluates a fold of a bundle."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "evaluate.yaml"))
    parser.read_meta(str(root / METADATA))
    return parser


def _as_evaluated(settings: RegionSettings, values: Mapping[str, Any]) -> RegionSettings:
    """Return settings with the windows and the number format in which the folds of a configuration are evaluated.

    Args:
        settings: of the configuration; used within `with_segnets`.
        values: of this start, see `window_values`.
    """
    import torch
    from segnets.training import amp_dtype

    from napari_seg.inference.inferer import window_settings

    parser = _evaluation(settings.bundle.root)
    for name, value in values.items():
        parser[name] = value
    amp, inferer = parser.get_parsed_content("amp"), parser.get_parsed_content("inferer")
    dtype = amp_dtype(amp, settings.model.device) if amp else torch.float32
    model = replace(settings.model, inferer=inferer, dtype=dtype)
    return replace(settings, model=model, windows=window_settings(inferer))
