"""`napari-seg edit`: correct whole structures in many label maps."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from napari_seg.cli.exit_codes import exit_code
from napari_seg.editing.operations import OPERATIONS, Operation, View

if TYPE_CHECKING:
    from napari_seg.volume import Segmentation

PROGRAM = "napari-seg edit"
"""Who edited, in the record of an edited label map."""

_MAX_PATH, _MAX_ISLANDS = 4000, 10

_RESULT = "result_sha256"
"""Key of an edit in a record: digest of the file that was written, so that a change by somebody else is seen."""


class _AppendOperation(argparse.Action):
    """Append an operation, so that the order of the command line is kept."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if isinstance(values, str):
            operation = Operation(self.const, view=values)  # type: ignore[arg-type]
        else:
            operation = Operation(self.const, size=values if isinstance(values, float) else 0.0)
        namespace.operations = [*namespace.operations, operation]


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "edit",
        help="correct label maps: fill holes, keep the largest island, remove islands, smooth, erode, dilate",
        description="Applies operations to the structures of label maps, in the order in which they are given, and "
        "writes new label maps with the same names, structures and positions, and a record that lists the operations. "
        "An input is never replaced. A file that fails does not stop the others.",
        epilog="Example: napari-seg edit results -o corrected --structure liver spleen --keep-largest --fill-holes "
        "--smooth 1.5",
    )
    parser.add_argument(
        "labels",
        nargs="+",
        type=Path,
        help="label maps (NIfTI, .seg.nrrd, NRRD, DICOM SEG), or folders. In a folder with results of this program "
        "these are edited, else all its NIfTI files and .seg.nrrd files",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="folder for the edited label maps, which keep their place below the input folder; or a file, for one "
        "label map. .seg.nrrd stays .seg.nrrd, every other format becomes NIfTI",
    )
    parser.add_argument(
        "--structure",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help='structures to edit, in any case; default: all. "label 3" is one without a name',
    )
    operations = parser.add_argument_group("operations")
    for name, kind in OPERATIONS.items():
        options: dict[str, Any] = {"action": _AppendOperation, "dest": "operations", "const": name, "default": []}
        if kind.unit == "view":
            options |= {"choices": get_args(View)}
        elif kind.unit:
            options |= {"type": _size, "metavar": kind.unit.upper()}
        else:
            options |= {"nargs": 0}
        operations.add_argument(f"--{name}", help=kind.description, **options)
    operations.add_argument(
        "--list-islands",
        action="store_true",
        help="edit nothing; print the volumes of the islands of each structure, for --remove-islands",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing label maps in the output folder")
    parser.add_argument("--json", action="store_true", help="print objects instead of lines")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.errors import NapariSegError

    if arguments.list_islands:
        if arguments.operations or arguments.output:
            arguments.usage_error("--list-islands edits nothing; expected no other operation and no -o")
        return _list_islands(arguments)
    if not arguments.operations:
        names = ", ".join(f"--{name}" for name in OPERATIONS)
        arguments.usage_error(f"give at least one operation: {names}")
    if arguments.output is None:
        arguments.usage_error("expected -o with the folder for the edited label maps")
    jobs = _jobs(arguments.labels, arguments.output, arguments.structure)
    inputs = {original.resolve() for original, _ in jobs}
    reports: list[dict[str, Any]] = []
    taken: set[Path] = set()
    for original, output in jobs:
        try:
            _check_free(output, original, inputs, taken)
            taken.add(output.resolve())
            report = _edit(
                original,
                output,
                arguments.operations,
                arguments.structure,
                overwrite=arguments.overwrite,
            )
        except NapariSegError as error:
            if error.code == "output.disk_full":
                raise
            report = {"labels": str(original), "code": error.code, "message": error.message}
        reports.append(report)
        if not arguments.json:
            _print(report)
    if arguments.json:
        print(json.dumps(reports, indent=2))
    return exit_code(sum("code" in report for report in reports), len(reports))


def _list_islands(arguments: argparse.Namespace) -> int:
    """Print the islands of each structure; a label map that fails does not stop the others."""
    from napari_seg.errors import NapariSegError, counted, one_line

    reports: list[dict[str, Any]] = []
    for path, _ in _label_maps(arguments.labels, arguments.structure):
        report: dict[str, Any]
        try:
            report = {"labels": str(path), "structures": _islands(path, arguments.structure)}
        except NapariSegError as error:
            report = {"labels": str(path), "code": error.code, "message": error.message}
        reports.append(report)
        if not arguments.json:
            _print_failure(report)
            for one in report.get("structures", ()):
                volumes = [island["ml"] for island in one["islands"]]
                more = f" and {len(volumes) - _MAX_ISLANDS} more" if len(volumes) > _MAX_ISLANDS else ""
                listed = ", ".join(f"{ml:.3g}" for ml in volumes[:_MAX_ISLANDS])
                count = counted(len(volumes), "island")
                name = one_line(str(path), _MAX_PATH)
                print(f"{name}  {one['name']}: {count}{f' of {listed} ml{more}' if volumes else ''}")
    if arguments.json:
        print(json.dumps(reports, indent=2))
    return exit_code(sum("code" in report for report in reports), len(reports))


def _islands(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the islands of the structures of a label map.

    Args:
        path: the label map.
        names: names of the structures; all if empty.

    Raises:
        InputError: the label map can't be read, or has no such structure.
    """
    from napari_seg.editing.islands import list_islands
    from napari_seg.formats.label_maps import check_no_intensities, read_label_map, with_all_segments_named
    from napari_seg.volume import rounded_ml, select_segments

    labels = read_label_map(path)
    check_no_intensities(labels, path)
    segmentation = with_all_segments_named(labels)
    counts = segmentation.voxel_counts()
    structures = []
    for one in select_segments(segmentation.segments, names, path.name):
        found = list_islands(segmentation.array, segmentation.grid, one.label) if counts[one.label] else []
        islands = [
            {
                "voxels": island.voxels,
                "ml": rounded_ml(island.ml),
                "centroid_mm": [round(x, 2) for x in island.centroid_mm],
            }
            for island in found
        ]
        structures.append({"name": one.name, "label": one.label, "islands": islands})
    return structures


def _size(text: str) -> float:
    """Return a size from the command line."""
    size = float(text)
    if not 0 < size <= 1000:
        raise argparse.ArgumentTypeError(f"found {text}; expected a number above 0, at most 1000")
    return size


def _jobs(inputs: Sequence[Path], output: Path, structures: Sequence[str]) -> list[tuple[Path, Path]]:
    """Return each label map with the file to write.

    Args:
        inputs: label maps, and folders.
        output: folder, or file for one label map.
        structures: names of the structures to edit; all if empty.

    Raises:
        InputError: as for `_label_maps`.
    """
    from napari_seg.formats.endings import NIFTI_ENDINGS, SEG_NRRD_ENDINGS, has_ending

    if len(inputs) == 1 and inputs[0].is_file() and has_ending(output, (*NIFTI_ENDINGS, *SEG_NRRD_ENDINGS)):
        return [(inputs[0], output)]
    return [(path, output / _output_name(name)) for path, name in _label_maps(inputs, structures, output)]


def _label_maps(
    inputs: Sequence[Path], structures: Sequence[str], output: Path | None = None
) -> list[tuple[Path, Path]]:
    """Return each label map with its path below its folder.

    Args:
        inputs: label maps, and folders.
        structures: names of the structures to edit; all if empty.
        output: folder whose files are left out.

    Raises:
        InputError: `input.missing`, a path does not exist; `input.none`, there is no label map; `edit.masks`, a folder
            has a mask for each structure.
    """
    from napari_seg.cohort.results_below import label_maps_below
    from napari_seg.errors import InputError

    found = []
    for path in inputs:
        if not path.exists():
            raise InputError("input.missing", f"{path} does not exist; check the path")
        if path.is_dir():
            _check_no_masks(path, structures)
            found += [(one, one.relative_to(path)) for one in label_maps_below(path, output)]
        else:
            found.append((path, Path(path.name)))
    if not found:
        raise InputError("input.none", "found no label map; expected NIfTI or .seg.nrrd files in the folder")
    return found


def _check_no_masks(folder: Path, structures: Sequence[str]) -> None:
    """Refuse a folder with a mask for each structure, which shows in a file with the name of a structure to edit.

    Raises:
        InputError: `edit.masks`.
    """
    from napari_seg.errors import InputError
    from napari_seg.formats.label_maps import stated_names
    from napari_seg.formats.mask_folder import mask_files
    from napari_seg.structure_names import match_each

    masks = mask_files(folder) if structures else {}
    for name in match_each(structures, masks).values():
        if not stated_names(masks[name]):
            text = f"{folder} holds a mask for each structure, such as {masks[name].name}; expected label maps"
            way = f"convert it first: napari-seg convert {folder} labels.nii.gz"
            raise InputError("edit.masks", f"{text}; {way}")


def _output_name(path: Path) -> Path:
    from napari_seg.formats.endings import SEG_NRRD_ENDINGS, has_ending, nifti_ending

    if nifti_ending(path) or has_ending(path, SEG_NRRD_ENDINGS):
        return path
    return path.with_name(f"{path.stem}.nii.gz")


def _check_free(output: Path, original: Path, inputs: set[Path], taken: set[Path]) -> None:
    """Refuse a file that is an input, or that another label map of this call was written to.

    Raises:
        OutputError: `output.exists`.
    """
    from napari_seg.errors import OutputError
    from napari_seg.formats.record import record_path

    if output.resolve() in inputs:
        raise OutputError("output.exists", f"{output} is an input, which is never replaced; choose another -o")
    if record_path(output).resolve() in {record_path(one).resolve() for one in (original, *inputs)}:
        text = f"the record of {output} would replace that of an input; choose another -o"
        raise OutputError("output.exists", text)
    if output.resolve() in taken:
        raise OutputError("output.exists", f"{output} would be written twice; edit these inputs one after the other")


def _edit(
    original: Path,
    output: Path,
    operations: Sequence[Operation],
    structures: Sequence[str],
    *,
    overwrite: bool,
) -> dict[str, Any]:
    """Write one edited label map with its record; return what is printed about it.

    If it was written by the same call before, nothing is written.

    Args:
        original: label map.
        output: file to write.
        operations: operations in their order.
        structures: names of the structures; all if empty.
        overwrite: replace an existing file.

    Raises:
        NapariSegError: the label map can't be read or edited, or the file can't be written.
    """
    import numpy as np

    from napari_seg.cohort.outputs import sha256_of
    from napari_seg.editing.operations import apply_operations
    from napari_seg.errors import InputError, OutputError
    from napari_seg.formats.atomic import make_output_folder, not_written, set_aside
    from napari_seg.formats.endings import SEG_NRRD_ENDINGS, has_ending
    from napari_seg.formats.kinds import write_label_map
    from napari_seg.formats.label_maps import (
        check_no_intensities,
        cropped_axes,
        on_grid,
        read_label_map,
        union_box,
        with_all_segments_named,
    )
    from napari_seg.formats.record import edited_record, read_record, record_path, write_record
    from napari_seg.volume import select_segments

    try:
        digest = sha256_of([original])
    except OSError as error:
        text = f"{original.name} can't be opened: {error.strerror}"
        raise InputError("file.unreadable", text) from error
    edit = {
        "by": PROGRAM,
        "original": original.name,
        "original_sha256": digest,
        "structures": list(structures) or "all",
        "operations": [str(operation) for operation in operations],
    }
    report: dict[str, Any] = {"labels": str(original), "output": str(output)}
    record = record_path(output)
    if output.exists() and not overwrite:
        edits = (read_record(record) or {}).get("edits")
        last = dict(edits[-1]) if isinstance(edits, list) and edits and isinstance(edits[-1], dict) else {}
        written = last.pop(_RESULT, "")  # earlier versions noted none
        if last == edit and written in ("", sha256_of([output])):
            return {**report, "kept": True, "compared": bool(written)}
        what = "was changed after this command had written it" if last == edit else "already exists"
        raise OutputError("output.exists", f"{output} {what}; choose another folder, or pass --overwrite")
    if record.exists() and (read_record(record) is None or not output.exists()):
        text = f"{record} belongs to another file and has the name of the record; choose another folder or file name"
        raise OutputError("output.exists", text)
    found = read_label_map(original)
    check_no_intensities(found, original)
    before = with_all_segments_named(found)
    edited = [segment.label for segment in select_segments(before.segments, structures, original.name)]
    after = apply_operations(before, operations, edited, cropped_axes(before, original))
    both = union_box(before.grid, after.grid)  # a cropped label map has other edges than before
    if not has_ending(output, SEG_NRRD_ENDINGS):  # only .seg.nrrd is known to be cropped when it is read again
        after = on_grid(after, both, output)
    content = edited_record(after, original, edit)
    is_as_made = (read_record(record_path(original)) or {}).get("sha256") == digest
    make_output_folder(output.parent)  # so late that a label map that fails leaves no empty folder
    try:
        with set_aside(record):  # so that it never lies next to labels that it does not describe
            write_label_map(after, output)
        content["edits"][-1][_RESULT] = written = sha256_of([output])
        if is_as_made and np.array_equal(before.array, after.array):
            content["sha256"] = written
        write_record(record, content)
    except OSError as error:
        raise not_written(str(record), error) from error
    report["structures"] = _volumes(on_grid(before, both, original), on_grid(after, both, output), edited)
    report["notices"] = [str(notice) for notice in after.notices]
    return report


def _volumes(before: Segmentation, after: Segmentation, labels: Sequence[int]) -> list[dict[str, Any]]:
    """Return what was changed of each structure."""
    import numpy as np

    from napari_seg.volume import rounded_ml

    ml = before.grid.voxel_ml
    voxels = before.voxel_counts()
    names = {segment.label: segment.name for segment in before.segments}
    is_changed = before.array != after.array
    count = max(labels, default=0) + 1
    added, removed = (np.bincount(one.array[is_changed], minlength=count) for one in (after, before))
    return [
        {
            "name": names[label],
            "label": label,
            "ml_before": rounded_ml(voxels[label] * ml),
            "ml_after": rounded_ml((voxels[label] + gain - loss) * ml),
            "ml_added": rounded_ml(gain * ml),
            "ml_removed": rounded_ml(loss * ml),
            "voxels_before": voxels[label],
            "voxels_after": voxels[label] + gain - loss,
            "voxels_added": gain,
            "voxels_removed": loss,
            "changed": bool(gain or loss),
        }
        for label, gain, loss in ((label, int(added[label]), int(removed[label])) for label in labels)
    ]


def _print(report: dict[str, Any]) -> None:
    from napari_seg.errors import counted, one_line

    labels, output = (one_line(report.get(key, ""), _MAX_PATH) for key in ("labels", "output"))
    for notice in report.get("notices", ()):
        print(f"napari-seg: {notice}", file=sys.stderr)
    if _print_failure(report):
        return
    if report.get("kept"):
        state = "unchanged since" if report["compared"] else "not compared, since its record has no digest of it"
        print(f"{labels} -> {output}: written before by the same command and {state}, kept")
        return
    print(f"{labels} -> {output}")
    width = max((len(one["name"]) for one in report["structures"]), default=0)
    for one in report["structures"]:
        change = f"{one['ml_before']:10.2f} ml -> {one['ml_after']:10.2f} ml"
        parts = [
            f"{sign}{counted(count, 'voxel')} ({one[f'ml_{what}']:.3g} ml)"
            for sign, what in (("+", "added"), ("-", "removed"))
            if (count := one[f"voxels_{what}"])
        ]
        print(f"  {one['name']:{width}}  {change}  {'  '.join(parts) or '(unchanged)'}")


def _print_failure(report: dict[str, Any]) -> bool:
    """Print why a label map failed; return whether it did."""
    from napari_seg.errors import one_line

    if "code" in report:
        labels, text = (one_line(report[key], _MAX_PATH) for key in ("labels", "message"))
        print(f"napari-seg: {labels}: {report['code']}: {text}", file=sys.stderr)
    return "code" in report
