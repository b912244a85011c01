"""Patients of several data sets are one if they share an image, by its path or its content."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from napari_seg.training.gather.patients import CaseSource, count_equal_names, number_patients


def write(path: Path, seed: int, size: int = 3_000_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


def test_images_in_common_join_patients(tmp_path: Path) -> None:
    first, second, other = (write(tmp_path / "a" / name, seed) for seed, name in enumerate(("p1", "p2", "p3")))
    copy = write(tmp_path / "b" / "copy", 0)
    a, b = tmp_path / "a", tmp_path / "b"
    cases = {
        (1, "p1"): CaseSource(a, "p1", (first,)),
        (1, "p2"): CaseSource(a, "Anna", (second,)),
        (1, "p3"): CaseSource(a, "Anna", (other,)),
        (2, "x"): CaseSource(b, "x", (copy,)),  # equal bytes
        (2, "y"): CaseSource(b, "Anna", (write(b / "y", 5),)),  # another folder, so another Anna
        (3, "z"): CaseSource(a, "Anna", (write(a / "z", 6),)),
        (3, "p2"): CaseSource(b, "p2", (b / "y", first)),  # the files of two patients so far
    }
    assert list(number_patients(cases).values()) == [1, 2, 2, 1, 1, 2, 1]


def test_images_of_one_size_differ_by_any_block(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "p", 0)
    content = bytearray(first.read_bytes())
    second = tmp_path / "b" / "p"
    second.parent.mkdir()
    second.write_bytes(content[:1_500_000] + bytes(300_000) + content[1_800_000:])
    cases = {(n, "P"[: n == 1] or "p"): CaseSource(path.parent, "p", (path,)) for n, path in ((1, first), (2, second))}
    patients = number_patients(cases)
    assert list(patients.values()) == [1, 2]
    assert count_equal_names(patients) == 1
    second.write_bytes(content)
    assert count_equal_names(number_patients(cases)) == 0


def test_equal_headers_of_other_pixels_are_other_patients(tmp_path: Path) -> None:
    sources = []
    for folder, seed in (("a", 1), ("b", 2), ("c", 1)):
        write(tmp_path / folder / "ct.raw", seed, 100)
        (tmp_path / folder / "ct.mhd").write_text("NDims = 3\nElementDataFile = ct.raw\n")
        sources.append(CaseSource(tmp_path / folder, "p", (tmp_path / folder / "ct.mhd",)))
    numbers = number_patients({(number, "p"): source for number, source in enumerate(sources)})
    assert list(numbers.values()) == [1, 2, 1]
