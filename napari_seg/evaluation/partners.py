"""Find the reference and the scan of each result by file names and folders.

same path      a/case_seg.nii.gz                        a/case.nii.gz; without folders: case_seg.nii.gz, case.nii.gz
other folders  case_seg.nii.gz                          a/manual/case.nii.gz, if no other file fits as well
BIDS           sub-01_seg-brain_desc-T1w_dseg.nii.gz    sub-01_dseg.nii.gz, sub-01_T1w_label-lesion_mask.nii.gz, ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from napari_seg.errors import InputError, listed
from napari_seg.evaluation import bids
from napari_seg.evaluation.case_files import (
    by_name,
    case_names,
    label_maps,
    name_below,
    path_below,
    scans_at,
    share_folders,
)

_Degree = tuple[int, int, int]
"""How well two files fit, to be compared: by name, then folders, or in BIDS words and folders."""


class Partners(NamedTuple):
    """A result and its reference.

    Attributes:
        case: name of the case.
        name: name of the reference below its folder.
        result: path of the result.
        reference: path of the reference.
    """

    case: str
    name: str
    result: Path
    reference: Path


def find_partners(
    results: Path, references: Path, only: Collection[str] | None = None
) -> tuple[list[Partners], list[tuple[str, str]]]:
    """Return the results with their references, and the case and a message for each file without a partner.

    If one of the paths is a file, the others need no partner.

    Args:
        results: a label map, or a folder of label maps.
        references: the same for references.
        only: names of the references to pair; None: all.

    Raises:
        InputError: `input.unpaired`, several files in other folders fit one alike.
    """
    are_alike = share_folders(results, references)
    found = label_maps(results, has_folders=are_alike, without=references)
    paths = label_maps(references, has_folders=are_alike, are_references=True, without=results)
    expected = by_name(paths, references)
    named = [(name_below(path, results), path) for path in found]
    fits = _fits([name for name, _ in named], expected)
    _check_clear(fits, {name: path_below(path, results) for name, path in named}, expected, references)
    name_of = {result: names[0] for result, names in fits.items()}
    cases = _case_names(named, expected, name_of)
    pairs: dict[str, Partners] = {}
    alone: list[tuple[str, str]] = []
    for result, path in named:
        name = name_of.get(result)
        if name is None:
            if not references.is_file():
                alone.append((cases[result], f"{path_below(path, results)} has no reference with the same name"))
        elif (only is not None and name not in only) or len(expected[name]) > 1:
            continue
        elif name in pairs:
            text = f"{path_below(path, results)} and {path_below(pairs[name].result, results)} belong to the same"
            alone.append((result, f"{text} reference"))
        else:
            pairs[name] = Partners(cases[name], name, path, expected[name][0])
    for name in sorted(expected.keys() - pairs if results.is_dir() else {*name_of.values()} - pairs.keys()):
        files = [path_below(path, references) for path in expected[name]]
        if only is not None and name not in only:
            continue
        text = f"{files[0]} has no label map with the same name"
        if len(files) > 1:
            text = f"{' and '.join(files)} are references of the same name; expected one of them"
        alone.append((cases[name], text))
    return [*pairs.values()], alone


def find_scans(scans: Path, pairs: Sequence[Partners], results: Path) -> dict[Path, Path]:
    """Return result -> its scan, for the results that have one.

    Args:
        scans: a scan, or a folder of scans.
        pairs: the results with their references.
        results: folder of the results.

    Raises:
        InputError: `input.unpaired`, two scans of a case have the same name.
    """
    files = by_name(scans_at(scans), scans, "_0000")
    names = {pair.result: name_below(pair.result, results) for pair in pairs}
    has_folders = any("/" in name for name in (*names.values(), *files))
    fits = _fits([*names.values()], files, are_scans=True) if has_folders else {}
    found = {}
    for pair in pairs:
        fitting = [pair.name] if pair.name in files else fits.get(names[pair.result], [])
        if len(fitting) != 1:
            continue
        if len(paths := files[fitting[0]]) > 1:
            text = f"{' and '.join(path.name for path in paths)} are scans of the same name; expected one of them"
            raise InputError("input.unpaired", text)
        found[pair.result] = paths[0]
    return found


def _fits(results: Sequence[str], others: Collection[str], *, are_scans: bool = False) -> dict[str, list[str]]:
    """Return result -> the references, or scans, that fit it best, by names below their folders.

    One of the same path fits best, and, unless there are no folders at all, one of the name of the case whose folders
    are among those of the result, in their order, or the other way round; so files in one folder fit those of any
    folders. Then those fit best that have most folders in common. In BIDS, a label map fits, or a scan, if the result
    has all its entities that identify a scan, and those with most words, then folders, in common fit best. Only those
    are returned that no other result fits better.

    Args:
        results: names of results.
        others: names of references or scans.
        are_scans: they are scans.
    """
    same = {one: next((name for name in case_names(one) if name in others), "") for one in results}
    fits = {result: [name] for result, name in same.items() if name}
    if not any("/" in name for name in (*results, *others)):
        return fits
    by_file: dict[str, list[str]] = {}
    by_subject: dict[str, list[str]] = {}
    for other in sorted({*others} - {*same.values()}):
        file = _file(other)
        by_file.setdefault(file, []).append(other)
        if entities := bids.scan_entities(file) if are_scans or bids.is_label_map(file) else ():
            by_subject.setdefault(entities[0], []).append(other)
    degrees: dict[str, dict[str, _Degree]] = {}
    best: dict[str, _Degree] = {}
    for result in (result for result, name in same.items() if not name):
        file = _file(result)
        of_subject = [other for entity in bids.scan_entities(file)[:1] for other in by_subject.get(entity, ())]
        of_name = [other for name in dict.fromkeys(case_names(file)) for other in by_file.get(name, ())]
        degrees[result] = {other: degree for other in of_subject if (degree := _degree_in_bids(result, other))}
        degrees[result] |= {other: degree for other in of_name if (degree := _degree_by_name(result, other))}
        best |= {other: max(degree, best.get(other, degree)) for other, degree in degrees[result].items()}
    for result, of_result in degrees.items():
        if names := [name for name, degree in of_result.items() if degree == max(of_result.values()) == best[name]]:
            fits[result] = sorted(names)
    return fits


def _degree_by_name(result: str, other: str) -> _Degree | None:
    """Return how well two files with the name of one case fit; None if their folders are others."""
    folders, other_folders = (name.split("/")[:-1] for name in (result, other))
    few, many = sorted((folders, other_folders), key=len)
    left = iter(many)
    return (1, len(few), 0) if all(folder in left for folder in few) else None


def _degree_in_bids(result: str, other: str) -> _Degree | None:
    """Return how well two files of one subject fit; None if they are of different scans."""
    words = bids.shared_words(_file(result), _file(other))
    return (0, words, len({*result.split("/")[:-1]}.intersection(other.split("/")[:-1]))) if words else None


def _check_clear(
    fits: Mapping[str, Sequence[str]],
    files: Mapping[str, str],
    expected: Mapping[str, Sequence[Path]],
    references: Path,
) -> None:
    """Check that no result fits several references alike, and no reference in another folder several results.

    Raises:
        InputError: `input.unpaired`.
    """
    rivals: dict[str, list[str]] = {}
    for result, names in fits.items():
        shown = [path_below(expected[name][0], references) for name in names]
        if len(names) > 1:
            text = f"found the references {listed(shown)} for {files[result]}, which fit alike; expected one"
            way = "give the folder that holds only the references, or arrange them in folders as the results"
            raise InputError("input.unpaired", f"{text}; {way}")
        rivals.setdefault(names[0], []).extend([files[result]] if names[0] not in case_names(result) else [])
        if len(rivals[names[0]]) > 1:
            text = f"found the results {listed(rivals[names[0]])} for the reference {shown[0]}, which fit alike"
            way = "give a folder with one result of each case, or arrange the references in folders as the results"
            raise InputError("input.unpaired", f"{text}; expected one; {way}")


def _case_names(
    named: Sequence[tuple[str, Path]], expected: Collection[str], name_of: Mapping[str, str]
) -> dict[str, str]:
    """Return reference, or result without one -> name of its case, which is the same whether or not it has a partner.

    That is its name below the folder, without the endings that other results have in addition to their references; in
    BIDS, where names have folders, the entities that identify the scan, as in training.
    """
    endings = {"_seg", *(one.removeprefix(name) for one, name in name_of.items() if one.startswith(name))} - {""}
    cases = {name: name for name in expected}
    for result, _ in named:
        if result not in name_of:
            ending = max((one for one in endings if result.endswith(one)), key=len, default="")
            cases[result] = result.removesuffix(ending)
    short = {name: "_".join(bids.scan_entities(_file(name))) if "/" in name else "" for name in cases}
    counts = Counter(short.values())
    return {name: short[name] if short[name] and counts[short[name]] == 1 else case for name, case in cases.items()}


def _file(name: str) -> str:
    return name.rpartition("/")[2]
