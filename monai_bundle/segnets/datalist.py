"""Which cases a run trains on, which it never sees, and which it segments."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from monai.data import load_decathlon_datalist, partition_dataset

Part = Literal["training", "validation", "all"]


def bundle_root() -> str:
    """The folder that holds this bundle's `configs/`, `models/` and `segnets/`."""
    return str(Path(__file__).resolve().parents[1])


def datalist(dataset_dir: str | Path, part: Part, validation_share: float = 0.2, seed: int = 0) -> list[dict[str, str]]:
    """The cases of one part of a Medical Segmentation Decathlon folder, as MONAI's data list.

    The split depends on the order of the cases in `dataset.json`, the share and the seed alone, so that
    training, evaluation and inference agree on it.

    Args:
        dataset_dir: folder with `dataset.json`, `imagesTr/` and `labelsTr/`.
        part: "training" (80 %), "validation" (20 %, never trained on) or "all".
        validation_share: share of the cases kept for validation.
        seed: of the shuffle before the split.

    Returns:
        One `{"image": path, "label": path}` a case.

    Raises:
        FileNotFoundError: there is no `dataset.json` in the folder.
    """
    source = Path(dataset_dir) / "dataset.json"
    if not source.is_file():
        raise FileNotFoundError(
            f"no dataset.json in {dataset_dir}: --dataset_dir expects a Medical Segmentation Decathlon folder "
            "(dataset.json, imagesTr/, labelsTr/)"
        )
    cases = load_decathlon_datalist(str(source), data_list_key="training", base_dir=str(dataset_dir))
    if part == "all":
        return cases
    training, validation = partition_dataset(
        cases, ratios=[1 - validation_share, validation_share], shuffle=True, seed=seed
    )
    return training if part == "training" else validation


def images(dataset_dir: str | Path) -> list[dict[str, str]]:
    """Every NIfTI image of a folder, as MONAI's data list, by name.

    Args:
        dataset_dir: holds the images itself, or in an `imagesTs/` or else an `imagesTr/`.

    Raises:
        FileNotFoundError: there is no NIfTI image.
    """
    root = Path(dataset_dir)
    for folder in (root / "imagesTs", root / "imagesTr", root):
        found = sorted(p for p in folder.glob("*.nii*") if p.name.endswith((".nii", ".nii.gz")) and p.name[0] != ".")
        if found:
            return [{"image": str(path)} for path in found]
    raise FileNotFoundError(f"no .nii or .nii.gz in {dataset_dir}, its imagesTs/ or its imagesTr/")
