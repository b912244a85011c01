"""Label maps of data sets are no scans; other files are, whatever their values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import phantoms
import pytest

from napari_seg.cli.main import main
from napari_seg.cohort.discover import find_cases
from napari_seg.formats.data_sets import without_label_maps
from napari_seg.formats.find import find


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "set"


def fill(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def sorted_out(folder: Path) -> tuple[set[str], set[str]]:
    found = without_label_maps(find(folder), folder)
    scans = {scan.files[0].relative_to(folder).as_posix() for scan in found.scans}
    skipped = [one for one in found.skipped if one.code == "skip.label_map"]
    return scans, {one.files[0].relative_to(folder).as_posix() for one in skipped}


@pytest.mark.parametrize(
    ("scans", "labels"),
    [
        (["imagesTr/a_0000.nii.gz", "imagesTs/b_0000.nii.gz"], ["labelsTr/a.nii.gz", "labelsTs/b.nii.gz"]),
        (["images/a.nrrd", "images/b.mha"], ["labels/a.nrrd", "labels/b.mha"]),
        (["train/Images/a.png"], ["train/Masks/a.png"]),
        (["JPEGImages/a.jpg"], ["SegmentationClass/a.png"]),
        (["ct/a.nii.gz"], ["segmentations/a.nii.gz"]),
        (["s01/ct.nii.gz", "s02/CT.nii.gz"], ["s01/segmentations/liver.nii.gz", "s02/segmentations/x/spleen.nii.gz"]),
        (
            ["sub-1/anat/sub-1_T1w.nii.gz"],
            [
                "derivatives/x/sub-1/anat/sub-1_desc-aseg_dseg.nii.gz",
                "derivatives/x/sub-1/anat/sub-1_desc-brain_mask.nii.gz",
                "derivatives/x/sub-1/anat/sub-1_label-GM_probseg.nii.gz",
                "derivatives/x/sub-1/anat/sub-1_label-L_roi.nii.gz",
            ],
        ),
        (["p1/p1_t1.nii.gz", "p1/p1_t2.nii.gz", "p1/p1_flair.nii.gz"], ["p1/p1_seg.nii.gz"]),
        (["a.nii.gz", "b.nii", "c_image.nii.gz"], ["a_mask.nii.gz", "b-label.nii", "c_label.nii.gz"]),
        (["volume-0.nii", "volume-10.nii"], ["segmentation-0.nii", "segmentation-10.nii"]),
        (["case_1/imaging.nii.gz"], ["case_1/segmentation.nii.gz"]),
        (["p_frame01.nii.gz", "p_4d.nii.gz"], ["p_frame01_gt.nii.gz"]),
        # by name and place there is nothing to tell of these
        (["labels/a.nii.gz"], []),
        (["s01/ct.nii.gz", "labels/liver.nii.gz", "case.nii.gz"], []),
        (["mine_seg.nii.gz", "other.nii.gz"], []),
        (["seg.nii.gz", "masked_mouse.nii.gz", "labrador.nii.gz"], []),
        (["images/a.nii.gz", "label_noise/a.nii.gz", "case_masked.nii.gz", "case.nii.gz"], []),
    ],
)
def test_label_maps_of_data_sets_are_skipped(folder: Path, scans: list[str], labels: list[str]) -> None:
    fill(folder, *scans, *labels)
    assert sorted_out(folder) == (set(scans), set(labels))


def test_what_dataset_json_lists_as_labels_is_skipped(folder: Path) -> None:
    fill(folder, "x/1.nii.gz", "y/1.nii.gz", "y/2.nii.gz", "z/3.nii.gz")
    training = [{"image": "./x/1.nii.gz", "label": ".\\y\\1.nii.gz"}, {"image": "z/3.nii.gz", "label": ["z/3.nii.gz"]}]
    (folder / "dataset.json").write_text(json.dumps({"training": training, "validation": [{"label": 3}, 7], "a": {}}))
    assert sorted_out(folder) == ({"x/1.nii.gz", "y/2.nii.gz", "z/3.nii.gz"}, {"y/1.nii.gz"})
    fill(folder, "e\u0301/4.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"training": [{"label": "\u00e9/4.nii.gz"}]}))
    assert sorted_out(folder)[1] == {"e\u0301/4.nii.gz"}
    (folder / "e\u0301/4.nii.gz").unlink()
    for text in (b"[" * 100_000, b"\xff", b"[]", b"{"):
        (folder / "dataset.json").write_bytes(text)
        assert len(sorted_out(folder)[0]) == 4


def test_a_label_map_that_is_named_itself_is_a_scan(folder: Path, capsys: pytest.CaptureFixture) -> None:
    fill(folder, "imagesTr/a.nii.gz")
    (folder / "labelsTr").mkdir()
    file = phantoms.write_nifti(phantoms.head(), folder / "labelsTr" / "a.nii.gz")
    assert [case.scan.files for case in find_cases([file])[0]] == [(file,)]
    assert main(["inspect", str(file)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(folder / "labelsTr")]) == 2
    assert "skip      a.nii.gz  skip.label_map: a.nii.gz looks like a label map" in capsys.readouterr().out


def test_data_sets_in_archives_and_by_relative_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, "images/a.nii.gz", "labels/a.nii.gz", "other/labelsTr/a.nii.gz")
    archive = Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))
    monkeypatch.chdir(folder.parent)
    for path in (Path("set"), Path("set.zip"), archive):
        found = without_label_maps(find(path), path)
        assert [scan.files[0].parent.name for scan in found.scans] == ["images"]
