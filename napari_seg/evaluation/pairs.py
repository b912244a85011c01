"""Pair label maps with their references and score each pair."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, NapariSegError, Notice, counted, listed, printable
from napari_seg.evaluation.case_files import case_names, label_maps, normal, path_below, stem
from napari_seg.evaluation.data_set import References, partners_in
from napari_seg.evaluation.declared import declared
from napari_seg.evaluation.labels import BACKGROUND, MEAN, Classes, Meaning
from napari_seg.evaluation.matching import UNNAMED_VOID, VOID, Matched, match
from napari_seg.evaluation.metrics import Comparison, Scores, compare_label_maps, disagreement
from napari_seg.evaluation.partners import find_partners, find_scans
from napari_seg.formats.dicom.headers import file_label
from napari_seg.formats.image2d import is_image2d
from napari_seg.formats.label_maps import (
    check_no_intensities,
    is_cropped,
    on_common_grid,
    on_grid,
    read_label_map,
    stated_names,
)
from napari_seg.formats.mask_folder import mask_files
from napari_seg.structure_names import match_names
from napari_seg.volume import Segment, Segmentation, labels_in

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A label map, its reference and, if available, the scan.

    Attributes:
        name: case name.
        prediction: path of the label map.
        reference: path of the reference.
        scan: path of the scan; used only to draw figures.
        meaning: meaning of the reference's values.
        ignore_frame: compare DICOM objects even if their frames of reference differ.
    """

    name: str
    prediction: Path
    reference: Path
    scan: Path | None = None
    meaning: Meaning = field(default_factory=Meaning)
    ignore_frame: bool = False

    @property
    def is_image_2d(self) -> bool:
        """True for 2D images, whose distances are in pixels."""
        return is_image2d(self.prediction)

    def read(self) -> Matched:
        """Read the label map and its reference, and match their structures.

        Raises:
            InputError: a file can't be read, or its values don't fit their meaning; see `read_label_map`, `match`;
                `labels.intensities`, it is a scan; `labels.names`, a structure has the name of another row of the
                tables.
        """
        prediction = read_label_map(self.prediction)
        reference = read_label_map(
            self.reference,
            prediction.grid,
            images=[self.prediction],
            ignore_frame=self.ignore_frame,
            on_own_grid=is_cropped(self.prediction),
            header_names=not self.meaning.classes,
        )
        check_no_intensities(prediction, self.prediction)
        if not self.meaning.classes:
            check_no_intensities(reference, self.reference)
        prediction, reference = on_common_grid((prediction, self.prediction), (reference, self.reference))
        matched = match(prediction, reference, self.meaning, self.reference.name)
        if rows := sorted(matched.structures.keys() & {BACKGROUND, MEAN}):
            text = f"found a structure with the name {rows[0]}, which another row of the tables has"
            raise InputError("labels.names", f"{text}; expected names other than {BACKGROUND} and {MEAN}")
        return matched


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
        evidence: see `Matched`.
        doubts: see `Matched`; empty once the other cases were considered.
    """

    name: str
    pair: Pair | None = None
    segments: tuple[Segment, ...] = ()
    scores: dict[str, Scores] = field(default_factory=dict)
    confusion_ml: dict[str, dict[str, float]] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    code: str = ""
    message: str = ""
    evidence: Collection[str] = ()
    doubts: Mapping[str, InputError] = field(default_factory=dict)

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
    data: References | None = None,
) -> tuple[list[Pair], list[CaseScores]]:
    """Return a pair for each case with both files, and a failed result for each file without a partner.

    Args:
        predictions: a label map; or a folder of label maps, see `label_maps`. `case_01_seg.nii.gz` and
            `case_01_0000_seg.nii.gz` belong to the case `case_01`; for folders below see `partners`. If `references` is
            one file, also a folder with masks of the structures that it names.
        references: the reference, or a folder of references; also a folder of masks if `predictions` is one file.
        scans: the scan, or a folder of scans named `case_01.nii.gz` or `case_01_0000.nii.gz`; used only for figures.
        classes: meaning of the references' values, which must be in one of them; None: that of their names, which their
            dataset.json may declare.
        ignore_frame: compare DICOM objects even if their frames of reference differ.
        ignored: ignore labels of the references, in addition to those declared in their dataset.json.
        data: the data set at `references`, which says what belongs together; None: names and folders do.

    Raises:
        InputError: `input.missing`, a path does not exist; `input.same_file`, both are the same; `input.unpaired`, two
            scans of a case have the same name; `dataset.bad_json`, see `declared`.
    """
    for path in (predictions, references, *([scans] if scans else [])):
        if not path.exists():
            raise InputError("input.missing", f"there is no file or folder {path}")
    if predictions.samefile(references):
        text = f"found {references} as results and as references; expected two, the results first"
        raise InputError("input.same_file", text)
    stated = data.declared if data else declared(references)
    ignore_labels = tuple(dict.fromkeys((*ignored, *stated.ignored)))
    meaning = Meaning(classes or stated.classes, bool(classes), ignore_labels)
    if not data and _are_of_one_case(predictions, references, meaning.classes):
        scan = scans if scans and scans.is_file() else None
        meaning = replace(meaning, labelled=stated.labelled.get(stem(Path(file_label(references)))))
        return [Pair(stem(Path(file_label(predictions))), predictions, references, scan, meaning, ignore_frame)], []
    found, alone = partners_in(data, predictions) if data else find_partners(predictions, references)
    scan_of = find_scans(scans, found) if scans else {}
    pairs = [
        Pair(
            one.case,
            one.result,
            one.reference,
            scan_of.get(one.result, one.scan),
            replace(meaning, labelled=stated.labelled.get(one.case if data else stem(one.reference))),
            ignore_frame,
        )
        for one in found
    ]
    return pairs, [CaseScores(case, code="input.unpaired", message=printable(text)) for case, text in alone]


def describe_label_maps(path: Path) -> str:
    """Return in words which label maps `find_pairs` finds at a path; "" for none."""
    names = [path_below(file, path) for file in label_maps(path)]
    if not names:
        return ""
    return names[0] if path.is_file() else f"{counted(len(names), 'label map')} in {path} ({listed(names)})"


def compare_pair(pair: Pair, tolerance_mm: float = 1.0) -> CaseScores:
    """Return the scores of one pair, or the error that prevented them."""
    return _settled([_scored(pair, tolerance_mm)])[0]


def compare_pairs(pairs: Iterable[Pair], tolerance_mm: float = 1.0) -> list[CaseScores]:
    """Return the scores of several pairs.

    Voxels of the void label 255 are ignored, with a notice. A case whose structures have nothing in common with those
    of its reference failed, unless other cases show that the two belong together: then the model missed them.
    Structures have one spelling in all cases.
    """
    results = [_scored(pair, tolerance_mm) for pair in pairs]
    notice = _void_notice([(name, scores) for result in results for name, scores in result.scores.items()])
    for n, result in enumerate(results if notice else ()):
        if UNNAMED_VOID in result.scores and result.pair is not None:
            meaning = replace(result.pair.meaning, ignored=(*result.pair.meaning.ignored, VOID))
            rescored = _scored(replace(result.pair, meaning=meaning), tolerance_mm)
            results[n] = replace(rescored, notices=(*rescored.notices, *([notice] if notice else [])))
    return spelled_alike(_settled(results))


def _scored(pair: Pair, tolerance_mm: float) -> CaseScores:
    """Return the scores of one pair, with doubts, or the error that prevented them."""
    try:
        matched = pair.read()
        comparison = _compared(matched, tolerance_mm)
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
    prediction, reference = matched.prediction, matched.reference
    confusion_ml = {}
    if not matched.has_regions:
        names = {0: BACKGROUND} | {segment.label: segment.name for segment in prediction.segments}
        columns = [names[label] for label in comparison.labels]
        confusion_ml = {
            name: {columns[n]: float(row[n] * prediction.grid.voxel_ml) for n in np.flatnonzero(row)}
            for name, row in zip(columns, comparison.confusion, strict=True)
        }
    notices = tuple(dict.fromkeys((*prediction.notices, *reference.notices)))
    if pair.prediction.samefile(pair.reference):
        text = f"{file_label(pair.prediction)} is compared with itself; give the results and their references"
        notices = (*notices, Notice("input.same_file", text))
    return CaseScores(
        pair.name,
        pair,
        prediction.segments,
        comparison.scores,
        confusion_ml,
        notices,
        evidence=matched.evidence,
        doubts=matched.doubts,
    )


def _compared(matched: Matched, tolerance_mm: float = 1.0) -> Comparison[str]:
    return compare_label_maps(matched.prediction, matched.reference, matched.structures, tolerance_mm)


def _settled(results: Sequence[CaseScores]) -> list[CaseScores]:
    """Return the results; those failed about which a doubt remains."""
    evidence = {sign for result in results for sign in result.evidence}
    settled = []
    for result in results:
        error = next((error for sign, error in result.doubts.items() if sign not in evidence), None)
        failed = error and CaseScores(result.name, result.pair, code=error.code, message=error.message)
        settled.append(failed or replace(result, doubts={}))
    return settled


def spelled_alike(results: Sequence[CaseScores], names: Sequence[str] = ()) -> list[CaseScores]:
    """Return the results with one spelling of each structure, see `match_names`: the first one that is met.

    Args:
        results: scores of cases.
        names: names that are met before.
    """
    known = list(names)
    alike = []
    for result in results:
        same = match_names(list(result.scores), known)
        known += [name for name in result.scores if name not in same]
        if any(name != other for name, other in same.items()):
            result = replace(
                result,
                segments=tuple(replace(one, name=same.get(one.name, one.name)) for one in result.segments),
                scores={same.get(name, name): scores for name, scores in result.scores.items()},
                confusion_ml={
                    same.get(name, name): {same.get(found, found): ml for found, ml in row.items()}
                    for name, row in result.confusion_ml.items()
                },
            )
        alike.append(result)
    return alike


def _void_notice(named_scores: Sequence[tuple[str, Scores]]) -> Notice | None:
    """Return a notice if 255 is the void label of the references; None if it may be a structure.

    It is the void label if references contain 255 and other labels, no file names it, and no result contains it. In
    masks of 0 and 255 it is the structure.

    Args:
        named_scores: segment name and scores, of all cases.
    """
    is_predicted = any(scores.volume_ml > 0 for name, scores in named_scores if name == UNNAMED_VOID)
    has_others = any(scores.reference_ml > 0 for name, scores in named_scores if name != UNNAMED_VOID)
    if is_predicted or not has_others or UNNAMED_VOID not in dict(named_scores):
        return None
    text = (
        f"the references contain {VOID} and other labels, and no result contains {VOID}: it was ignored as void label"
    )
    return Notice("labels.void", f"{text}; if it is a structure, name it with --labels NAME={VOID}")


def compare_with(
    prediction: Segmentation, reference: Segmentation | Path, images: Sequence[Path] = ()
) -> tuple[dict[int, Scores], dict[str, Scores], NDArray[np.uint8], tuple[Notice, ...]]:
    """Compare label maps; return scores per label, of other structures, the differences, and notices.

    The other structures are those that no label of the result stands for: only the reference has them, or they are made
    up of several labels. For the differences see `disagreement`; the notices are about the reference.

    The comparison is that of `napari-seg evaluate`: a dataset.json next to the reference may declare names, regions,
    ignore labels and what is annotated. The names that several labels have include the label there.

    Args:
        prediction: the result.
        reference: the reference, or its file in any format that `read_label_map` reads.
        images: files of the segmented scan; a reference that belongs to another scan is refused.

    Raises:
        InputError: the reference can't be read or lies on another grid; `labels.too_many`, a label map has too many
            labels; `dataset.bad_json`, see `declared`; as `match`, also its doubts.
    """
    name, meaning = "the reference", Meaning()
    if isinstance(reference, Path):
        name, stated = file_label(reference), declared(reference)
        meaning = Meaning(stated.classes, ignored=stated.ignored, labelled=stated.labelled.get(stem(Path(name))))
        segmentation = read_label_map(reference, prediction.grid, images=images, header_names=not stated.classes)
        if not stated.classes:
            check_no_intensities(segmentation, reference)
        if is_cropped(reference):
            segmentation = on_grid(segmentation, prediction.grid, reference)
        reference = segmentation
    prediction, reference = map(_with_unique_names, (prediction, reference))
    matched = match(prediction, reference, meaning, name)
    scores = _compared(matched).scores
    notice = _void_notice([*scores.items()])
    if notice is not None:
        matched = match(prediction, reference, replace(meaning, ignored=(*meaning.ignored, VOID)), name)
        scores = _compared(matched).scores
    for sign, error in matched.doubts.items():
        if sign not in matched.evidence:
            raise error
    held = {*labels_in(prediction.array), *(one.label for one in prediction.segments)}
    named = {one.label for one in prediction.segments if one.name != f"label {one.label}"}
    label_of = {
        one.name: one.label
        for one in matched.prediction.segments
        if one.label in held.intersection(labels := matched.labels[one.name])
        and (len(labels) == 1 or one.label in named)
    }
    return (
        {label: scores[name] for name, label in label_of.items()},
        {name: of for name, of in scores.items() if name not in label_of},
        disagreement(matched.prediction, matched.reference),
        (*matched.reference.notices, *([] if notice is None else [notice])),
    )


def _with_unique_names(segmentation: Segmentation) -> Segmentation:
    """Return a label map in which the names that several segments share include their labels."""
    counts = Counter(segment.name for segment in segmentation.segments)
    segments = tuple(
        replace(one, name=f"{one.name} (label {one.label})") if counts[one.name] > 1 else one
        for one in segmentation.segments
    )
    return replace(segmentation, segments=segments)


def segment_names(results: Sequence[CaseScores]) -> list[str]:
    """Return the names of the segments of all cases, each once, sorted by label."""
    labels = {segment.name: segment.label for result in results for segment in result.segments}
    return sorted(labels, key=lambda name: labels[name])


def _are_of_one_case(one: Path, other: Path, names: Collection[str]) -> bool:
    """Return whether two paths are single label maps: two files, or a file and a folder with masks of its structures.

    A folder of label maps with one structure each may hold several cases. It is one of masks only if none of its files
    belongs to the case of the other path, and one has the name of a structure.

    Args:
        one: the first path.
        other: the second path.
        names: names of structures, in addition to those that the file states.
    """
    file, folder = (one, other) if one.is_file() else (other, one)
    if folder.is_file() or not file.is_file():
        return folder.is_file()
    masks = [normal(name) for name in mask_files(folder)]
    case = set(case_names(stem(file)))
    if not masks or any(case.intersection(case_names(name)) for name in masks):
        return False
    with suppress(InputError):  # a file that can't be read is reported when it is compared
        names = [*names, *stated_names(file)]
    return bool(match_names(masks, names))


def _or_none(value: float) -> float | None:
    return None if isnan(value) else value
