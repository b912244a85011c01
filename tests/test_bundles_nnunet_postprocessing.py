"""The steps on label maps that nnU-Net chose by cross-validation, read as plain data."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from nnunet_models import write_model

from napari_seg.bundles.nnunet.postprocessing import KEEP_LARGEST, read_postprocessing
from napari_seg.bundles.read import read_bundle
from napari_seg.errors import BundleError


def write_steps(folder: Path, *labels: Any, name: str = KEEP_LARGEST) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "postprocessing_fns": [name] * len(labels),
        "postprocessing_kwargs": [{"labels_or_regions": one} for one in labels],
    }
    path = folder / "postprocessing.json"
    path.write_text(json.dumps(content))
    return path


def test_steps_keep_their_order(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    write_steps(root / "crossval_results_folds_0_1_2_3_4", [1, 2], 2, [[1, 2], 3])
    assert read_postprocessing(read_bundle(root)) == ((1, 2), (2,), (1, 2, 3))


def test_the_file_of_the_averaged_folds_is_taken(tmp_path: Path) -> None:
    root = write_model(tmp_path, folds=(0, 1))
    write_steps(root / "crossval_results_folds_0_1", 1)
    write_steps(root / "crossval_results_folds_0_1_2_3_4", 2)
    assert read_postprocessing(read_bundle(root)) == ((1,),)
    with pytest.raises(BundleError, match="2 files") as refused:
        read_postprocessing(read_bundle(f"{root}@1"))
    assert refused.value.code == "bundle.no_postprocessing"


def test_an_ensemble_has_a_file_of_its_own(tmp_path: Path) -> None:
    roots = [write_model(tmp_path, name) for name in ("3d_fullres", "3d_lowres")]
    names = "___".join(root.name for root in roots)
    write_steps(roots[0].parent / "ensembles" / f"ensemble___{names}___0_1_2_3_4", 1)
    ensemble = read_bundle(f"{roots[0].parent}:3d_lowres+3d_fullres")
    assert read_postprocessing(ensemble) == ((1,),)


def test_a_model_without_steps_and_a_pickle_are_refused(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    folder = root / "crossval_results_folds_0"
    folder.mkdir()
    (folder / "postprocessing.pkl").write_bytes(pickle.dumps(([print], [{}])))
    with pytest.raises(BundleError) as refused:
        read_postprocessing(read_bundle(root))
    assert refused.value.code == "bundle.no_postprocessing"


@pytest.mark.parametrize(
    "steps", [(0,), (-1,), (True,), ("1",), ([],), (10**9,), (1.5,), ([[[[None]]]],), tuple(range(1, 2000))]
)
def test_steps_that_nnunet_does_not_write_are_refused(tmp_path: Path, steps: tuple) -> None:
    root = write_model(tmp_path)
    write_steps(root / "crossval_results_folds_0", *steps)
    with pytest.raises(BundleError) as refused:
        read_postprocessing(read_bundle(root))
    assert refused.value.code == "bundle.nnunet"


def test_a_step_by_another_name_is_refused(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    path = write_steps(root / "crossval_results_folds_0", 1, name="os.system")
    for text in (path.read_text(), "[" * 100_000, "{}", "[]"):
        path.write_text(text)
        with pytest.raises(BundleError) as refused:
            read_postprocessing(read_bundle(root))
        assert refused.value.code == "bundle.nnunet"
