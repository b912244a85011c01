"""Which label map belongs to which reference, and how well they agree."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, NapariSegError, Notice
from napari_seg.evaluation.labels import BACKGROUND, Classes, as_classes, declared_ignored, with_labels_of, without
from napari_seg.evaluation.metrics import Scores, compare_label_maps, disagreement
from napari_seg.formats import nifti_ending
from napari_seg.formats.dicom_header import file_label
from napari_seg.formats.image2d import is_picture
from napari_seg.formats.label_maps import is_cropped, named, on_common_grid, on_grid, read_label_map
from napari_seg.volume import Segment, Segmentation, distinct_color

logger = logging.getLogger(__name__)

VOID = 255
"""What many data sets of 2D images write around objects, where an annotator was not sure."""

_UNNAMED = f"label {VOID}"
"""What that value is called where nothing names it."""

MEAN = "mean"
"""Of each case over its segments: a row of every table."""


@dataclass(frozen=True)
class Pair:
    """Files that belong together: a label map, its reference and, if it is at hand, the scan of both.

    Attributes:
        name: the case's.
        prediction: the label map.
        reference: what it is held against.
        scan: of both; only for pictures.
        classes: what the reference's values mean; None where it has the result's labels.
        ignore_frame: compare DICOM objects although they are of different frames of reference.
        ignored: values of the reference that stand for no class; their voxels are left out.
    """

    name: str
    prediction: Path
    reference: Path
    scan: Path | None = None
    classes: Classes | None = None
    ignore_frame: bool = False
    ignored: tuple[int, ...] = ()

    @property
    def is_picture(self) -> bool:
        """Whether distances are in pixels."""
        return is_picture(self.prediction)

    def read(self) -> tuple[Segmentation, Segmentation]:
        """The label map and its reference, with the same labels.

        Raises:
            InputError: as of `read_label_map` and `as_classes`.
        """
        prediction = read_label_map(self.prediction)
        reference = read_label_map(
            self.reference,
            prediction.grid,
            images=[self.prediction],
            ignore_frame=self.ignore_frame,
            on_own_grid=is_cropped(self.prediction),
        )
        prediction, reference = on_common_grid((prediction, self.prediction), (reference, self.reference))
        if self.ignored:
            prediction, reference = without(self.ignored, prediction, reference, self.reference.name)
        if self.classes:
            return prediction, as_classes(reference, self.classes, prediction)
        return prediction, with_labels_of(prediction, reference)


@dataclass(frozen=True)
class CaseResult:
    """One label map held against its reference.

    Attributes:
        name: the case's.
        pair: its files; None if it lacks one.
        segments: every structure that either of them holds or names.
        scores: segment name -> numbers.
        confusion_ml: name in the reference -> name in the result -> ml, background included; what is 0 is absent.
        notices: doubts about the two.
        code: of the error that prevented it; "" if compared.
        message: of that error.
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
        """Over the segments that either holds; nan without one."""
        known = [scores.dice for scores in self.scores.values() if not isnan(scores.dice)]
        return sum(known) / len(known) if known else nan

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; nan becomes null."""
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
) -> tuple[list[Pair], list[CaseResult]]:
    """A pair for each name that both have, and a failed result for each file that has no partner.

    Args:
        predictions: a label map, or a folder of them, NIfTI or, where it holds none, pictures; `case_01_seg.nii.gz` and
            `case_01_0000_seg.nii.gz` belong to the case `case_01`.
        references: the reference, or a folder of them.
        scans: the scan, or a folder of them, `case_01.nii.gz` or `case_01_0000.nii.gz`; only for pictures.
        classes: what the references' values mean; None where they have the results' labels.
        ignore_frame: compare DICOM objects although they are of different frames of reference.
        ignored: values of the references that stand for no class, besides those that their dataset.json names.

    Raises:
        InputError: `input.missing`, one of them is not there.
    """
    for path in (predictions, references, *([scans] if scans else [])):
        if not path.exists():
            raise InputError("input.missing", f"there is no file or folder {path}")
    left_out = tuple(dict.fromkeys((*ignored, *declared_ignored(references))))
    if predictions.is_file() and references.is_file():
        scan = scans if scans and scans.is_file() else None
        alone = _stem(Path(file_label(predictions)))
        return [Pair(alone, predictions, references, scan, classes, ignore_frame, left_out)], []
    known = {_stem(path): path for path in _label_maps(references)}
    shown = {_stem(path).removesuffix("_0000"): path for path in _label_maps(scans)} if scans else {}
    pairs: dict[str, Pair] = {}
    lonely = []
    for path in _label_maps(predictions):
        stem = _stem(path)
        case = stem.removesuffix("_seg")
        name = next((n for n in (stem, case, case.removesuffix("_0000")) if n in known), None)
        if name is None:
            lonely.append(_unpaired(stem, f"{path.name} has no reference of its name"))
        elif name in pairs:
            lonely.append(_unpaired(stem, f"{path.name} and {pairs[name].prediction.name} have one reference"))
        else:
            pairs[name] = Pair(name, path, known[name], shown.get(name), classes, ignore_frame, left_out)
    lonely += [
        _unpaired(name, f"{known[name].name} has no label map of its name") for name in sorted(known.keys() - pairs)
    ]
    return list(pairs.values()), lonely


def compare_pair(pair: Pair, tolerance_mm: float = 1.0) -> CaseResult:
    """The numbers of each segment of one pair, or the reason why there are none."""
    try:
        found, expected = pair.read()
        comparison = compare_label_maps(found, expected, tolerance_mm)
        segments = _segments(comparison.labels[1:], found, expected)
    except NapariSegError as error:
        return CaseResult(pair.name, pair, code=error.code, message=error.message)
    except OSError as error:
        message = f"the operating system says: {error.strerror or error}"
        return CaseResult(pair.name, pair, code="file.unreadable", message=message)
    except MemoryError:
        return CaseResult(pair.name, pair, code="environment.memory", message="not enough memory for this pair")
    except Exception as error:  # our own mistake must not cost the other pairs
        logger.debug("case %s failed", pair.name, exc_info=True)
        # its words may quote what must stay private
        message = f"this should not have happened: {type(error).__name__}; please report it"
        return CaseResult(pair.name, pair, code="internal.error", message=message)
    names = [BACKGROUND, *(segment.name for segment in segments)]
    return CaseResult(
        pair.name,
        pair,
        segments,
        {segment.name: comparison.scores[segment.label] for segment in segments},
        {
            name: {names[n]: float(row[n] * found.grid.voxel_ml) for n in np.flatnonzero(row)}
            for name, row in zip(names, comparison.confusion, strict=True)
        },
        tuple(dict.fromkeys((*found.notices, *expected.notices))),
    )


def compare_pairs(pairs: Iterable[Pair], tolerance_mm: float = 1.0) -> list[CaseResult]:
    """Return the numbers of several pairs, with the value 255 left out where it is a border and no structure.

    A notice says so.
    """
    results = [compare_pair(pair, tolerance_mm) for pair in pairs]
    notice = _border([(name, one) for result in results for name, one in result.scores.items()])
    if notice is None:
        return results
    for n, result in enumerate(results):
        if _UNNAMED in result.scores and result.pair is not None:
            again = compare_pair(replace(result.pair, ignored=(*result.pair.ignored, VOID)), tolerance_mm)
            results[n] = replace(again, notices=(*again.notices, notice))
    return results


def _border(scores: Sequence[tuple[str, Scores]]) -> Notice | None:
    """Return a notice where the value 255 is a border of no class; None where it may be a structure.

    It is a border in PASCAL VOC and its like: references hold 255 beside other labels, nothing names it, and no result
    holds it. Masks of 0 and 255 keep it as their structure.

    Args:
        scores: name of a segment and its numbers, of all cases.
    """
    is_predicted = any(one.volume_ml > 0 for name, one in scores if name == _UNNAMED)
    has_others = any(one.reference_ml > 0 for name, one in scores if name != _UNNAMED)
    if is_predicted or not has_others or _UNNAMED not in dict(scores):
        return None
    text = f"the references hold {VOID} beside other labels, and no result does: it was taken for a border of no class"
    return Notice("labels.void", f"{text}; where it is a structure, say so with --labels NAME={VOID}")


def compare_with(
    prediction: Segmentation, reference: Segmentation | Path, images: Sequence[Path] = ()
) -> tuple[dict[int, Scores], NDArray[np.uint8], tuple[Notice, ...]]:
    """Return the numbers of each label, where the two differ (see `disagreement`), and doubts about the reference.

    Segments of one name are one, whatever their labels. Values that stand for no class are left out as by `evaluate`:
    those that a dataset.json next to the reference names, and 255 as of `compare_pairs`.

    Args:
        prediction: the result.
        reference: what it is held against; a file of any format that `read_label_map` reads.
        images: files of the scan that the result is of; a reference of another scan is refused.

    Raises:
        InputError: the reference can't be read, or lies on another grid; `labels.too_many`.
    """
    name, ignored = "the reference", tuple[int, ...]()
    if isinstance(reference, Path):
        name, ignored = file_label(reference), declared_ignored(reference)
        expected = named(read_label_map(reference, prediction.grid, images=images))
        if is_cropped(reference):
            expected = on_grid(expected, prediction.grid, reference)
    else:
        expected = reference
    pair = without(ignored, prediction, expected, name)
    scores = _scores_of(*pair)
    notice = _border(list(scores.values()))
    if notice is not None:
        pair = without((*ignored, VOID), prediction, expected, name)
        scores = _scores_of(*pair)
    found, expected = pair
    notices = [*expected.notices, *filter(None, [notice, _names_apart(found, expected, name)])]
    return (
        {label: one for label, (_, one) in scores.items()},
        disagreement(found, with_labels_of(found, expected)),
        tuple(notices),
    )


def _names_apart(prediction: Segmentation, reference: Segmentation, name: str) -> Notice | None:
    """Return what to say of names that stand in one of the two only: one structure may have been renamed."""
    here, there = ({segment.name: None for segment in one.segments} for one in (prediction, reference))
    only_here, only_there = (
        [one for one in names if one not in others] for names, others in ((here, there), (there, here))
    )
    if not only_here or not only_there or len(only_here) == len(here):
        return None
    text = f"only in the labels: {_listed(only_here)}; only in {name}: {_listed(only_there)}"
    return Notice("labels.names_differ", f"structures are compared by their names; {text}; rename them if they are one")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _scores_of(prediction: Segmentation, reference: Segmentation) -> dict[int, tuple[str, Scores]]:
    """Return the name and the numbers of each label."""
    reference = with_labels_of(prediction, reference)
    names = {segment.label: segment.name for segment in (*reference.segments, *prediction.segments)}
    scores = compare_label_maps(prediction, reference).scores
    return {label: (names.get(label, f"label {label}"), one) for label, one in scores.items()}


def segment_names(results: Sequence[CaseResult]) -> list[str]:
    """The segments of all cases, each once, in the order of their labels."""
    labels = {segment.name: segment.label for result in results for segment in result.segments}
    return sorted(labels, key=lambda name: labels[name])


def _segments(labels: Sequence[int], found: Segmentation, expected: Segmentation) -> tuple[Segment, ...]:
    named = {s.label: s for s in (*expected.segments, *found.segments)}
    segments = tuple(named.get(label) or Segment(label, f"label {label}", distinct_color(label)) for label in labels)
    doubled = {s.name for s in segments if [BACKGROUND, MEAN, *(other.name for other in segments)].count(s.name) > 1}
    if doubled:
        raise InputError(
            "labels.names",
            f"found {', '.join(sorted(doubled))} twice; expected names that differ, background and mean aside",
        )
    return segments


def _label_maps(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    # `predict` writes pictures of its results beside them, and maps of their certainty
    maps = [p for p in files if nifti_ending(p) and not _stem(p).endswith(("_seg_confidence", "_seg_entropy"))]
    return maps or [p for p in files if is_picture(p)]


def _stem(path: Path) -> str:
    """Return a file's name without its ending, in one spelling: file systems write accents as one character or two."""
    return unicodedata.normalize("NFC", path.name.removesuffix(nifti_ending(path) or path.suffix))


def _unpaired(name: str, message: str) -> CaseResult:
    return CaseResult(name, code="input.unpaired", message=message)


def _or_none(value: float) -> float | None:
    return None if isnan(value) else value
