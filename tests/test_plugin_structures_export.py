"""Export of labels layers in every format of the menu."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import SEGMENTS, found_in, labels_of, viewer_with_labels
from napari.components import ViewerModel
from napari.layers import Labels

from napari_seg.errors import OutputError
from napari_seg.formats import record
from napari_seg.formats.kinds import MENU_FORMATS, FormatName
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.record import made_by_in
from napari_seg.plugin.autosave import Autosave
from napari_seg.plugin.labels_on_scan import UNKNOWN_SCAN
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.layers import labels_layer, layer_of
from napari_seg.plugin.placement import place
from napari_seg.plugin.scan_mark import ScanMark
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.export import export, obstacle, suggested_name, write_file
from napari_seg.volume import NO_SOURCE, Source, Volume


@pytest.fixture
def viewer(head: Volume) -> ViewerModel:
    return viewer_with_labels(head)


@pytest.mark.parametrize("kind", MENU_FORMATS)
def test_every_format_is_written_and_verified(kind: FormatName, head: Volume, tmp_path: Path) -> None:
    phantoms.write_series(head, tmp_path / "series")
    scan = Source("dicom", tuple(sorted((tmp_path / "series").iterdir())))
    placement = place(head.grid)
    data, settings, _ = labels_layer(found_in(head), placement, "a/b: found", scan=scan, algorithm=("balls", "1"))
    layer = Labels(data, **settings)
    assert obstacle(layer, kind) == ""
    assert "/" not in suggested_name(layer, kind)
    written = tmp_path / suggested_name(layer, kind)
    text = export(Snapshot.of(layer), written, kind)
    assert "Read back" in text
    assert {path for path in tmp_path.iterdir() if path.is_file()} - {tmp_path / "a_b_ found_seg.json"} == {written}
    if kind != "csv":
        back = read_label_map(written, head.grid)
        names = {s.label: s.name for s in back.segments}
        for label, count in found_in(head).voxel_counts().items():
            same = [n for n, name in names.items() if name == SEGMENTS[(1, 3, 4).index(label)].name] or [label]
            if kind != "rtstruct":
                assert (back.array == same[0]).sum() == count


@pytest.mark.parametrize(
    ("made_by", "paint", "from_file", "origin"),
    [
        (("balls", "1"), False, False, "AUTOMATIC"),
        (("balls", "1"), True, False, "SEMIAUTOMATIC"),
        (("balls", "1"), False, True, "SEMIAUTOMATIC"),
        (None, True, False, "MANUAL"),
    ],
)
def test_dicom_records_the_origin(
    head: Volume, tmp_path: Path, made_by: tuple[str, str] | None, paint: bool, from_file: bool, origin: str
) -> None:
    import pydicom

    phantoms.write_series(head, tmp_path / "series")
    scan = Source("dicom", tuple(sorted((tmp_path / "series").iterdir())))
    placement = place(head.grid)
    source = tmp_path / "mine.nii.gz" if from_file else None
    layer = layer_of(labels_layer(found_in(head), placement, "mine", scan=scan, algorithm=made_by, source=source))
    assert isinstance(layer, Labels)
    state_of(layer).painted = paint
    export(Snapshot.of(layer), tmp_path / "mine.dcm", "seg")
    (first, *_) = pydicom.dcmread(tmp_path / "mine.dcm").SegmentSequence
    assert first.SegmentAlgorithmType == origin
    assert ("SegmentationAlgorithmIdentificationSequence" in first) is (origin != "MANUAL")
    export(Snapshot.of(layer), tmp_path / "contours.dcm", "rtstruct")
    (region, *_) = pydicom.dcmread(tmp_path / "contours.dcm").StructureSetROISequence
    assert region.ROIGenerationAlgorithm == origin


def test_dicom_is_offered_for_dicom_scans_only(viewer: ViewerModel) -> None:
    assert "DICOM" in obstacle(labels_of(viewer), "seg")
    assert obstacle(labels_of(viewer), "nifti") == ""
    assert obstacle(None, "nifti") != ""

    info = LayerInfo.require(labels_of(viewer))
    replace(info, scan=NO_SOURCE, scan_mark=ScanMark("ab", ())).attach(labels_of(viewer))
    assert obstacle(labels_of(viewer), "seg") == UNKNOWN_SCAN


def test_labels_do_not_get_the_record_of_those_that_they_replace(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, labels = tmp_path / "a_seg.nii.gz", found_in(head)
    write_file("nifti", labels, path, scan=head.source, made_by=("balls", "1"))
    assert made_by_in(path) == ("balls", "1")

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(record, "write_record", fails)
    with pytest.raises(OutputError, match=r"output\.disk_full"):
        write_file("nifti", labels, path, scan=head.source, made_by=None)
    assert [one.name for one in tmp_path.iterdir()] == ["a_seg.nii.gz"]


def test_labels_that_were_moved_are_refused_but_copied_automatically(viewer: ViewerModel, tmp_path: Path) -> None:
    """napari's transform mode sets the affine; a script may set the translation."""
    _session, layer = Session(viewer), labels_of(viewer)
    scan = viewer.layers[0]
    other = viewer.add_labels(np.array(layer.data), scale=scan.scale, translate=scan.translate, units="mm")
    assert LayerInfo.require(other).adopted == "scan"
    for moved in (layer, other):
        for name, value in (("affine", np.eye(4) + np.eye(4, k=1) * [0, 0, 0, 7]), ("translate", (1, 2, 3))):
            was = getattr(moved, name)
            setattr(moved, name, value)
            with pytest.raises(OutputError, match=r"output\.moved"):
                export(Snapshot.of(moved), tmp_path / "moved.nii.gz", "nifti")
            state_of(moved).count_edit()
            assert Autosave(tmp_path / "copies").write_copies([Snapshot.of(moved)]) == 1
            setattr(moved, name, was)
            assert "Saved" in export(Snapshot.of(moved), tmp_path / "back.nii.gz", "nifti")
