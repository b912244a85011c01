"""Pair label maps with their references and score each pair."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, NapariSegError, Notice, listed
from napari_seg.evaluation.declared import Declared, as_planned, declared
from napari_seg.evaluation.labels import (
    BACKGROUND,
    Classes,
    as_classes,
    do_overlap,
    mask_ignored,
    only_labelled,
    with_labels_of,
    with_names,
)
from napari_seg.evaluation.metrics import Scores, compare_label_maps, disagreement
from napari_seg.evaluation.names import match_names
from napari_seg.evaluation.regions import compare_regions
from napari_seg.formats.dicom.headers import file_label
from napari_seg.formats.endings import nifti_ending
from napari_seg.formats.image2d import is_image2d
from napari_seg.formats.label_maps import is_cropped, on_common_grid, on_grid, read_label_map
from napari_seg.formats.mask_folder import mask_files
from napari_seg.volume import Segment, Segmentation, distinct_color

logger = logging.getLogger(__name__)

VOID = 255
"""Void label: the value that PASCAL VOC and similar data sets write along uncertain object borders."""

_UNNAMED_VOID = f"label {VOID}"
"""Name of the void label in a label map without names."""

MEAN = "mean"
"""Name of the table row that holds the mean over the segments of each case."""


@dataclass(frozen=True)
class Pair:
    """A label map, its reference and, if available, the scan.

    Attributes:
        name: case name.
        prediction: path of the label map.
        reference: path of the reference.
        scan: path of the scan; used only to draw figures.
        classes: meaning of the reference's values; None if segments are matched by name, and labels without names by
            number.
        ignore_frame: compare DICOM objects even if their frames of reference differ.
        ignored: ignore labels of the reference; their voxels are not compared.
        labelled: values of the reference that are annotated; other classes are not compared. None: all.
        declared: name -> values that the data set of the reference declares; used if the reference has no names.
    """

    name: str
    prediction: Path
    reference: Path
    scan: Path | None = None
    classes: Classes | None = None
    ignore_frame: bool = False
    ignored: tuple[int, ...] = ()
    labelled: tuple[int, ...] | None = None
    declared: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def has_regions(self) -> bool:
        """True if the classes overlap, so that they are compared one by one."""
        return do_overlap(self.classes or {})

    @property
    def is_image_2d(self) -> bool:
        """True for 2D images, whose distances are in pixels."""
        return is_image2d(self.prediction)

    def read(self) -> tuple[Segmentation, Segmentation]:
        """Read the label map and its reference, relabelled so that the same names have equal labels.

        Raises:
            InputError: a file can't be read, or its values don't fit `classes`; see `read_label_map`, `as_classes`,
                `with_labels_of`.
        """
        prediction = read_label_map(self.prediction)
        reference = read_label_map(
            self.reference,
            prediction.grid,
            images=[self.prediction],
            ignore_frame=self.ignore_frame,
            on_own_grid=is_cropped(self.prediction),
            header_names=not self.declared,
        )
        prediction, reference = on_common_grid((prediction, self.prediction), (reference, self.reference))
        if self.ignored:
            prediction, reference = mask_ignored(self.ignored, prediction, reference, self.reference.name)
        if self.has_regions:
            return prediction, reference
        meaning: Classes | None = self.classes
        if self.classes:
            relabelled = as_classes(reference, self.classes, prediction)
        else:
            reference = with_names(reference, self.declared, prediction)
            relabelled = with_labels_of(prediction, reference, self.reference.name)
            if relabelled is not reference:
                meaning = {segment.name: ((segment.label, segment.label),) for segment in reference.segments}
        if self.labelled is None:
            return prediction, relabelled
        return only_labelled(self.labelled, meaning, prediction, relabelled)


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case, or the reason why it has none.

    Attributes:
        name: case name.
        pair: the compared files; None for a file without a partner.
        segments: every structure that the label map or the reference contains or names.
        scores: segment name -> scores.
        confusion_ml: name in the reference -> name in the result -> volume in ml, background included; zeros omitted.
        notices: warnings about the two files.
        code: error code; "" if the comparison succeeded.
        message: error message.
    """

    name: str
    pair: Pair | None = None
    segments: tuple[Segment, ...] = ()
    scores: dict[str, Scores] = field(default_factory=dict)
    confusion_ml: dict[str, dict[str, float]] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    code: str = ""
    message: str = ""

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the segments that either label map contains; nan if there are none."""
        known = [scores.dice for scores in self.scores.values() if not isnan(scores.dice)]
        return sum(known) / len(known) if known else nan

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; nan becomes null."""
        return {
            "name": self.name,
            "mean_dice": _or_none(self.mean_dice),
            "segments": {
                name: {key: _or_none(value) for key, value in asdict(scores).items()}
                for name, scores in self.scores.items()
            },
            "confusion_ml": self.confusion_ml,
            "notices": [asdict(notice) for notice in self.notices],
            "code": self.code,
            "message": self.message,
        }


def find_pairs(
    predictions: Path,
    references: Path,
    scans: Path | None = None,
    classes: Classes | None = None,
    *,
    ignore_frame: bool = False,
    ignored: Sequence[int] = (),
    only: Collection[str] | None = None,
    planned: Classes | None = None,
) -> tuple[list[Pair], list[CaseScores]]:
    """Return a pair for each name in both folders, and a failed result for each file without a partner.

    Args:
        predictions: a label map, also a folder with a mask for each structure if `references` is one file; or a folder
            of label maps: all its NIfTI files, or its 2D images if it contains no NIfTI file. `case_01_seg.nii.gz` and
            `case_01_0000_seg.nii.gz` belong to the case `case_01`.
        references: the reference, or a folder of references.
        scans: the scan, or a folder of scans named `case_01.nii.gz` or `case_01_0000.nii.gz`; used only for figures.
        classes: meaning of the references' values; None: that of their names, which their dataset.json may declare.
        ignore_frame: compare DICOM objects even if their frames of reference differ.
        ignored: ignore labels of the references, in addition to those declared in their dataset.json.
        only: names of the references to compare; None: all.
        planned: meaning of the references' values in a training, in place of what their dataset.json declares.

    Raises:
        InputError: `input.missing`, a path does not exist; `input.unpaired`, two scans of a case have the same name;
            `dataset.bad_json`, see `declared`.
    """
    for path in (predictions, references, *([scans] if scans else [])):
        if not path.exists():
            raise InputError("input.missing", f"there is no file or folder {path}")
    stated = declared(references)
    if planned:
        stated = as_planned(stated, planned)
    ignore_labels = tuple(dict.fromkeys((*ignored, *stated.ignored)))
    classes = classes or stated.regions or None
    if _is_label_map(predictions, references) and _is_label_map(references, predictions):
        scan = scans if scans and scans.is_file() else None
        case_name = _stem(Path(file_label(predictions)))
        labelled = stated.labelled.get(_stem(Path(file_label(references))))
        found = (predictions, references, scan, classes, ignore_frame, ignore_labels, labelled, stated.names)
        return [Pair(case_name, *found)], []
    references_by_name = _by_name(_label_maps(references))
    scans_by_name = _by_name(_label_maps(scans) if scans else [], "_0000")
    pairs: dict[str, Pair] = {}
    unpaired = []
    for path in _label_maps(predictions):
        stem = _stem(path)
        case = stem.removesuffix("_seg")
        name = next((n for n in (stem, case, case.removesuffix("_0000")) if n in references_by_name), None)
        if name is None:
            unpaired.append(_unpaired(stem, f"{path.name} has no reference with the same name"))
        elif (only is not None and name not in only) or len(references_by_name[name]) > 1:
            continue
        elif name in pairs:
            unpaired.append(
                _unpaired(stem, f"{path.name} and {pairs[name].prediction.name} belong to the same reference")
            )
        else:
            pairs[name] = Pair(
                name,
                path,
                references_by_name[name][0],
                _scan(scans_by_name.get(name, [])),
                classes,
                ignore_frame,
                ignore_labels,
                stated.labelled.get(name),
                stated.names,
            )
    unpaired += [
        _unpaired(
            name,
            f"{_several(references_by_name[name])} are references of the same name; expected one of them"
            if len(references_by_name[name]) > 1
            else f"{references_by_name[name][0].name} has no label map with the same name",
        )
        for name in sorted(references_by_name.keys() - pairs)
        if only is None or name in only
    ]
    return list(pairs.values()), unpaired


def compare_pair(pair: Pair, tolerance_mm: float = 1.0) -> CaseScores:
    """Return the scores of one pair, or the error that prevented them."""
    try:
        prediction, reference = pair.read()
        notices = tuple(dict.fromkeys((*prediction.notices, *reference.notices)))
        if pair.classes and pair.has_regions:
            regions, scores = compare_regions(prediction, reference, pair.classes, tolerance_mm, pair.labelled)
            notices = (*notices, *_regions_differ(prediction, pair.classes))
            return CaseScores(pair.name, pair, regions, scores, notices=notices)
        comparison = compare_label_maps(prediction, reference, tolerance_mm)
        segments = _segments(comparison.labels[1:], prediction, reference)
    except NapariSegError as error:
        return CaseScores(pair.name, pair, code=error.code, message=error.message)
    except OSError as error:
        message = f"the operating system says: {error.strerror or error}"
        return CaseScores(pair.name, pair, code="file.unreadable", message=message)
    except MemoryError:
        return CaseScores(pair.name, pair, code="environment.memory", message="not enough memory for this pair")
    except Exception as error:  # an error in the program must not stop the other pairs
        logger.debug("case %s failed", pair.name, exc_info=True)
        # the exception text may contain private data
        message = f"this should not have happened: {type(error).__name__}; please report it"
        return CaseScores(pair.name, pair, code="internal.error", message=message)
    names = [BACKGROUND, *(segment.name for segment in segments)]
    return CaseScores(
        pair.name,
        pair,
        segments,
        {segment.name: comparison.scores[segment.label] for segment in segments},
        {
            name: {names[n]: float(row[n] * prediction.grid.voxel_ml) for n in np.flatnonzero(row)}
            for name, row in zip(names, comparison.confusion, strict=True)
        },
        notices,
    )


def compare_pairs(pairs: Iterable[Pair], tolerance_mm: float = 1.0) -> list[CaseScores]:
    """Return the scores of several pairs; voxels of the void label 255 are ignored, with a notice."""
    results = [compare_pair(pair, tolerance_mm) for pair in pairs]
    notice = _void_notice([(name, scores) for result in results for name, scores in result.scores.items()])
    if notice is None:
        return results
    for n, result in enumerate(results):
        if _UNNAMED_VOID in result.scores and result.pair is not None:
            rescored = compare_pair(replace(result.pair, ignored=(*result.pair.ignored, VOID)), tolerance_mm)
            results[n] = replace(rescored, notices=(*rescored.notices, notice))
    return results


def _void_notice(named_scores: Sequence[tuple[str, Scores]]) -> Notice | None:
    """Return a notice if 255 is the void label of the references; None if it may be a structure.

    It is the void label if references contain 255 and other labels, no file names it, and no result contains it. In
    masks of 0 and 255 it is the structure.

    Args:
        named_scores: segment name and scores, of all cases.
    """
    is_predicted = any(scores.volume_ml > 0 for name, scores in named_scores if name == _UNNAMED_VOID)
    has_others = any(scores.reference_ml > 0 for name, scores in named_scores if name != _UNNAMED_VOID)
    if is_predicted or not has_others or _UNNAMED_VOID not in dict(named_scores):
        return None
    text = (
        f"the references contain {VOID} and other labels, and no result contains {VOID}: it was ignored as void label"
    )
    return Notice("labels.void", f"{text}; if it is a structure, name it with --labels NAME={VOID}")


def compare_with(
    prediction: Segmentation, reference: Segmentation | Path, images: Sequence[Path] = ()
) -> tuple[dict[int, Scores], NDArray[np.uint8], tuple[Notice, ...]]:
    """Return scores per label, the disagreement map (see `disagreement`), and notices about the reference.

    Segments are matched by name, see `with_labels_of`. A dataset.json next to the reference may declare the names and
    ignore labels of its values; these and the void label 255 are ignored, as by `napari-seg evaluate`.

    Args:
        prediction: the result.
        reference: the reference, or its file in any format that `read_label_map` reads.
        images: files of the segmented scan; a reference that belongs to another scan is refused.

    Raises:
        InputError: the reference can't be read or lies on another grid; `labels.too_many`, a label map has too many
            labels; `labels.none_common`, see `with_labels_of`; `dataset.bad_json`, see `declared`.
    """
    name, stated = "the reference", Declared()
    if isinstance(reference, Path):
        name, stated = file_label(reference), declared(reference)
        segmentation = read_label_map(reference, prediction.grid, images=images, header_names=not stated.names)
        if is_cropped(reference):
            segmentation = on_grid(segmentation, prediction.grid, reference)
        reference = segmentation
    found, expected, scores = _matched(prediction, reference, stated.ignored, stated, name)
    notice = _void_notice([*scores.values()])
    if notice is not None:
        found, expected, scores = _matched(prediction, reference, (*stated.ignored, VOID), stated, name)
    return (
        {label: of_segment for label, (_, of_segment) in scores.items()},
        disagreement(found, expected),
        (*expected.notices, *([] if notice is None else [notice])),
    )


def _matched(
    prediction: Segmentation, reference: Segmentation, ignored: Sequence[int], stated: Declared, name: str
) -> tuple[Segmentation, Segmentation, dict[int, tuple[str, Scores]]]:
    """Return the two without ignored voxels and with equal labels for the same names, and label -> name and scores."""
    prediction, reference = mask_ignored(ignored, prediction, reference, name)
    reference = with_labels_of(prediction, with_names(reference, stated.names, prediction), name)
    names = {segment.label: segment.name for segment in (*reference.segments, *prediction.segments)}
    scores = compare_label_maps(prediction, reference).scores
    named = {label: (names.get(label, f"label {label}"), of_segment) for label, of_segment in scores.items()}
    return prediction, reference, named


def _regions_differ(prediction: Segmentation, regions: Classes) -> Iterator[Notice]:
    """Yield a notice if the result has names, but none of a region, so that its labels count as values."""
    names = [segment.name for segment in prediction.segments]
    if names and not match_names(names, regions):
        text = f"no structure of the result ({listed(names)}) has the name of a region ({listed([*regions])})"
        yield Notice("labels.names_differ", f"{text}; its labels are taken as values of the reference")


def segment_names(results: Sequence[CaseScores]) -> list[str]:
    """Return the names of the segments of all cases, each once, sorted by label."""
    labels = {segment.name: segment.label for result in results for segment in result.segments}
    return sorted(labels, key=lambda name: labels[name])


def _segments(labels: Sequence[int], prediction: Segmentation, reference: Segmentation) -> tuple[Segment, ...]:
    segment_by_label = {s.label: s for s in (*reference.segments, *prediction.segments)}
    segments = tuple(
        segment_by_label.get(label) or Segment(label, f"label {label}", distinct_color(label)) for label in labels
    )
    repeated = {s.name for s in segments if [BACKGROUND, MEAN, *(other.name for other in segments)].count(s.name) > 1}
    if repeated:
        raise InputError(
            "labels.names",
            f"found {', '.join(sorted(repeated))} twice; expected unique names other than background and mean",
        )
    return segments


def _is_label_map(path: Path, other: Path) -> bool:
    """Return whether a path is a single label map: a file, or a folder of masks none of which belongs to the other."""
    if path.is_file():
        return True
    masks = mask_files(path) if other.is_file() else {}
    own = _stem(other).removesuffix("_seg")
    return bool(masks) and all(name.removesuffix("_seg").removesuffix("_0000") != own for name in masks)


def _label_maps(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    # `predict` writes previews and confidence maps into the same folder
    maps = [p for p in files if nifti_ending(p) and not _stem(p).endswith(("_seg_confidence", "_seg_entropy"))]
    return maps or [p for p in files if is_image2d(p)]


def _by_name(paths: Iterable[Path], suffix: str = "") -> dict[str, list[Path]]:
    """Return the files of each name, without ending and suffix."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(_stem(path).removesuffix(suffix), []).append(path)
    return found


def _scan(paths: Sequence[Path]) -> Path | None:
    """Return the scan of a case, if there is one.

    Raises:
        InputError: `input.unpaired`, there are several of its name.
    """
    if len(paths) > 1:
        raise InputError("input.unpaired", f"{_several(paths)} are scans of the same name; expected one of them")
    return next(iter(paths), None)


def _several(paths: Sequence[Path]) -> str:
    return " and ".join(path.name for path in paths)


def _stem(path: Path) -> str:
    """Return a file name without ending, normalised: file systems store an accent as one character or as two."""
    return unicodedata.normalize("NFC", path.name.removesuffix(nifti_ending(path) or path.suffix))


def _unpaired(name: str, message: str) -> CaseScores:
    return CaseScores(name, code="input.unpaired", message=message)


def _or_none(value: float) -> float | None:
    return None if isnan(value) else value
