"""Find the reference and the scan of each result by file names and folders.

Both lie in the same folders, or those of one side lie in one folder and are named after the folders and the file, as
`predict` names results there.

    result                  reference
    case_seg.nii.gz         case.nii.gz
    a/b/case_seg.nii.gz     a/b/case.nii.gz
    a_b_case_seg.nii.gz     a/b/case.nii.gz
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from napari_seg.errors import InputError
from napari_seg.evaluation.case_files import (
    by_name,
    case_names,
    case_of_result,
    label_maps,
    name_below,
    path_below,
    share_folders,
    stem,
)


class Partners(NamedTuple):
    """A result and its reference.

    Attributes:
        case: name of the case, which is that of the reference below its folder.
        result: path of the result.
        reference: path of the reference.
        scan: path of the scan, if the data set says it.
    """

    case: str
    result: Path
    reference: Path
    scan: Path | None = None


def find_partners(results: Path, references: Path) -> tuple[list[Partners], list[tuple[str, str]]]:
    """Return the results with their references, and the case and a message for each file without a partner.

    If one of the paths is a file, the others need no partner.

    Args:
        results: a label map, or a folder of label maps.
        references: the same for references.
    """
    with_folders = share_folders(results, references)
    found = {path: name_below(path, results) for path in label_maps(results, with_folders=with_folders)}
    expected = by_name(label_maps(references, with_folders=with_folders), references)
    name_of = _names(found.values(), expected)
    pairs: dict[str, Partners] = {}
    alone: list[tuple[str, str]] = []
    for path, own in found.items():
        name, shown = name_of.get(own), path_below(path, results)
        if name is None:
            if not references.is_file():
                alone.append((case_of_result(own), f"{shown} has no reference with the same name"))
        elif len(expected[name]) > 1:
            continue
        elif name in pairs:
            other = path_below(pairs[name].result, results)
            alone.append((own, f"{shown} and {other} belong to the same reference"))
        else:
            pairs[name] = Partners(name, path, expected[name][0])
    for name in sorted(expected.keys() - pairs if results.is_dir() else {*name_of.values()} - pairs.keys()):
        files = [path_below(path, references) for path in expected[name]]
        text = f"{files[0]} has no label map with the same name"
        if len(files) > 1:
            text = f"{' and '.join(files)} are references of the same name; expected one of them"
        alone.append((name, text))
    return [*pairs.values()], alone


def find_scans(scans: Path, pairs: Sequence[Partners]) -> dict[Path, Path]:
    """Return result -> its scan, for the results that have one.

    Args:
        scans: a scan, or a folder of scans.
        pairs: the results with their references.

    Raises:
        InputError: `input.unpaired`, two scans of a case have the same name.
    """
    files = by_name(label_maps(scans), scans, "_0000")
    names = {pair: [pair.case, *([stem(pair.reference)] if pair.scan else [])] for pair in pairs}
    name_of = _names([name for some in names.values() for name in some], files)
    found = {}
    for pair in pairs:
        name = next((name_of[name] for name in names[pair] if name in name_of), None)
        if name is None:
            continue
        if len(paths := files[name]) > 1:
            text = f"{' and '.join(path.name for path in paths)} are scans of the same name; expected one of them"
            raise InputError("input.unpaired", text)
        found[pair.result] = paths[0]
    return found


def _names(results: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Return result -> the name of its reference or scan, for those that have one."""
    is_one_flat = any("/" in name for name in results) != any("/" in name for name in others)

    def key(name: str) -> str:
        return name.replace("/", "_") if is_one_flat else name

    by_key: dict[str, list[str]] = {}
    for name in others:
        by_key.setdefault(key(name), []).append(name)
    found = {}
    for result in results:
        names = next((by_key[name] for name in case_names(key(result)) if name in by_key), [])
        if len(names) == 1:  # several: a_b/x and a/b_x
            found[result] = names[0]
    return found
