"""Lists of scans: datalists of MONAI, plain lists and tables, with errors that say where and what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from napari_seg.cohort.lists import check_file_name, listed_file, read_list
from napari_seg.errors import InputError


def entries(folder: Path, content: Any, name: str = "list.json") -> list[tuple[str, tuple[str, ...], str, str]]:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return [(one.place, one.images, one.name, one.model) for one in read_list(folder / name)]


def test_datalists_and_plain_lists_are_read(tmp_path: Path) -> None:
    assert entries(tmp_path, ["a.nii", {"image": "b.nii", "label": "x.nii"}]) == [
        ("entry 1", ("a.nii",), "", ""),
        ("entry 2", ("b.nii",), "", ""),
    ]
    channels = {"image": ["t1.nii", "flair.nii"], "id": 17, "model": "brats"}
    decathlon = {"name": "x", "labels": {"0": "b"}, "training": [{"image": "a.nii", "label": "l.nii"}], "test": []}
    assert entries(tmp_path, {"testing": [channels], "training": [{"image": "no.nii"}]}) == [
        ("entry 1 of testing", ("t1.nii", "flair.nii"), "17", "brats")
    ]
    assert entries(tmp_path, decathlon) == [("entry 1 of training", ("a.nii",), "", "")]
    assert entries(tmp_path, decathlon | {"test": ["./b.nii"]}) == [("entry 1 of test", ("./b.nii",), "", "")]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_are_read(tmp_path: Path, separator: str) -> None:
    text = "\ufeffPath,Name,id,age,model\n\na.nii,,p1,30,\nb.nii,second,p2\n".replace(",", separator)
    assert entries(tmp_path, text, "list.tsv") == [
        ("line 3", ("a.nii",), "p1", ""),
        ("line 4", ("b.nii",), "second", ""),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.json", "{", r"line 1: found no JSON"),
        ("list.json", "[" * 100_000, "found no JSON"),
        ("list.json", {"labels": ["a", "b"]}, "found no list of scans"),
        ("list.json", [], "found no entry"),
        ("list.json", [3], "entry 1: found 3; expected a path or an object"),
        ("list.json", ["a", {"label": "x"}], 'entry 2: found {"label": "x"}; expected the path of an image'),
        ("list.json", [{"image": []}], "entry 1"),
        ("list.json", [{"image": "a", "name": ["x"]}], r'entry 1: found name \["x"\]'),
        ("list.csv", "file,name\na,b\n", "line 1: found the columns file, name; expected different columns"),
        ("list.csv", "path,path\na,b\n", "line 1"),
        ("list.csv", "path,name\n,b\n", "line 2: found nothing in the column path"),
        ("list.csv", "path,name\na,b,c\n", "line 2: found 3 cells; expected 2"),
        ("list.csv", 'path\n"a\n', "line 2: found no row of a table"),
        ("list.csv", "", "found no entry"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        entries(tmp_path, content, name)
    assert caught.value.code == "cohort.list"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "A"], "line 3: the name 'A' is that of line 2"),
        (["\u00e9", "e\u0301"], "line 3"),
        (["a/b", "c"], "line 2: the name 'a/b' has the character '/'"),
        (["..", "c"], "line 2"),
        (["CON", "c"], "a name that Windows reserves"),
        (["x" * 300, "c"], "300 bytes"),
    ],
)
def test_names_must_be_unique_and_valid(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        entries(tmp_path, "path,name\n" + "".join(f"{n}.nii,{name}\n" for n, name in enumerate(names)), "list.csv")
    assert caught.value.code == "cohort.list_name"
    assert len(entries(tmp_path, "path,name,model\na.nii,x,m1\na.nii,x,m2\n", "list.csv")) == 2


@pytest.mark.parametrize("name", ["a\\b", "a:b", "a\nb", "-x", " x", "x.", "x ", "=1+1", "nul.nii", "", "\udc80"])
def test_a_name_that_some_system_refuses_is_refused_everywhere(name: str) -> None:
    assert check_file_name(name)
    assert not check_file_name("Patient_07-b (2) \u00e9")


def test_paths_are_relative_to_the_list_and_may_come_from_another_system(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "caf\u00e9.nii"
    file.touch()
    for text in (
        "sub/caf\u00e9.nii",
        "sub\\caf\u00e9.nii",
        "sub/cafe\u0301.nii",
        str(file),
        "./sub/../sub/caf\u00e9.nii",
    ):
        assert listed_file(tmp_path / "list.csv", text).samefile(file)
    assert listed_file(tmp_path / "list.csv", "none.nii") == tmp_path / "none.nii"
    assert listed_file(tmp_path / "list.csv", "x" * 5000).name == "x" * 5000


@pytest.mark.parametrize("text", [r"\\evil.example\share\a.nii", "//evil.example/share/a.nii", r"\\?\UNC\evil\share\a"])
def test_no_path_on_another_computer_is_opened(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"cohort\.network"):
        listed_file(tmp_path / "list.csv", text)
    with pytest.raises(InputError, match=r"cohort\.network"):
        entries(tmp_path, [{"image": "a.nii", "model": text}])
