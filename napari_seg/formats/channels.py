"""Read one case that consists of several images, such as T1, T1 with contrast agent, T2 and FLAIR.

The grid of the first channel is the grid of the case; the other images are resampled onto it if they lie elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np

from napari_seg.errors import InputError, Notice
from napari_seg.formats.channel_names import assigned, case_in, channels_in, synonym_notices
from napari_seg.formats.find import find_series_of
from napari_seg.formats.read import only_scan
from napari_seg.formats.scan import Scan, ScanFormat
from napari_seg.geometry import Grid, is_same_lattice, resample
from napari_seg.memory import check_fits, limited_to, resident_bytes
from napari_seg.volume import Volume

MIN_COVERED = 0.995
"""Fraction of the first channel's field of view that another one covers without a notice; rounding stays above it."""


@dataclass(frozen=True)
class ChannelSet:
    """Images on disk that are the channels of one case; read like a `Scan`.

    Attributes:
        name: name of the case for people and for files of results; "" if only its folder names it.
        channels: (name of the channel, its image), in the order of the model's channels.
        problem: why the images are no case, such as a missing channel; raised when the case is read.
        notices: what to know about the choice of the images, such as a synonym of a channel.
    """

    name: str
    channels: tuple[tuple[str, Scan], ...]
    problem: InputError | None = field(default=None, compare=False)
    notices: tuple[Notice, ...] = ()

    @property
    def format(self) -> ScanFormat:
        """Format of the first channel's files."""
        return self.channels[0][1].format

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of all channels, those of the first one first."""
        return tuple(file for _, scan in self.channels for file in scan.files)

    @property
    def source(self) -> str:
        """Path of the first channel for messages."""
        return self.channels[0][1].source

    def read(
        self,
        volume: int | None = None,
        *,
        resample_tilt: bool = False,
        channels: int | None = None,
        one_slice: bool = False,
        memory_bytes: int | None = None,
    ) -> Volume:
        """Read all channels onto the grid of the first one; see `Scan.read` and `joined`.

        Args:
            volume: as for `Scan.read`, of every channel.
            resample_tilt: as for `Scan.read`.
            channels: ignored; every image is one channel.
            one_slice: as for `Scan.read`.
            memory_bytes: as for `Scan.read`.

        Raises:
            InputError: the problem of the case; the errors of `Scan.read` and `joined`.
            EnvironmentFault: `environment.memory`.
        """
        if self.problem is not None:
            raise self.problem
        volumes = {}
        for name, scan in self.channels:
            try:
                volumes[name] = scan.read(
                    volume, resample_tilt=resample_tilt, channels=1, one_slice=one_slice, memory_bytes=memory_bytes
                )
            except InputError as error:
                raise InputError(error.code, f"channel {name}: {error.message}") from error
        with limited_to(None if memory_bytes is None else memory_bytes - resident_bytes()):
            case = joined(volumes, self.name)
        return replace(case, notices=(*self.notices, *case.notices))


def read_channels(
    files: Mapping[str, str | os.PathLike[str]],
    order: Sequence[str] = (),
    *,
    volume: int | None = None,
    resample_tilt: bool = False,
    memory_bytes: int | None = None,
) -> Volume:
    """Return one volume (C, I, J, K) of several images; the first channel's grid is the grid of all.

    Args:
        files: channel -> its image: a file, or a folder with one DICOM series. Upper and lower case and separators do
            not matter; for a usual synonym (T1Gd for T1c, T2-FLAIR for FLAIR) the volume has a notice.
        order: names of the model's channels, such as `bundle.channel_names`; empty for those of `files`.
        volume: as for `Scan.read`, of every channel.
        resample_tilt: as for `Scan.read`.
        memory_bytes: as for `Scan.read`.

    Raises:
        InputError: `channels.unknown`, `channels.missing` or `channels.ambiguous`, the names are not those of the
            model; the errors of `Scan.read` and `joined`.
        EnvironmentFault: `environment.memory`, the images do not fit in memory.
    """
    found = channel_set({name: Path(path) for name, path in files.items()}, order)
    return found.read(volume, resample_tilt=resample_tilt, memory_bytes=memory_bytes)


def channel_set(files: Mapping[str, Path], order: Sequence[str] = ()) -> ChannelSet:
    """Return the images of a user's case, named after the first one; see `read_channels`."""
    if not files:
        raise InputError("channels.missing", f"found no image; expected one for {', '.join(order) or 'each channel'}")
    chosen = assigned(list(files), order) if order else {name: name for name in files}
    channels = tuple((name, _scan_at(files[given])) for name, given in chosen.items())
    first = channels[0][1]
    name = "" if first.format == "dicom" else case_in(first.name, channels_in(first.name, list(chosen)), list(chosen))
    return ChannelSet(name, channels, notices=tuple(synonym_notices(chosen)))


def _scan_at(path: Path) -> Scan:
    """Return the only scan at a path; of one DICOM file, its whole series."""
    scan = only_scan(path)
    series = find_series_of(path).scans if scan.format == "dicom" and path.is_file() else ()
    return series[0] if series else scan


def joined(volumes: Mapping[str, Volume], name: str = "") -> Volume:
    """Return one volume (C, I, J, K) of several with one channel each, on the grid of the first one.

    Images that differ from the first one only by axis order, flips and whole-voxel shifts are copied, all others
    interpolated linearly. Where an image ends, its lowest value continues.

    Args:
        volumes: channel -> image; the mapping may be large, so pass it without keeping another reference.
        name: name of the case; "": that of the first image.

    Raises:
        InputError: `channels.count`, an image has several channels itself; `channels.patient` or `channels.frame`,
            DICOM series of two patients or frames of reference; `channels.no_overlap`.
        EnvironmentFault: `environment.memory`, the case does not fit in memory.
    """
    (first_name, first), *others = volumes.items()
    for channel, volume in volumes.items():
        if (count := len(volume.array)) != 1:
            raise InputError("channels.count", f"the image of channel {channel} has {count} channels; expected one")
    notices = list(first.notices)
    for channel, volume in others:
        _check_same_patient(first_name, first, channel, volume)
        notices += [notice for notice in volume.notices if notice not in notices]
        notices += _grid_notices(first_name, first.grid, channel, volume.grid)
    notices += _repeated(volumes)
    is_interpolated = not all(is_same_lattice(volume.grid, first.grid) for _, volume in others)
    dtypes = [volume.array.dtype for volume in volumes.values()]
    dtype = np.result_type(*dtypes, *([np.float32] if is_interpolated else []))
    if dtype == np.float64 and np.dtype(np.float64) not in dtypes:
        dtype = np.dtype(np.float32)
    shape = (len(volumes), *first.grid.shape)
    check_fits(prod(shape) * dtype.itemsize, f"joining the {len(volumes)} channels of {name or first.name}")
    array = np.empty(shape, dtype)
    for number, volume in enumerate(volumes.values()):
        outside = float(volume.array.min())
        array[number] = resample(volume.array[0], volume.grid, first.grid, outside=outside)
    return Volume(
        array,
        first.grid,
        name=name or first.name,
        modality=first.modality,
        source=first.source,
        notices=tuple(notices),
        channel_names=tuple(volumes),
    )


def in_order(volume: Volume, names: Sequence[str]) -> Volume:
    """Return a volume with its channels in the order of a model's; unchanged if its channels have no names.

    Args:
        volume: the scan.
        names: names of the model's channels.

    Raises:
        InputError: `channels.unknown`, `channels.missing` or `channels.ambiguous`, they are not those of the model.
    """
    if not volume.channel_names or tuple(volume.channel_names) == tuple(names):
        return volume
    chosen = assigned(volume.channel_names, names)
    places = [volume.channel_names.index(given) for given in chosen.values()]
    is_sorted = places == list(range(len(volume.array)))
    array = volume.array if is_sorted else volume.array[places]
    notices = (*volume.notices, *synonym_notices(chosen))
    return replace(volume, array=array, channel_names=tuple(names), notices=notices)


def _check_same_patient(first_name: str, first: Volume, name: str, volume: Volume) -> None:
    """Refuse DICOM series of two patients or of two frames of reference, whose positions can't be compared."""
    if first.source.format != "dicom" or volume.source.format != "dicom":
        return
    from napari_seg.formats.dicom.series import patient_of

    patients = {patient_of(source.files[0]) for source in (first.source, volume.source)} - {""}
    if len(patients) > 1:
        text = f"the series of channels {first_name} and {name} are of different patients; expected one patient"
        raise InputError("channels.patient", text)
    stacks = (first.source.stack, volume.source.stack)
    frames = {stack.solved.frame_of_reference_uid for stack in stacks if stack and stack.solved} - {""}
    if len(frames) > 1:
        raise InputError(
            "channels.frame",
            f"the series of channels {first_name} and {name} have different frames of reference, so their positions "
            "can't be compared; register one to the other first, and give the registered file",
        )


def _repeated(volumes: Mapping[str, Volume]) -> list[Notice]:
    """Return a notice for each channel that has the files and voxels of an earlier one.

    Two volumes of one 4D file have the same file and are two images.
    """
    earlier: dict[tuple[Path, ...], str] = {}
    notices = []
    for channel, volume in volumes.items():
        files = tuple(file.resolve() for file in volume.source.files)
        if files and files in earlier and np.array_equal(volumes[earlier[files]].array, volume.array):
            text = f"channels {earlier[files]} and {channel} are the same image; check which one is missing"
            notices.append(Notice("channels.repeated", text))
        earlier.setdefault(files, channel)
    return notices


def _grid_notices(first_name: str, first: Grid, name: str, grid: Grid) -> list[Notice]:
    """Return notices about a channel on another grid than that of the first one.

    Raises:
        InputError: `channels.no_overlap`.
    """
    covered = _covered(first, grid)
    if not covered:
        apart_mm = float(np.linalg.norm(first.center_mm - grid.center_mm))
        text = f"channels {first_name} and {name} do not overlap: their centres are {apart_mm:.0f} mm apart; expected"
        raise InputError("channels.no_overlap", f"{text} images of one body part in one position")
    notices = []
    if not is_same_lattice(grid, first):
        if first.shape == grid.shape:
            apart_mm = float(np.linalg.norm(first.corners_mm - grid.corners_mm, axis=1).max())
            differs = f"voxels up to {apart_mm:.2g} mm from those of {first_name}"
        else:
            differs = f"{_size(grid)}, {first_name} {_size(first)}"
        text = f"channel {name} has {differs}; it was resampled linearly onto the grid of {first_name}"
        notices.append(Notice("channels.resampled", text))
    if covered < MIN_COVERED:
        text = (
            f"channel {name} covers {covered:.0%} of the field of view of {first_name}; the rest gets its lowest value"
        )
        notices.append(Notice("channels.partial", text))
    return notices


def _covered(first: Grid, grid: Grid) -> float:
    """Return the fraction of the first grid's field of view that another grid covers, from a sample of its voxels."""
    axes = [np.linspace(0, n - 1, min(n, 24)) for n in first.shape]
    points = first.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1))
    return float(grid.contains(points).mean())


def _size(grid: Grid) -> str:
    shape = " x ".join(map(str, grid.shape))
    return f"{shape} voxels of {' x '.join(f'{length:.3g}' for length in grid.spacing_mm)} mm"
