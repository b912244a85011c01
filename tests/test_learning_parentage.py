"""An improved model keeps the boxes of its parent, and says what its parent says about its data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import METADATA
from napari_seg.errors import EnvironmentFault, InputError
from napari_seg.learning.parentage import (
    check_classes,
    check_replayed_classes,
    copy_documents,
    inherited_metadata,
)


def test_boxes_sources_and_licences_are_kept(tmp_path: Path) -> None:
    parent = read_bundle(None)
    out = tmp_path / "out"
    for folder in ("configs", "docs"):
        (out / folder).mkdir(parents=True)
    metadata = json.loads((parent.root / METADATA).read_text())
    planned = metadata | {"napari_seg": {}, "data_source": "not stated", "references": [], "name": "out"}
    (out / METADATA).write_text(json.dumps(planned | inherited_metadata(parent)))
    copy_documents(parent, out)
    found = read_bundle(out)
    for name in ("localiser", "segments", "network_segments", "min_confidence", "tta", "images"):
        assert getattr(found, name) == getattr(parent, name)
    assert "CC-BY-SA 4.0, and cases that the owner of this model accepted" in found.licence
    text = (out / "docs" / "data_license.txt").read_text()
    assert text.startswith((parent.root / "docs" / "data_license.txt").read_text().rstrip())
    assert "Before you share it" in text
    # once is enough
    assert inherited_metadata(found)["data_source"].count("accepted") == 1
    assert json.loads((out / METADATA).read_text())["references"] == metadata["references"]


def test_a_template_of_the_model_goes_with_it(tmp_path: Path) -> None:
    shipped = read_bundle(None)
    root, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(shipped.root / "configs", root / "configs")
    assert shipped.localiser is not None
    parent = replace(shipped, root=root, localiser=replace(shipped.localiser, template="docs/head.nii.gz"))
    with pytest.raises(EnvironmentFault):
        copy_documents(parent, out)
    (root / "docs").mkdir()
    (root / "docs" / "head.nii.gz").write_bytes(b"head")
    copy_documents(parent, out)
    assert (out / "docs" / "head.nii.gz").read_bytes() == b"head"
    outside = replace(shipped.localiser, template="../secret")
    (tmp_path / "secret").touch()
    with pytest.raises(EnvironmentFault):
        copy_documents(replace(parent, localiser=outside), out)


def test_a_model_without_boxes_gets_none(tmp_path: Path) -> None:
    parent = replace(read_bundle(None), localiser=None)
    assert "napari_seg" not in inherited_metadata(parent)


def test_replayed_data_have_the_classes_of_a_model_in_boxes(tmp_path: Path) -> None:
    shipped = read_bundle(None)
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    for data, names in (
        (own, ("Anterior hippocampus", "posterior hippocampus")),
        (elsewhere, ("Anterior", "Posterior")),
    ):
        datasets.write_decathlon(data, cases=2)
        (data / "labels.json").unlink(missing_ok=True)
        description = json.loads((data / "dataset.json").read_text())
        description["labels"] = {"background": 0} | {name: n for n, name in enumerate(names, 1)}
        (data / "dataset.json").write_text(json.dumps(description))
    check_replayed_classes(shipped, [own, tmp_path / "none"])
    with pytest.raises(InputError, match=r"improve\.classes.*Anterior, Posterior"):
        check_replayed_classes(shipped, [own, elsewhere])
    check_replayed_classes(replace(shipped, localiser=None), [elsewhere])
    names = [one.name for one in shipped.network_segments]
    check_classes(shipped, ["background", *names])
    for wrong in (names[::-1], [*names, "tumour"], names[:1]):
        with pytest.raises(InputError, match=r"improve\.classes"):
            check_classes(shipped, wrong)
    check_classes(replace(shipped, localiser=None), ["tumour"])
