"""Names of layers in session files, without names of people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari_seg.plugin.session_file.content import SavedName
from napari_seg.plugin.session_file.names import PrivateWords, opened_name, saved_name

FILES = (Path("/home/mueller/DOE^JANE 1971/Weiß, Jürgen/liver/T1_JANE-DOE.nii.gz"),)
PRIVATE = PrivateWords(FILES, ["Hippocampus 1.0"])


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("liver of Doe", "liver of"),
        ("DOE_JANE_seg", "seg"),
        ("janedoe 2", "2"),
        ("left kidney, corrected", "left kidney, corrected"),
        ("Mueller's labels (restored)", "s labels (restored)"),
        ("JÜRGEN WEISS", ""),
        ("Jürgen", ""),
        ("juergen Jurgen weiß", ""),
        ("1971", ""),
        ("T1 labels", "T1 labels"),
    ],
)
def test_words_of_paths_are_left_out(name: str, kept: str) -> None:
    assert PRIVATE.public_text(name) == kept


def test_the_name_of_a_scan_becomes_its_number() -> None:
    scans = ["T1 JANE-DOE", "T1"]
    for name in ("T1 JANE-DOE - Hippocampus 1.0", "T1 - liver", "T1", "my T1 JANE-DOE"):
        saved = saved_name(name, scans, PRIVATE)
        assert "JANE" not in saved.model_dump_json()
        assert opened_name(saved, scans, "labels") == name
    saved = saved_name("T1 JANE-DOE - Hippocampus 1.0", scans, PRIVATE)
    assert saved.parts == (0, " - Hippocampus 1.0")
    assert opened_name(saved, ["moved", "T1"], "labels") == "moved - Hippocampus 1.0"
    assert opened_name(saved, ["", ""], "labels") == "scan - Hippocampus 1.0"
    assert opened_name(SavedName(parts=(7,)), scans, "labels") == "labels"
    assert opened_name(saved_name("JANE", [], PRIVATE), [], "labels") == "labels"


def test_words_of_a_dicom_header_are_left_out_even_of_structures(tmp_path: Path) -> None:
    def named(k: int, dataset: Any) -> None:
        dataset.PatientName, dataset.InstitutionName = "Smith^Liver", "Kidney Hospital Grimm"

    (first, *_) = phantoms.write_series(phantoms.head(), tmp_path / "series", edit=named)
    private = PrivateWords([first], [])
    assert private.public_text("Smith liver, Hospital Grimm") == "liver"
    assert private.public_structure("Smith's lesion", 3) == "s lesion"
    assert private.public_structure("smith", 3) == "label 3"
    assert private.public_structure("left ball", 3) == "left ball"
    # words of anatomy name nobody
    assert private.public_structure("left kidney", 3) == "left kidney"
