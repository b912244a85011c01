"""Where the results of a case lie: folder and name for each layout of the output folder.

flat    all results in the output folder, named after the folders and the file of the scan
mirror  the folders of the inputs, with results named after the file
bids    derivatives/napari-seg/sub-01/ses-1/anat/sub-01_ses-1_seg-hippocampus_desc-T1w_dseg.nii.gz, with the files
        that BIDS requires of a data set of derivatives

Folders have public names: those of DICOM files are without words of private attributes. The subject and the session of
BIDS are taken from folders and names of the form sub-01 and ses-1, which BIDS makes public.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.totalsegmentator.table import is_task_name
from napari_seg.cohort.naming import BIDS_SUFFIX, SUFFIX, NamedScan, UniqueNames, short
from napari_seg.cohort.outputs import place_below
from napari_seg.errors import CohortError, InputError, counted
from napari_seg.formats.atomic import not_written
from napari_seg.version import __version__

Layout = Literal["flat", "mirror", "bids"]
"""Ways to arrange results in the output folder."""

DERIVATIVES = PurePosixPath("derivatives", "napari-seg")
BIDS_VERSION = "1.9.0"

_SUBJECT, _SESSION = re.compile("sub-[A-Za-z0-9]+"), re.compile("ses-[A-Za-z0-9]+")
_ENTITY = re.compile("(?P<key>[a-z]+)-(?P<label>[A-Za-z0-9]+)")
_DATATYPES = ("anat", "func", "dwi", "fmap", "perf", "pet")
_ENTITIES = (
    *("sub", "ses", "sample", "task", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir", "run", "echo", "flip"),
    *("inv", "mt", "part", "proc", "hemi", "space", "res", "den"),
)
"""Entities of a source that the name of its segmentation keeps, in the order of BIDS."""

_DESCRIPTION = "dataset_description.json"
_TABLE = "_dseg.tsv"
"""Ending of a table of labels."""

_OF_A_FILE = re.compile(r"\.(?=[A-Za-z][A-Za-z0-9-]{0,9}$|7z$)")
"""Last dot of a name with the ending of a file."""


@dataclass(frozen=True)
class Spot:
    """Where the results of a case lie.

    Attributes:
        folder: folder relative to the output folder.
        name: base name of the files.
        suffix: text between the name and the ending of the label map.
    """

    folder: PurePosixPath
    name: str
    suffix: str = SUFFIX


class Places:
    """Places of all cases of a run; no two of them have a file in common, on any file system.

    Args:
        layout: how the output folder is arranged.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._unique = UniqueNames()

    def take(self, scan: NamedScan, model: str = "", *, is_one_of_several: bool = False) -> Spot:
        """Return the place of the results of a scan.

        Args:
            scan: the scan.
            model: short name of the model.
            is_one_of_several: whether several models segment the scan, so that the model is part of the name.

        Raises:
            InputError: `cohort.not_bids`, the path has no subject, which the layout of BIDS requires.
        """
        if self._layout == "bids":
            return self._bids(scan, model)
        ending = f"_{model}" if is_one_of_several else ""
        if self._layout == "flat":
            return Spot(PurePosixPath(), self._unique.take(f"{scan.name}{ending}"))
        folder = PurePosixPath(*(folder_name(level) for level in scan.folders))
        return Spot(folder, self._unique.take(f"{scan.stem}{ending}", str(folder)))

    def take_unused(self, scan: NamedScan) -> Spot:
        """Return the place of a scan that is not segmented, so that its name is unique too."""
        if self._layout == "mirror":
            return self.take(scan)
        return Spot(PurePosixPath(), self._unique.take(scan.name))

    def _bids(self, scan: NamedScan, model: str) -> Spot:
        words = scan.stem.split("_")
        entities = {found["key"]: found["label"] for word in words if (found := _ENTITY.fullmatch(word))}
        for pattern, key in ((_SUBJECT, "sub"), (_SESSION, "ses")):
            level = next((one for one in reversed(scan.folders) if pattern.fullmatch(one)), "")
            if level and entities.setdefault(key, level.partition("-")[2]) != level.partition("-")[2]:
                text = f"{scan.source} has {key}-{entities[key]} in its name and {level} in its folders"
                raise InputError("cohort.not_bids", f"{text}; expected the same; rename the file or the folder")
        if "sub" not in entities:
            raise InputError(
                "cohort.not_bids",
                f"{scan.source} has no subject in its path; expected a folder or a name such as sub-01; arrange the "
                "inputs as BIDS does, or choose the layout mirror or flat",
            )
        rest = "".join(_alphanumeric(word) for word in words if not _ENTITY.fullmatch(word)) or "scan"
        described = _alphanumeric(entities.get("desc", "")) + rest
        kept = [f"{key}-{entities[key]}" for key in _ENTITIES if key in entities]
        kept += [f"seg-{_alphanumeric(model)}"] if model else []
        levels = [word for word in kept if word.startswith(("sub-", "ses-"))]
        datatype = next((one for one in reversed(scan.folders) if one in _DATATYPES), "anat")
        folder = DERIVATIVES.joinpath(*levels, datatype)
        base, number = "_".join([*kept, f"desc-{described}"]), 2
        name = base
        while self._unique.has(name, str(folder)):
            name, number = f"{base}{number}", number + 1
        return Spot(folder, self._unique.take(name, str(folder)), BIDS_SUFFIX)


def folder_name(text: str) -> str:
    """Return the name of a folder of results: valid on every file system, and never that of a file of a run."""
    # a dot at the beginning hides a folder, one at the end is lost on Windows
    name = _OF_A_FILE.sub("_", short(re.sub(r'[\\/:*?"<>|]', "_", text)).strip(". "))
    return name or "unnamed"


def short_model_names(models: Sequence[tuple[str, Bundle]]) -> list[str]:
    """Return a short, unique name for each model, fit for file names.

    It is the last part of the reference (`total` of `totalsegmentator:total`, `total-better` of that with the improved
    model `+models/better`, a folder's name), or the first word of the title of the shipped bundle.

    Args:
        models: the reference by which a user names each model, "" for the shipped one, and the model.
    """
    names: list[str] = []
    for reference, bundle in models:
        name = unique = _short_name(reference, bundle)
        # names of files in BIDS keep letters and digits only
        taken, number = {_alphanumeric(one) for one in names}, 2
        while _alphanumeric(unique) in taken:
            unique, number = f"{name}-{number}", number + 1
        names.append(unique)
    return names


def _short_name(reference: str, bundle: Bundle) -> str:
    references = reference.split("+") if is_task_name(reference) else [reference]
    last = "-".join(re.split(r"[\\/:]", one.rstrip("\\/"))[-1] for one in references) or bundle.name.split()[0]
    return re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-").lower()[:40] or "model"


def files_of_layout(layout: Layout, models: Mapping[str, Bundle]) -> dict[PurePosixPath, str]:
    """Return the files that a layout requires besides those of the cases: path relative to the output folder -> text.

    BIDS requires a description of the data set of derivatives, and a table of the labels of each segmentation.

    Args:
        layout: how the output folder is arranged.
        models: short name -> model.
    """
    if layout != "bids":
        return {}
    description = {
        "Name": "napari-seg segmentations",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "napari-seg", "Version": __version__}],
    }
    files = {
        DERIVATIVES / _DESCRIPTION: json.dumps(description, indent=2) + "\n",
        DERIVATIVES / ".bidsignore": "*_dseg.png\n*_dseg_*\n*.seg.nrrd\n*_seg.dcm\n",
    }
    for name, bundle in models.items():
        rows = ["index\tname\tcolor"]
        for segment in bundle.segments:
            colour = "#{:02x}{:02x}{:02x}".format(*segment.color[:3])
            rows.append(f"{segment.label}\t{' '.join(segment.name.split())}\t{colour}")
        files[DERIVATIVES / f"seg-{_alphanumeric(name)}{_TABLE}"] = "\n".join(rows) + "\n"
    return files


def files_to_write(
    output: Path, files: Mapping[PurePosixPath, str], staying: Collection[str], *, has_new: bool = True
) -> dict[PurePosixPath, str]:
    """Return those files of a layout that are missing, and the tables of labels that no result needs any more.

    A person may have added to the other ones. The description gets the version of this program if it lacks it.

    Args:
        output: the output folder.
        files: path -> text, of `files_of_layout`.
        staying: keys of earlier results that stay.
        has_new: whether the run makes results.

    Raises:
        CohortError: `cohort.changed`, the labels of results that stay have other names; `cohort.manifest`, a link leads
            out of the output folder.
        OutputError: `output.not_written`, a table can't be read.
    """
    found = {}
    for path, text in files.items():
        place = place_below(output, str(path))
        if not place.exists():
            found[path] = text
        elif path.name == _DESCRIPTION:
            if has_new and (described := _with_version(place, text)):
                found[path] = described
        elif path.name.endswith(_TABLE) and not _label_names(text).items() <= _label_names(_read(place)).items():
            model = path.name.removesuffix(_TABLE)
            if count := sum(f"_{model}_" in key for key in staying):
                raise CohortError(
                    "cohort.changed",
                    f"{place} gives the labels of {counted(count, 'result')} other names than the model does; choose "
                    "another folder for the results, or give the folder of the model another name",
                )
            found[path] = text
    return found


def _with_version(place: Path, new: str) -> str:
    """Return a present description that also lists what a new one is generated by; "" if it does, or isn't JSON."""
    try:
        description = json.loads(_read(place, errors="strict"))
        found, own = description["GeneratedBy"], json.loads(new)["GeneratedBy"]
        if any(own[0].items() <= one.items() for one in found):
            return ""
        return json.dumps(description | {"GeneratedBy": found + own}, indent=2, ensure_ascii=False) + "\n"
    except (ValueError, LookupError, TypeError, AttributeError):  # a person's own, perhaps not in UTF-8
        return ""


def _read(path: Path, errors: str = "replace") -> str:
    try:
        return path.read_text(encoding="utf-8", errors=errors)
    except OSError as error:
        raise not_written(str(path), error) from error


def _label_names(table: str) -> dict[str, str]:
    """Return value -> name of the labels of a table."""
    return {cells[0]: cells[1] for line in table.splitlines()[1:] if len(cells := line.split("\t")) > 1}


def _alphanumeric(text: str) -> str:
    return re.sub("[^A-Za-z0-9]", "", text)
