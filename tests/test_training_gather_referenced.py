"""Series that a training set names by the digest of their voxels; `test_learning_accept` tests the whole way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest

from napari_seg.errors import InputError
from napari_seg.formats.nifti import write_volume
from napari_seg.formats.read import read
from napari_seg.geometry import resample
from napari_seg.training.gather.referenced import (
    VARIABLE,
    KnownScan,
    recall,
    referenced_scan,
    remember,
    voxel_digest,
    write_reference,
)
from napari_seg.volume import Volume

DIGEST = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def known_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))


def _written(volume: Volume, folder: Path) -> Volume:
    phantoms.write_series(volume, folder)
    return read(folder)


def test_copies_of_a_scan_have_one_digest(tmp_path: Path, head: Volume) -> None:
    series = _written(head, tmp_path / "series")
    write_volume(series, tmp_path / "copy.nii.gz")
    copies = [
        replace(head, array=np.asfortranarray(head.array), name="x"),
        replace(head, array=head.array.astype(np.float32)),
        Volume(resample(head.array, head.grid, head.grid.reoriented("LPI")), head.grid.reoriented("LPI")),
    ]
    assert {voxel_digest(one) for one in copies} == {voxel_digest(head)}
    assert voxel_digest(read(tmp_path / "copy.nii.gz")) == voxel_digest(series)
    others = [replace(head, array=head.array + 1), replace(head, array=head.array[:, ::-1])]
    others.append(Volume(head.array[:, 1:], head.grid.box((1, 0, 0), head.grid.shape)))
    assert len({voxel_digest(one) for one in (head, *others)}) == 4


def test_what_is_remembered_is_recalled(tmp_path: Path) -> None:
    assert recall(DIGEST) is None
    remember(DIGEST, KnownScan((tmp_path / "a.dcm",)))
    assert recall(DIGEST) == KnownScan((tmp_path / "a.dcm",))
    for foreign in ("../known/" + DIGEST, DIGEST.upper(), "", DIGEST[:-1] + "g"):
        assert recall(foreign) is None
    (tmp_path / "known" / f"{DIGEST}.json").write_text('{"files": "a"}')
    assert recall(DIGEST) is None


def test_a_reference_leads_to_files_that_this_machine_knows(tmp_path: Path) -> None:
    reference = tmp_path / "case0001.series.json"
    write_reference(reference, DIGEST)
    assert str(tmp_path) not in reference.read_text()
    with pytest.raises(InputError, match=r"series\.unknown"):
        referenced_scan(reference)
    (tmp_path / "a.dcm").touch()
    remember(DIGEST, KnownScan((tmp_path / "a.dcm",)))
    found = referenced_scan(reference)
    assert (found.name, found.files, found.digest) == ("case0001", (tmp_path / "a.dcm",), DIGEST)
    (tmp_path / "a.dcm").unlink()
    with pytest.raises(InputError, match=r"series\.moved"):
        referenced_scan(reference)
    reference.write_text(json.dumps([DIGEST]))
    with pytest.raises(InputError, match=r"series\.unknown"):
        referenced_scan(reference)
