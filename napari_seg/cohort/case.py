"""A case of a run: one scan and the model that segments it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath

from napari_seg.bundles.spec import Bundle
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.scan import Scan


@dataclass(frozen=True)
class Case:
    """One scan of a run.

    Attributes:
        name: base name of the result files; unique in its folder and valid on any file system.
        source: path of the file, or of the series' folder, relative to the common folder of all inputs, without words
            that occur in private attributes (patient, ...) of a DICOM file of the run.
        place: absolute path of the first file, links resolved; it may contain names of patients and is never written.
        scan: the scan to read, or the images that are its channels.
        folder: folder of the result files, relative to the output folder, in public names.
        suffix: text between the name and the ending of the label map.
        bundle: model that segments it; None if the run has one model for all cases.
        model_name: short name of the model, which ends the name of the case if several models segment the scan.
        is_named: whether a list gives the name, which then never gives way to that of an earlier result.
    """

    name: str
    source: str
    place: str
    scan: Scan | ChannelSet
    folder: PurePosixPath = field(default_factory=PurePosixPath)
    suffix: str = "_seg"
    bundle: Bundle | None = None
    model_name: str = ""
    is_named: bool = False

    @property
    def key(self) -> str:
        """Name of the case with its folder, such as "site_a/T1": unique in the run, on any file system."""
        return (self.folder / self.name).as_posix()
