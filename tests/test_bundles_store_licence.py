"""The class of a licence is recognised, and what a user accepted is remembered for exactly that text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from napari_seg.bundles.places import store_root
from napari_seg.bundles.store.licence import (
    Licence,
    accepted_at,
    is_licence_file,
    kind_of,
    name_of,
    read_licence,
    remember_acceptance,
)

APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"

MIT = """\
MIT License

Copyright (c) 2022 A. Person

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


@pytest.mark.parametrize(
    ("text", "name", "kind"),
    [
        (APACHE, "Apache-2.0", "open"),
        ("MIT License\n\nCopyright (c) 2023", "MIT", "open"),
        (
            "Private Use, Non-Commercial License\n\nThe Licensee",
            "Private Use, Non-Commercial License",
            "non-commercial",
        ),
        (f"Code\n{APACHE}\nWeights: noncommercial use alone", "Apache-2.0, with more terms", "non-commercial"),
        ("Attribution-NonCommercial-ShareAlike 4.0 International", "CC-BY-NC-SA", "non-commercial"),
        ("under CC BY 4.0", "CC-BY", "open"),
        ("under CC-BY-NC 4.0", "CC-BY-NC", "non-commercial"),
        ("This model is for research use only.", "", "research"),
        ("All rights reserved", "", "unknown"),
        (MIT, "MIT", "open"),
        (MIT.removeprefix("MIT License"), "", "open"),
        (f"{MIT}\nThe weights may not be shared.", "MIT, with more terms", "unknown"),
        (MIT.replace("A. Person", "A. Person. No use without permission"), "MIT, with more terms", "unknown"),
        (
            "All rights reserved. Portions under the MIT License apply to scripts only.",
            "MIT, with more terms",
            "unknown",
        ),
        ("under the MIT License, without its weights", "MIT, with more terms", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_licences_are_recognised(text: str, name: str, kind: str) -> None:
    assert (name_of(text), kind_of(text)) == (name, kind)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("LICENSE", True),
        ("licence.txt", True),
        ("LICENSE.weights", True),
        ("docs/data_license.txt", True),
        ("docs/README.md", False),
        ("models/LICENSE", False),
        ("docs/license.py", False),
    ],
)
def test_licence_files_are_recognised(path: str, expected: bool) -> None:
    assert is_licence_file(path) == expected


def test_the_class_is_that_of_the_model_not_of_its_training_data(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "LICENSE").write_text(APACHE)
    (tmp_path / "docs" / "data_license.txt").write_text("CC BY-NC-SA")
    (tmp_path / "LICENSES").mkdir()
    licence = read_licence(tmp_path, "renal")
    assert (licence.model, licence.name, licence.kind) == ("renal", "Apache-2.0", "open")
    assert "docs/data_license.txt:\nCC BY-NC-SA" in licence.text


def test_the_class_is_that_of_the_strictest_file(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text(APACHE)
    (tmp_path / "LICENSE.code").write_text(MIT)
    assert read_licence(tmp_path, "renal").kind == "open"
    (tmp_path / "LICENSE.weights").write_text("Ask before you use the weights")
    assert read_licence(tmp_path, "renal").kind == "unknown"
    (tmp_path / "NOTICE").write_text("For non-commercial use")
    assert read_licence(tmp_path, "renal").kind == "non-commercial"


def test_acceptance_is_remembered_for_one_model_and_one_text() -> None:
    licence = Licence("spleen", "Apache-2.0", "open", APACHE)
    assert accepted_at(licence) == ""
    date = remember_acceptance(licence)
    others = [replace(licence, model="liver"), replace(licence, text="other"), replace(licence, kind="research")]
    assert accepted_at(licence) == date != ""
    assert [accepted_at(other) for other in others] == ["", "", ""]
    remember_acceptance(others[1])
    assert accepted_at(licence) == date
    for damage in ("{", "[]", '{"spleen": 3}', "[" * 100_000):
        (store_root() / "licences.json").write_text(damage)
        assert accepted_at(licence) == ""
        remember_acceptance(licence)
        assert accepted_at(licence)
