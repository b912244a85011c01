"""Cases are written once, verified, and nowhere else than into the folder of the data set."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from gathering import gathered, write
from PIL import Image

from napari_seg.errors import OutputError
from napari_seg.training.gather.gather import gather
from napari_seg.training.segnets_modules import with_segnets


def test_the_next_start_converts_what_changed_only(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p1/seg.nrrd", "p2/ct.nrrd", "p2/seg.nrrd")
    lines: list[str] = []
    into = tmp_path / "out"
    with with_segnets():
        gather(root, into, {}, lines.append)
        before = {path: path.stat().st_mtime_ns for path in into.rglob("*.nii.gz")}
        gather(root, into, {}, lines.append)
        assert {path: path.stat().st_mtime_ns for path in into.rglob("*.nii.gz")} == before
        (into / "labelsTr" / "p1_ct.nii.gz").unlink()
        write(root, "p2/ct.nrrd")
        gather(root, into, {}, lines.append)
        after = {path: path.stat().st_mtime_ns for path in into.rglob("*.nii.gz")}
        assert {path.name for path in after if after[path] != before[path]} == {"p1_ct.nii.gz", "p2_ct.nii.gz"}
        (root / "p1" / "seg.nrrd").unlink()
        gather(root, into, {}, lines.append)
    assert sorted(path.name for path in into.rglob("*.nii.gz")) == ["p2_ct.nii.gz"] * 2
    assert [line.split(" of ")[0] for line in lines] == ["converting 2", "converting 2"]


@pytest.mark.parametrize("listed", ["../thesis.docx", "{root}/thesis.docx", "imagesTr/../../thesis.docx"])
def test_a_record_from_elsewhere_removes_no_file(tmp_path: Path, listed: str) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p1/seg.nrrd")
    into = tmp_path / "data"
    (into / "imagesTr").mkdir(parents=True)
    (tmp_path / "thesis.docx").touch()
    case = {"key": "0", "files": [listed.format(root=tmp_path)], "channels": [], "notices": [], "empty": False}
    (into / "gathered.json").write_text(json.dumps({"version": 1, "cases": {"x": case}, "labels": {}}))
    with with_segnets():
        gather(root, into, {})
    assert (tmp_path / "thesis.docx").is_file()
    assert (into / "dataset.json").is_file()


@pytest.mark.parametrize("link", ["data", "data/imagesTr", "data/labelsTr"])
def test_no_case_is_written_through_a_link(tmp_path: Path, link: str) -> None:
    root = write(tmp_path / "a", "p1/ct.nrrd", "p1/seg.nrrd")
    mine = write(tmp_path / "mine", "imagesTr/p1_ct.nii.gz", "labelsTr/p1_ct.nii.gz", "p1_ct.nii.gz")
    before = {path: path.read_bytes() for path in mine.rglob("*.gz")}
    (tmp_path / link).parent.mkdir(exist_ok=True)
    try:
        (tmp_path / link).symlink_to(mine, target_is_directory=True)
    except OSError:
        pytest.skip("this system allows no links")
    with with_segnets(), pytest.raises(OutputError, match="is a link to another folder"):
        gather(root, tmp_path / "data", {})
    assert {path: path.read_bytes() for path in mine.rglob("*.gz")} == before


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 1)])
def test_single_slices_become_2d_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for folder, dtype in (("images", np.int16), ("labels", np.uint8)):
        (tmp_path / "a" / folder).mkdir(parents=True)
        array = (np.arange(np.prod(shape)).reshape(shape) % 3).astype(dtype) - (folder == "images")
        nibabel.save(nibabel.Nifti1Image(array.astype(dtype), np.eye(4)), tmp_path / "a" / folder / "x.nii.gz")
    found, description = gathered(tmp_path / "a")
    assert found is not None
    (entry,) = description["training"]
    assert entry == {"image": "./imagesTr/x.tif", "label": "./labelsTr/x.png"}
    expected = np.arange(42).reshape(7, 6).T % 3
    assert np.array_equal(np.asarray(Image.open(found.folder / entry["label"])), expected)
    assert np.array_equal(np.asarray(Image.open(found.folder / entry["image"])), expected - 1)
