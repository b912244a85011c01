"""`napari-seg edit`: single label maps and folders of results, kept inputs, records and exit statuses."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from edited import GRID, ball
from phantoms import write_series

from napari_seg.cli.main import main
from napari_seg.errors import OutputError
from napari_seg.formats import kinds
from napari_seg.formats.dicom.seg import same_labels
from napari_seg.formats.dicom.seg_write import write_dicom_seg
from napari_seg.formats.kinds import write_label_map
from napari_seg.formats.label_maps import check_no_intensities, read_label_map
from napari_seg.formats.nifti import write_map, write_nifti
from napari_seg.formats.nrrd import write_seg_nrrd
from napari_seg.formats.read import read
from napari_seg.formats.record import made_by_in, read_record, record_path, write_labels_record
from napari_seg.volume import Segment, Segmentation, Volume

SEGMENTS = (Segment(4, "liver", (200, 60, 40)), Segment(9, "spleen", (90, 30, 160)))
VOXEL_ML = GRID.voxel_ml


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def labels() -> np.ndarray:
    """A ball with a hole and an island, and a second structure."""
    array = np.zeros(GRID.shape, np.uint8)
    array[ball((8, 11, 6), 8.0)] = 4
    array[8, 11, 6] = 0
    array[18, 2, 3] = 4
    array[14:18, 18:22, 3:5] = 9
    array[19, 25, 13] = 9
    return array


def corrected() -> np.ndarray:
    """The same with the hole filled and without islands."""
    array = labels()
    array[8, 11, 6] = 4
    array[18, 2, 3] = array[19, 25, 13] = 0
    return array


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    segmentation = Segmentation(labels(), GRID, SEGMENTS)
    write_label_map(segmentation, path)
    if path.name.endswith(".nii.gz"):
        write_labels_record(segmentation, path, ("a model", "1.2"))
    return path


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["case_seg.nii.gz", "case.seg.nrrd"])
def test_a_label_map_is_edited_and_keeps_names_and_place(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    original = write(tmp_path / "in" / name)
    before = content(tmp_path / "in")
    assert run("edit", original, "-o", tmp_path / "out", "--keep-largest", "--fill-holes") == 0
    result = read_label_map(tmp_path / "out" / name, GRID)
    assert np.array_equal(result.array, corrected())
    assert result.grid.matches(GRID)
    assert [(s.label, s.name, s.color) for s in result.segments] == [(s.label, s.name, s.color) for s in SEGMENTS]
    assert content(tmp_path / "in") == before
    voxels = int((labels() == 4).sum())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{original} -> {tmp_path / 'out' / name}"
    volume, one = f"{voxels * VOXEL_ML:.2f} ml", f"1 voxel ({VOXEL_ML:.3g} ml)"
    assert " ".join(lines[1].split()) == f"liver {volume} -> {volume} +{one} -{one}"
    assert " ".join(lines[2].split()) == f"spleen {33 * VOXEL_ML:.2f} ml -> {32 * VOXEL_ML:.2f} ml -{one}"


def test_the_record_lists_the_operations_and_keeps_the_model(tmp_path: Path) -> None:
    original = write(tmp_path / "case_seg.nii.gz")
    output = tmp_path / "out.nii.gz"
    assert run("edit", original, "-o", output, "--structure", "liver", "--fill-holes", "--smooth", 1.5) == 0
    record = read_record(record_path(output))
    assert record is not None
    assert record["edits"] == [
        {
            "by": "napari-seg edit",
            "original": "case_seg.nii.gz",
            "original_sha256": hashlib.sha256(original.read_bytes()).hexdigest(),
            "structures": ["liver"],
            "operations": ["fill-holes", "smooth 1.5 mm"],
            "result_sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
        }
    ]
    assert made_by_in(output) == ("a model", "1.2")
    assert [one["voxels"] for one in record["segments"]][1] == 33
    assert (read_label_map(output).array == 9).sum() == 33
    again = tmp_path / "again.nii.gz"
    assert run("edit", output, "-o", again, "--keep-largest") == 0
    operations = [edit["operations"] for edit in (read_record(record_path(again)) or {})["edits"]]
    assert operations == [["fill-holes", "smooth 1.5 mm"], ["keep-largest"]]


def test_the_operations_follow_the_order_of_the_command_line(tmp_path: Path) -> None:
    original = write(tmp_path / "case_seg.nii.gz")
    sizes = {}
    for order in (("--erode", 1.5, "--dilate", 1.5), ("--dilate", 1.5, "--erode", 1.5)):
        output = tmp_path / f"{order[0].strip('-')}.nii.gz"
        assert run("edit", original, "-o", output, "--structure", "liver", *order) == 0
        sizes[order[0]] = read_label_map(output).array
    assert sizes["--erode"][18, 2, 3] == 0
    assert sizes["--dilate"][18, 2, 3] == 4
    assert sizes["--dilate"][8, 11, 6] == 4


def test_a_folder_is_edited_and_a_bad_file_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "labelsTr"
    write(folder / "a.nii.gz")
    write(folder / "site" / "b.nii.gz")
    (folder / "bad.nii.gz").write_bytes(b"no NIfTI")
    (folder / "notes.txt").write_text("nothing")
    before = content(folder)
    assert run("edit", folder, "-o", tmp_path / "out", "--keep-largest", "--fill-holes") == 3
    assert sorted(content(tmp_path / "out")) == ["a.json", "a.nii.gz", "site/b.json", "site/b.nii.gz"]
    for name in ("a.nii.gz", "site/b.nii.gz"):
        assert np.array_equal(read_label_map(tmp_path / "out" / name).array, corrected())
    assert content(folder) == before
    assert "bad.nii.gz: file." in capsys.readouterr().err


def test_in_a_folder_of_a_run_only_its_label_maps_are_edited(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    write(folder / "case_seg.nii.gz")
    write(folder / "scan.nii.gz")  # no result by its name
    write(folder / "case_seg_confidence.nii.gz")
    assert run("edit", folder, "-o", folder / "edited", "--keep-largest") == 0
    assert sorted(content(folder / "edited")) == ["case_seg.json", "case_seg.nii.gz"]
    # what was written is no input of the next call
    assert run("edit", folder, "-o", folder / "edited", "--keep-largest") == 0
    assert sorted(content(folder / "edited")) == ["case_seg.json", "case_seg.nii.gz"]


def test_inputs_and_other_files_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    original = write(tmp_path / "in" / "case_seg.nii.gz")
    other = write(tmp_path / "elsewhere" / "case_seg.nii.gz")
    before = content(tmp_path)
    for output in (original, original.parent, tmp_path / "in" / ".." / "in"):
        assert run("edit", original, "-o", output, "--keep-largest", "--overwrite") == 4
    assert run("edit", original.parent, "-o", original.parent, "--keep-largest", "--overwrite") == 4
    assert run("edit", original, "-o", other.parent, "--keep-largest") == 4
    assert content(tmp_path) == before
    assert capsys.readouterr().err.count("output.exists") == 5
    assert run("edit", original, other, "-o", tmp_path / "out", "--keep-largest") == 3  # both have one name
    assert run("edit", original, "-o", other.parent, "--keep-largest", "--overwrite") == 0
    assert (read_label_map(other).array == 9).sum() == 32


def test_a_record_of_another_program_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    original = write(tmp_path / "case.nii.gz")
    out = tmp_path / "out"
    out.mkdir()
    (out / "case.json").write_text('{"Modality": "MR"}')
    for more in ([], ["--overwrite"]):
        assert run("edit", original, "-o", out, "--keep-largest", *more) == 4
    assert capsys.readouterr().err.count("output.exists") == 2
    assert (out / "case.json").read_text() == '{"Modality": "MR"}'
    assert not (out / "case.nii.gz").exists()


def test_the_record_of_an_input_and_of_other_label_maps_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    original = write(tmp_path / "case_seg.nii.gz")
    nrrd = tmp_path / "case_seg.nrrd"  # its record has the same name
    write_label_map(Segmentation(labels(), GRID, SEGMENTS), tmp_path / "x.seg.nrrd")
    (tmp_path / "x.seg.nrrd").rename(nrrd)
    original.rename(tmp_path / "elsewhere.nii.gz")
    before = content(tmp_path)
    assert run("edit", nrrd, "-o", tmp_path / "case_seg.nii.gz", "--keep-largest") == 4
    assert run("edit", nrrd, "-o", tmp_path, "--keep-largest", "--overwrite") == 4
    assert run("edit", tmp_path / "elsewhere.nii.gz", "-o", tmp_path / "case_seg.nii.gz", "--keep-largest") == 4
    assert content(tmp_path) == before
    assert capsys.readouterr().err.count("output.exists") == 3


def test_a_link_without_a_target_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "in" / "b.nii.gz")
    (tmp_path / "in" / "a.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert run("edit", tmp_path / "in", "-o", tmp_path / "out", "--keep-largest") == 3
    assert sorted(content(tmp_path / "out")) == ["b.json", "b.nii.gz"]
    assert "a.nii.gz: file.unreadable" in capsys.readouterr().err


def test_scans_in_a_folder_are_not_taken_for_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "in" / "a.nii.gz")
    array = np.arange(int(np.prod(GRID.shape)), dtype=np.uint16).reshape(GRID.shape) % 300
    write_label_map(Segmentation(array, GRID, ()), tmp_path / "in" / "scan.nii.gz")
    assert run("edit", tmp_path / "in", "-o", tmp_path / "out", "--keep-largest") == 3
    assert sorted(content(tmp_path / "out")) == ["a.json", "a.nii.gz"]
    assert "scan.nii.gz: labels.intensities" in capsys.readouterr().err
    assert run("edit", tmp_path / "in" / "scan.nii.gz", "-o", tmp_path / "out", "--keep-largest") == 4
    assert "scan.nii.gz holds 299 values without names, and 0% of the neighbouring voxels are equal" in (
        capsys.readouterr().err
    )


def test_an_atlas_without_names_is_no_scan(tmp_path: Path) -> None:
    blocks = np.arange(1, 10 * 13 * 7 + 1, dtype=np.uint16).reshape(10, 13, 7)
    array = blocks.repeat(2, 0).repeat(2, 1).repeat(2, 2)  # 910 regions of eight voxels
    write_label_map(Segmentation(array, GRID, ()), tmp_path / "atlas.nii.gz")
    check_no_intensities(read_label_map(tmp_path / "atlas.nii.gz"), tmp_path / "atlas.nii.gz")


def test_an_output_that_somebody_changed_is_not_called_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["edit", write(tmp_path / "a.nii.gz"), "-o", tmp_path / "out", "--fill-holes"]
    assert run(*command) == 0
    output = tmp_path / "out" / "a.nii.gz"
    output.write_bytes((tmp_path / "a.nii.gz").read_bytes())
    assert run(*command) == 4
    assert "output.exists" in (text := capsys.readouterr().err)
    assert "a.nii.gz was changed after this command had written it" in text
    assert run(*command, "--overwrite") == 0
    assert run(*command) == 0
    assert "unchanged since, kept" in capsys.readouterr().out


def test_an_output_without_a_digest_in_its_record_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["edit", write(tmp_path / "a.nii.gz"), "-o", tmp_path / "out", "--fill-holes"]
    assert run(*command) == 0
    record = tmp_path / "out" / "a.json"
    written = json.loads(record.read_text())
    del written["edits"][-1]["result_sha256"]  # as versions before wrote it
    record.write_text(json.dumps(written))
    before = content(tmp_path)
    assert run(*command) == 0
    assert "not compared, since its record has no digest of it, kept" in capsys.readouterr().out
    assert content(tmp_path) == before


def test_the_same_command_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    write(folder / "a.nii.gz")
    command = ["edit", folder, "-o", out, "--structure", "liver", "--keep-largest"]
    assert run(*command) == 0
    before = content(out)
    write(folder / "b.nii.gz")
    capsys.readouterr()
    assert run(*command) == 0
    text = capsys.readouterr().out
    assert "a.nii.gz: written before by the same command and unchanged since, kept" in text
    assert {name: digest for name, digest in content(out).items() if name[0] == "a"} == before
    assert (out / "b.nii.gz").exists()
    assert run("edit", folder, "-o", out, "--keep-largest") == 4  # another command


def test_structures_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    original = write(tmp_path / "case_seg.nii.gz")
    assert run("edit", original, "-o", tmp_path / "out", "--structure", "kidney", "--keep-largest") == 4
    assert "labels.unknown: case_seg.nii.gz has no structure kidney; it has liver, spleen" in capsys.readouterr().err
    record_path(original).unlink()
    for name in ("Spleen", "label 9"):
        if name == "label 9":  # no name in the header either
            write_map(labels(), GRID, original)
        words = ["--structure", name, "--keep-largest", "--json", "--overwrite"]
        assert run("edit", original, "-o", tmp_path / "out", *words) == 0
        (report,) = json.loads(capsys.readouterr().out)
        (structure,) = report["structures"]
        assert (structure["name"], structure["voxels_before"], structure["voxels_after"]) == (name.lower(), 33, 32)
    assert structure["ml_after"] == pytest.approx(32 * VOXEL_ML, abs=1e-4)


def test_a_folder_of_masks_of_one_scan_is_to_be_converted_first(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "segmentations"
    folder.mkdir()
    for label, name in ((4, "liver"), (9, "spleen")):
        write_map((labels() == label).astype(np.uint8), GRID, folder / f"{name}.nii.gz")
    for words in (["-o", tmp_path / "out", "--keep-largest"], ["--list-islands"]):
        assert run("edit", folder, "--structure", "Liver", *words) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("napari-seg: edit.masks: ")
        assert line.endswith(f"convert it first: napari-seg convert {folder} labels.nii.gz")
    assert not (tmp_path / "out").exists()
    # all masks may be edited alike
    assert run("edit", folder, "-o", tmp_path / "out", "--structure", "label 1", "--keep-largest") == 0


def test_an_operation_that_fails_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    original = write(tmp_path / "case_seg.nii.gz")
    assert run("edit", original, "-o", tmp_path / "out", "--erode", 50) == 4
    assert "edit.nothing_left" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failed_write_keeps_the_record_of_the_labels_that_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path / "in" / "case_seg.nii.gz")
    words = ["edit", tmp_path / "in", "-o", tmp_path / "out"]
    assert run(*words, "--keep-largest") == 0
    before = content(tmp_path / "out")

    def fails(*_: object) -> None:
        raise OutputError("output.disk_full", "no room")

    monkeypatch.setattr(kinds, "write_label_map", fails)
    assert run(*words, "--fill-holes", "--overwrite") == 5
    assert "output.disk_full" in capsys.readouterr().err
    assert content(tmp_path / "out") == before


def test_wrong_usage_has_its_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    original = write(tmp_path / "case_seg.nii.gz")
    for words in ([], ["--smooth", "0"], ["--smooth", "thick"], ["--fill-between", "upside"]):
        with pytest.raises(SystemExit) as end:
            run("edit", original, "-o", tmp_path / "out", *words)
        assert end.value.code == 1
    assert "--keep-largest" in capsys.readouterr().err
    assert run("edit", tmp_path / "gone", "-o", tmp_path / "out", "--fill-holes") == 2
    (tmp_path / "empty").mkdir()
    assert run("edit", tmp_path / "empty", "-o", tmp_path / "out", "--fill-holes") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_a_name_of_a_file_cannot_control_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "in" / "a\x1b[2Jb\nc.nii.gz")
    (tmp_path / "in" / "d\x1b[2Je.nii.gz").write_bytes(b"no label map")
    assert run("edit", tmp_path / "in", "-o", tmp_path / "out", "--fill-holes") == 3
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "b c.nii.gz" in printed.out


def test_islands_are_listed_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_text("no labels")
    before = content(tmp_path)
    assert run("edit", tmp_path / "in", "--list-islands") == 3
    printed = capsys.readouterr()
    assert f"spleen: 2 islands of {32 * VOXEL_ML:.3g}, {VOXEL_ML:.3g} ml" in printed.out
    assert "b.nii.gz: file.not_nifti" in printed.err
    assert run("edit", tmp_path / "in" / "a.nii.gz", "--list-islands", "--structure", "spleen", "--json") == 0
    (spleen,) = json.loads(capsys.readouterr().out)[0]["structures"]
    assert [one["voxels"] for one in spleen["islands"]] == [32, 1]
    assert spleen["islands"][1]["centroid_mm"] == pytest.approx(GRID.to_world((19, 25, 13)), abs=0.01)
    assert content(tmp_path) == before
    for wrong in (["--list-islands", "-o", "out"], ["--list-islands", "--fill-holes"], ["--fill-holes"]):
        with pytest.raises(SystemExit):
            run("edit", tmp_path / "in", *wrong)


@pytest.mark.parametrize("name", ["frames.dcm", "cropped.seg.nrrd"])
def test_a_cropped_label_map_is_edited_as_the_whole_one(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    array = ball((9, 12, 6), 6.0).astype(np.uint8)
    segments = (Segment(1, "liver", (200, 60, 40)),)
    whole, cropped = Segmentation(array, GRID, segments), tmp_path / name
    write_nifti(whole, tmp_path / "whole.nii.gz")
    if name == "frames.dcm":
        files = write_series(Volume(np.zeros((1, *GRID.shape), np.int16), GRID), tmp_path / "scan")
        write_dicom_seg(whole, read(files[0].parent).source, cropped)
    else:
        start, stop = np.argwhere(array).min(axis=0), np.argwhere(array).max(axis=0) + 1
        i, j, k = (slice(*ends) for ends in zip(start, stop, strict=True))
        write_seg_nrrd(Segmentation(array[i, j, k].copy(), GRID.box(start, stop), segments), cropped)
    for operation in (("--erode", 2.6), ("--dilate", 2.6), ("--smooth", 2)):
        results = []
        for path in (tmp_path / "whole.nii.gz", cropped):
            output = tmp_path / f"{path.stem}{operation[0]}.nii.gz"
            assert run("edit", path, "-o", output, *operation) == 0
            results.append(read_label_map(output))
        assert same_labels(results[1], results[0])
        assert results[0].array.any()
    found = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in found] == ["edit.cropped"] * 3
    assert run("edit", cropped, "-o", tmp_path / "filled.nii.gz", "--fill-holes") == 0
    assert read_label_map(tmp_path / "filled.nii.gz").grid.matches(read_label_map(cropped).grid)
    if name == "cropped.seg.nrrd":  # one edit after the other is as both at once
        for path in ("whole.nii.gz", name):
            assert run("edit", tmp_path / path, "-o", tmp_path / f"once_{path}", "--erode", 2.6) == 0
            assert run("edit", tmp_path / f"once_{path}", "-o", tmp_path / f"twice_{path}", "--dilate", 6) == 0
        assert same_labels(read_label_map(tmp_path / f"twice_{name}"), read_label_map(tmp_path / "twice_whole.nii.gz"))


@pytest.mark.parametrize("name", ["whole.nii.gz", "whole.seg.nrrd"])
def test_nothing_is_eroded_at_the_edge_of_the_scan(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An empty plane shows that the label map was not cropped: its edges are those of the scan."""
    array = np.zeros(GRID.shape, np.uint8)
    array[:, :, :2] = 4
    write_label_map(Segmentation(array, GRID, SEGMENTS[:1]), tmp_path / name)
    assert run("edit", tmp_path / name, "-o", tmp_path / "out.nii.gz", "--erode", 2.6) == 0
    result = read_label_map(tmp_path / "out.nii.gz").array
    assert (result[:, :, 0] == 4).all()
    assert not result[:, :, 1:].any()
    assert not capsys.readouterr().err
