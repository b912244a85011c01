"""Decide what a run consists of: which scans, with which models, and where their results lie.

Filters and rules look at headers only. A scan that they leave out is reported with a reason, as is one that can't be
used: a missing file of a list, or a header that can't be read.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.discover import Candidate, FoundScans, find_candidates, units_of
from napari_seg.cohort.layout import Layout, Places, files_of_layout, short_model_names
from napari_seg.cohort.naming import NamedScan, input_name, named_scans
from napari_seg.cohort.rules import Rule, matches_any
from napari_seg.errors import InputError
from napari_seg.formats.archive import shown
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.facts import ScanFacts, facts_of, modality_code
from napari_seg.formats.scan import Scan


@dataclass(frozen=True)
class Selection:
    """What a user asks a run to do, besides the options of `segment`.

    Attributes:
        inputs: files, folders and lists.
        models: references of models; each case is segmented once by each; "" is the shipped one.
        rules: rules that choose the models; empty: `models` segment every scan.
        modalities: codes of modalities to segment; empty: all.
        min_slices: lowest number of slices.
        series: patterns for the description of a DICOM series, or for the name of any other file; empty: all.
        exclude: patterns for what is left out.
        layout: how the output folder is arranged.
    """

    inputs: tuple[Path, ...] = ()
    models: tuple[str, ...] = ("",)
    rules: tuple[Rule, ...] = ()
    modalities: tuple[str, ...] = ()
    min_slices: int = 0
    series: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layout: Layout = "flat"


@dataclass(frozen=True)
class UnusedScan:
    """A scan that a run does not segment.

    Attributes:
        key: name with its folder, unique in the run; see `Case.key`.
        source: as for `Case`.
        format: format of the scan.
        code: code of the reason.
        message: the reason.
        scan: the scan; None for an input that could not be searched.
    """

    key: str
    source: str
    format: str
    code: str
    message: str
    scan: Scan | ChannelSet | None = field(default=None, repr=False)  # its path may name a patient


@dataclass(frozen=True)
class SelectedCases:
    """What a run consists of.

    Attributes:
        cases: what is segmented, one model after the other.
        skipped: scans that filters or rules leave out.
        refused: scans that can't be segmented; they count as failed.
        faults: inputs that could not be searched.
        models: what `--model` takes -> model, of the models that have cases: the reference that the user gave, or the
            title of the shipped one.
        other_files: code of a skip -> number of files that are no scan.
        repeated: scans that were found again, below another input or in another line of a list.
        extra_files: files that the layout requires, relative to the output folder -> text; written once.
    """

    cases: tuple[Case, ...]
    skipped: tuple[UnusedScan, ...] = ()
    refused: tuple[UnusedScan, ...] = ()
    faults: tuple[UnusedScan, ...] = ()
    models: dict[str, Bundle] = field(default_factory=dict)
    other_files: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    extra_files: dict[PurePosixPath, str] = field(default_factory=dict)


_Unit = tuple[Scan | ChannelSet, str]
"""A scan, or images that are channels, and the name that a list gives."""


class Choice(NamedTuple):
    """Why filters or rules leave a scan out: a stable code, and a message."""

    code: str
    message: str


def select_cases(selection: Selection, model_of: Callable[[str, bool], Bundle]) -> SelectedCases:
    """Find the scans below the inputs, and decide what segments each, or why it is left out.

    The model that a list states for a scan has priority over the rules, and those over the models of the selection.

    Args:
        selection: what the user asks for.
        model_of: function that returns a model by its reference, "" for the shipped one, and that refuses one whose
            code may not run; its second argument is whether the user gave the reference, and not a file of rules or a
            list, which may come from somebody else: consent that the user gives does not hold for it.

    Raises:
        BundleError: what `model_of` raises.
    """
    models: dict[str, Bundle] = {}

    def model(reference: str) -> Bundle:
        if reference not in models:
            models[reference] = model_of(reference, reference in selection.models and not selection.rules)
        return models[reference]

    of_rules = [one for rule in selection.rules for one in rule.models]
    for reference in of_rules if selection.rules else selection.models:
        model(reference)  # before the search, which may take long
    found = find_candidates(selection.inputs)
    wanted: dict[str, list[Candidate]] = {}
    unused: list[tuple[Candidate, InputError | Choice]] = []
    for candidate in found.candidates:
        try:
            chosen = _choose(candidate, selection)
        except InputError as problem:
            unused.append((candidate, problem))
            continue
        if isinstance(chosen, Choice):
            unused.append((candidate, chosen))
        else:
            for reference in chosen:
                wanted.setdefault(reference, []).append(candidate)
    units: dict[_Unit, list[str]] = {}
    for reference, candidates in wanted.items():
        for unit in units_of(candidates, model(reference).channel_names):
            if unit.problem is not None:
                unused.append((unit, unit.problem))
            else:
                units.setdefault((unit.scan, unit.name), []).append(reference)
    return _placed(selection, found, units, unused, {reference: models[reference] for reference in wanted})


def _placed(
    selection: Selection,
    found: FoundScans,
    units: Mapping[_Unit, Sequence[str]],
    unused: Sequence[tuple[Candidate, InputError | Choice]],
    models: Mapping[str, Bundle],
) -> SelectedCases:
    """Return the cases with their names and places.

    Args:
        selection: what the user asks for.
        found: everything that was found.
        units: what is segmented -> the references of the models.
        unused: what is not segmented, and the reasons.
        models: reference -> model.
    """
    order = {file: number for number, one in enumerate(found.candidates) for file in one.scan.files[:1]}
    everything = list(dict.fromkeys([*units, *((one.scan, one.name) for one, _ in unused)]))
    # names must depend neither on filters nor on the order of the models
    everything.sort(key=lambda one: order[one[0].files[0]])
    scans, given = [scan for scan, _ in everything], [name for _, name in everything]
    named = dict(zip(everything, named_scans(scans, found.searched, given), strict=True))
    short_names = dict(zip(models, short_model_names(list(models.items())), strict=True))
    are_several = not selection.rules and len(set(selection.models)) > 1
    places = Places(selection.layout)
    cases: list[Case] = []
    skipped: list[UnusedScan] = []
    refused: list[UnusedScan] = []
    for reference, bundle in models.items():
        for unit, references in units.items():
            if reference not in references:
                continue
            scan, is_marked = named[unit], len(references) > 1 or (are_several and reference in selection.models)
            try:
                spot = places.take(scan, short_names[reference], is_one_of_several=is_marked)
            except InputError as problem:
                if reference == references[0]:
                    refused.append(_unused(scan, places, problem))
                continue
            case = Case(spot.name, scan.source, scan.place, scan.scan, spot.folder, spot.suffix, bundle)
            cases.append(replace(case, model_name=short_names[reference], is_named=bool(unit[1])))
    for candidate, reason in unused:
        scan = named[candidate.scan, candidate.name]
        (skipped if isinstance(reason, Choice) else refused).append(_unused(scan, places, reason))
    of_names = {short_names[reference]: bundle for reference, bundle in models.items()}
    return SelectedCases(
        tuple(cases),
        tuple(skipped),
        tuple(refused),
        tuple(_unsearched(path, fault, selection.inputs, scans) for path, fault in found.faults),
        {reference or bundle.name: bundle for reference, bundle in models.items()},
        found.other_files,
        found.repeated,
        files_of_layout(selection.layout, of_names),
    )


def _unsearched(
    path: Path, fault: InputError, inputs: Sequence[Path], scans: Sequence[Scan | ChannelSet]
) -> UnusedScan:
    name, message = input_name(path, inputs, scans), fault.message
    for beginning in (str(path), path.name):
        if message.startswith((f"{beginning} ", f"{beginning}, ", f"{beginning}: ")):
            message = f"{name}{message.removeprefix(beginning)}"
            break
    return UnusedScan(name, name, "", fault.code, message)


def _unused(scan: NamedScan, places: Places, reason: InputError | Choice) -> UnusedScan:
    spot = places.take_unused(scan)
    key = (spot.folder / spot.name).as_posix()
    return UnusedScan(key, scan.source, scan.scan.format, reason.code, reason.message, scan.scan)


def _choose(candidate: Candidate, selection: Selection) -> Choice | tuple[str, ...]:
    """Return why a scan is left out, or the references of the models that segment it.

    Raises:
        InputError: the problem of the candidate; its header can't be read.
    """
    if candidate.problem is not None:
        raise candidate.problem
    facts = _Facts(candidate.scan)
    texts = _texts(candidate)
    if selection.exclude:
        parts = (*texts, *_parts(candidate), facts.series)
        if pattern := next((one for one in selection.exclude if matches_any(parts, (one,))), None):
            return Choice("cohort.excluded", f"it matches the pattern {pattern} of --exclude")
    if selection.series and not matches_any((*texts, facts.series), selection.series):
        text = f"its series matches no pattern of --series ({', '.join(selection.series)})"
        return Choice("cohort.series", text)
    if selection.modalities and facts.all.modality not in map(modality_code, selection.modalities):
        text = f"its modality is {facts.modality}; --modality accepts {', '.join(selection.modalities)}"
        return Choice("cohort.modality", text)
    if selection.min_slices > 0 and facts.all.slices < selection.min_slices:
        text = f"it has {facts.all.slices} slices; --min-slices is {selection.min_slices}"
        return Choice("cohort.slices", text)
    if candidate.model:
        return (candidate.model,)
    if not selection.rules:
        return tuple(dict.fromkeys(selection.models))
    series = (facts.series, *texts)
    rule = next((one for one in selection.rules if one.matches(facts.all, series)), None)
    if rule is None:
        text = f"no rule matches: its modality is {facts.modality}, and it has {facts.all.slices} slices"
        return Choice("cohort.no_rule", text)
    if not rule.models:
        return Choice("cohort.rule_skips", f"the rule in {rule.place} leaves it out")
    return tuple(dict.fromkeys(rule.models))


class _Facts:
    """What the header of a scan states, read when it is first asked for."""

    def __init__(self, scan: Scan | ChannelSet) -> None:
        self._scan = scan

    @cached_property
    def all(self) -> ScanFacts:
        """All facts."""
        return facts_of(self._scan)

    @property
    def series(self) -> str:
        """Description of a DICOM series; "" for any other scan, whose header is not read for it."""
        return self.all.series if self._scan.format == "dicom" else ""

    @property
    def modality(self) -> str:
        """Modality in words for a message."""
        return self.all.modality if re.fullmatch("[A-Z]{2,8}", self.all.modality) else "unknown"


def _texts(candidate: Candidate) -> tuple[str, ...]:
    """Return the names by which a scan that is no DICOM series is chosen: of the file, with its ending and without."""
    if candidate.scan.format == "dicom":
        return ()
    return candidate.scan.name, candidate.name, candidate.scan.files[0].name


def _parts(candidate: Candidate) -> tuple[str, ...]:
    """Return the name of a scan, the path below its input, all ends of that path, and its folders."""
    file = Path(os.path.abspath(shown(candidate.scan.files[0])))
    root = Path(os.path.abspath(candidate.root))
    below = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    ends = ("/".join(below.parts[number:]) for number in range(len(below.parts)))
    return candidate.scan.name, *ends, *below.parts
