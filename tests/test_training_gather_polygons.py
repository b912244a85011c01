"""Polygons of COCO and labelme become label maps whose pixels are those with their centres inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from napari_seg.errors import InputError
from napari_seg.formats.image2d import read_image2d
from napari_seg.training.gather.gather import gather
from napari_seg.training.gather.polygons import _annotated_images, inside, read_polygons
from napari_seg.training.segnets_modules import with_segnets

SIZE = (6, 9)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(np.prod(SIZE), dtype=np.uint8).reshape(SIZE)).save(path)
    return path


def square(x: float, y: float, other_x: float, other_y: float) -> list[float]:
    return [x, y, other_x, y, other_x, other_y, x, other_y]


def labelme(image: str, *shapes: dict[str, Any]) -> str:
    return json.dumps({"version": "5.0", "imagePath": image, "shapes": shapes})


def test_a_pixel_is_inside_if_its_centre_is() -> None:
    expected = np.zeros(SIZE, bool)
    expected[1:4, 2:6] = True
    for x, y, other_x, other_y in ((2, 1, 6, 4), (1.6, 0.6, 5.6, 3.6), (2.4, 1.4, 6.4, 4.4)):
        assert np.array_equal(inside(np.reshape(square(x, y, other_x, other_y), (-1, 2)), SIZE), expected)
    assert inside(np.array([(-5.0, -5.0), (50, -5), (50, 50), (-5, 50)]), SIZE).all()
    triangle = inside(np.array([(0.0, 0.0), (6, 0), (0, 6)]), SIZE)
    assert np.array_equal(triangle[:, :6], np.add.outer(np.arange(6), np.arange(6)) + 1 < 6)
    hole = np.array([(0.0, 0.0), (6, 0), (6, 6), (0, 6), (0, 0), (2, 2), (2, 4), (4, 4), (4, 2), (2, 2)])
    assert inside(hole, SIZE).sum() == 36 - 4


def test_coco_with_polygons_and_run_lengths(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / "set" / "images" / f"{name}.png")
    mask = np.zeros(SIZE, bool)
    mask[2:5, 1:3] = True
    runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, mask.T.ravel(), -1])))
    content = {
        "images": [{"id": n, "file_name": f"{name}.png", "height": 6, "width": 9} for n, name in enumerate("abc")],
        "categories": [{"id": 7, "name": "cell"}, {"id": 3, "name": "nucleus"}],
        "annotations": [
            {"image_id": 0, "category_id": 3, "segmentation": [square(3, 2, 4, 3)]},
            {"image_id": 0, "category_id": 7, "segmentation": [square(2, 1, 6, 4), square(0, 0, 1, 1)]},
            {"image_id": 1, "category_id": 7, "segmentation": {"size": SIZE, "counts": runs.tolist()}},
        ],
    }
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(content))
    with with_segnets():
        found = gather(tmp_path / "set", tmp_path / "out", {})
    assert found is not None
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "nucleus": 3, "cell": 7}
    first, second = (np.asarray(Image.open(tmp_path / "out" / one["label"])) for one in description["training"])
    expected = np.zeros(SIZE, np.uint8)
    expected[1:4, 2:6] = expected[0, 0] = 7
    expected[2, 3] = 3
    assert np.array_equal(first, expected)
    assert np.array_equal(second, 7 * mask)
    assert {(o.ending, o.count, o.code) for o in found.passed_over} == {(".png", 1, "partner.no_label")}


def test_ids_of_a_database_are_no_values(tmp_path: Path) -> None:
    categories = [{"id": 100_000, "name": "cell"}, {"id": 4_000_000_000, "name": "axon"}]
    annotations = [
        {"image_id": n, "category_id": one["id"], "segmentation": [square(n, 1, 4, 3)]}
        for n, one in enumerate(categories)
    ]
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(2)]
    for one in images:
        picture(tmp_path / "set" / one["file_name"])
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(content))
    with with_segnets():
        gather(tmp_path / "set", tmp_path / "out", {})
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "cell": 1, "axon": 2}
    values = [set(np.unique(Image.open(tmp_path / "out" / one["label"]))) for one in description["training"]]
    assert values == [{0, 1}, {0, 2}]


def test_packed_run_lengths() -> None:
    from napari_seg.training.gather.polygons import _run_lengths

    # each number takes 5 bits a letter; from the fourth on the difference to the one before the last
    assert _run_lengths(b"632>O") == [6, 3, 2, 3 + 14, 2 - 1]


def test_labelme_with_its_shapes(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(
        labelme(
            "a.png",
            {"label": "cell", "points": [[0, 0], [3, 2]], "shape_type": "rectangle"},
            {"label": "axon", "points": [[6, 3], [7.4, 3]], "shape_type": "circle"},
            {"label": "seed", "points": [[6, 3]], "shape_type": "point"},
        )
    )
    found = read_polygons(tmp_path / "a.json", image, read_image2d(image).grid)
    assert [(segment.label, segment.name) for segment in found.segments] == [(1, "axon"), (2, "cell"), (3, "seed")]
    array = found.array[..., 0].T
    assert (array[:2, :3] == 2).all()
    assert [int((array == value).sum()) for value in (1, 2, 3)] == [4, 6, 0]
    assert [notice.code for notice in found.notices] == ["labels.not_closed"]


@pytest.mark.parametrize(
    "shape",
    [
        {"label": "cell", "points": [[0, 0, 1]], "shape_type": "polygon"},
        {"label": "cell"},
        {"label": "cell", "points": [["a", 0]]},
        {"label": "cell", "points": [[0, 0], [2, 2]], "shape_type": "mask", "mask": "AAAA"},
        {"points": []},
    ],
)
def test_annotations_in_another_form_are_refused(tmp_path: Path, shape: dict[str, Any]) -> None:
    image = picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(labelme("a.png", shape))
    with pytest.raises(InputError) as caught:
        read_polygons(tmp_path / "a.json", image, read_image2d(image).grid)
    assert caught.value.code == "labels.annotation"


def test_run_lengths_of_another_size_take_no_memory(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": {"size": SIZE, "counts": [10**12, 10**12]}}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError):
        read_polygons(tmp_path / "a.json", image, read_image2d(image).grid)


def test_an_id_that_is_a_list_ends_in_no_traceback() -> None:
    content = {"images": [{"id": [1], "file_name": "a.png"}], "annotations": [{"image_id": [1]}], "categories": []}
    assert list(_annotated_images(content)) == ["a.png"]


@pytest.mark.parametrize(
    ("folders", "patients"),
    [
        (("patient1", "patient2", "patient3"), [f"patient {n}" for n in (1, 1, 2, 2, 3, 3)]),
        (("train2017", "val2017"), []),
        (("batch1", "batch2", "batch3", "batch4"), []),
    ],
)
def test_only_folders_named_as_patients_are_patients(
    tmp_path: Path, folders: tuple[str, ...], patients: list[str]
) -> None:
    for n, place in enumerate(folders):
        for name in (f"{n}a", f"{n}b"):
            picture(tmp_path / "set" / place / f"{name}.png")
            shape = {"label": "cell", "points": [[1, 1], [4, 1], [4, 3]], "shape_type": "polygon"}
            (tmp_path / "set" / place / f"{name}.json").write_text(labelme(f"{name}.png", shape))
    lines: list[str] = []
    with with_segnets():
        gather(tmp_path / "set", tmp_path / "out", {}, lines.append)
    entries = json.loads((tmp_path / "out" / "dataset.json").read_text())["training"]
    assert [entry["patient"] for entry in entries if "patient" in entry] == patients
    assert ("count as those of a patient each" in " ".join(lines)) == (not patients)
