"""Series that a training set names by the digest of their voxels; `test_learning_accept` tests the whole way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from napari_seg.errors import InputError
from napari_seg.geometry import Grid
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


def test_a_digest_is_that_of_voxels_and_place(head: Volume) -> None:
    assert voxel_digest(head) == voxel_digest(replace(head, array=np.asfortranarray(head.array), name="x"))
    shift = np.zeros((4, 4))
    shift[0, 3] = 0.01
    moved = replace(head, grid=Grid(head.grid.shape, head.grid.affine + shift))
    others = [moved, replace(head, array=head.array + 1), replace(head, array=head.array.astype(np.int32))]
    assert len({voxel_digest(one) for one in (head, *others)}) == 4


def test_what_is_remembered_is_recalled(tmp_path: Path) -> None:
    assert recall(DIGEST) is None
    remember(DIGEST, KnownScan((tmp_path / "a.dcm",), "ef"))
    assert recall(DIGEST) == KnownScan((tmp_path / "a.dcm",), "ef")
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
