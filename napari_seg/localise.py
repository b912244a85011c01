"""Where in a scan the network must look: from a Volume and what the bundle declares to a list of regions.

A whole head is registered to a template by an affine transform (Mattes mutual information, Mattes et al.
2003, doi:10.1109/TMI.2003.809072), and the boxes that the bundle names in template space are carried to the
scan. Each region is a grid in the scan's own world, turned as the template is turned but neither stretched
nor sheared; the mirror image of a box is the same box with one index axis running the other way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.spec import Bundle, LocaliserSpec, RegionSpec
from napari_seg.errors import EnvironmentFault, LocaliseError, Notice
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Segment, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk

Progress = Callable[[str, int, int], None]
"""Called as (stage, done, total) while work goes on; raises `Cancelled` to stop it."""

MAX_STRETCH = 1.5
"""A head that fits the template only when stretched or shrunk by more than this is no head."""

_REGISTRATION_MM = 2.0

_TIMED_ITERATIONS = 6
_REGISTRATION = 9.5
"""Times as long as the timed iterations take, a registration takes: 9.3 to 11.2 of two heads on AMD EPYC."""

_BINNED_VOXELS = 15e6
"""Of a scan, which are binned in the time of the timed iterations."""

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Region:
    """One look of the network at the scan.

    Attributes:
        name: for a person.
        grid: what the network is shown, in the scan's world; None: the scan as it is.
        labels: the network's label -> the label in the result.
        segments: the structures that the labels stand for.
    """

    name: str
    grid: Grid | None
    labels: dict[int, int]
    segments: tuple[Segment, ...]


def localise(
    volume: Volume, bundle: Bundle, progress: Progress | None = None
) -> tuple[list[Region], tuple[Notice, ...]]:
    """The regions of a scan that a bundle's network must see, and doubts about their place (`localise.doubtful`).

    A bundle without a localiser, or a scan that is a crop already, gives one region: the scan as it is.

    Args:
        volume: the scan.
        bundle: which structures to find, and how.
        progress: called with the stage "locating"; may raise `Cancelled`.

    Raises:
        LocaliseError: `localise.failed`, `localise.low_similarity`, `localise.mirrored`, `localise.stretched` or
            `localise.outside`: the scan does not show what the template shows, or not all of it.
        EnvironmentFault: `environment.template`, the template is not installed.
    """
    spec = bundle.localiser
    if spec is None or is_crop(volume, spec):
        labels = {segment.label: segment.label for segment in bundle.network_segments}
        return [Region("scan", None, labels, bundle.network_segments)], ()
    template = read_template(spec.template, bundle.root)
    try:
        to_scan, similarity = register(template, volume, progress)
    except RuntimeError as error:  # ITK's word for a scan that is empty, or never overlaps the template
        raise LocaliseError(
            "localise.failed",
            "the scan could not be registered to the template: it is empty or too thin, or the two never overlap; "
            "check its orientation and that the whole head is in the scan",
        ) from error
    if similarity < spec.min_similarity:
        raise LocaliseError(
            "localise.low_similarity",
            f"the scan resembles the template {spec.template!r} by {similarity:.2f} only; expected at least "
            f"{spec.min_similarity:.2f}; check that it is a {bundle.modality or 'fitting'} scan whose orientation is "
            f"right, or give what the network itself takes: {bundle.images or 'a crop around the structure'}, "
            f"less than {spec.crop_below_mm:g} mm long",
        )
    _check_plausible(to_scan[:3, :3])
    regions = [_region(volume, bundle, spec, region, to_scan) for region in spec.regions]
    if similarity < spec.usual_similarity:
        doubt = f"the scan resembles the template by {similarity:.2f}; at least {spec.usual_similarity:.2f} is usual"
        return regions, (Notice("localise.doubtful", f"{doubt}; look whether the structures lie where they should"),)
    return regions, ()


def locating_seconds(volume: Volume, bundle: Bundle) -> float:
    """Return about how long `localise` will take; the first iterations are timed, on the template itself.

    Args:
        volume: the scan.
        bundle: as for `localise`.

    Raises:
        EnvironmentFault: as `localise` does.
    """
    spec = bundle.localiser
    if spec is None or is_crop(volume, spec):
        return 0.0
    return _timed_iterations(spec.template, bundle.root) * (_REGISTRATION + volume.array[0].size / _BINNED_VOXELS)


@lru_cache(maxsize=2)  # timing them for each scan of a cohort would slow the cohort down
def _timed_iterations(template: str, bundle_root: Path) -> float:
    """Return the seconds that the first iterations of a registration take, on the template itself."""
    import SimpleITK as sitk

    fixed = _itk_template(template, bundle_root)
    start = time.perf_counter()
    first = _Descent(_RIGID.first_step_mm, _RIGID.last_step_mm, _RIGID.relaxation, _TIMED_ITERATIONS)
    _maximise(fixed, fixed, sitk.Euler3DTransform(), first, [2], _Watch(None, _TIMED_ITERATIONS))
    return time.perf_counter() - start


@lru_cache(maxsize=2)
def _itk_template(name: str, bundle_root: Path) -> sitk.Image:
    return _itk_image(read_template(name, bundle_root))


def is_crop(volume: Volume, spec: LocaliserSpec) -> bool:
    """Whether a scan is a crop already, which the network is shown as it is."""
    return max(volume.grid.size_mm) < spec.crop_below_mm


def _region(
    volume: Volume, bundle: Bundle, spec: LocaliserSpec, region: RegionSpec, to_scan: NDArray[np.float64]
) -> Region:
    linear = to_scan[:3, :3]
    left, _, right = np.linalg.svd(linear)
    center = linear @ np.array(region.center_mm) + to_scan[:3, 3]
    # the rotation nearest to the transform (polar decomposition) turns the box; its size follows the head's
    size = np.array(region.size_mm) * np.linalg.norm(linear, axis=0)
    grid = Grid.around(center, tuple(size), spec.spacing_mm, left @ right)
    if not volume.grid.contains(grid.corners_mm).all():
        raise LocaliseError(
            "localise.outside",
            f"the {region.name} lies partly outside the scan's field of view; expected a scan of the whole head, "
            f"or a crop of less than {spec.crop_below_mm:g} mm around the structure",
        )
    segments = tuple(segment for segment in bundle.segments if segment.label in region.labels.values())
    return Region(region.name, grid.mirrored(0) if region.mirror else grid, region.labels, segments)


def _check_plausible(linear: NDArray[np.float64]) -> None:
    """Refuses a transform that mirrors, which would exchange left and right, or that stretches too much."""
    if np.linalg.det(linear) <= 0:
        raise LocaliseError(
            "localise.mirrored",
            "the scan fits the template only as its mirror image; expected a head; check its orientation",
        )
    stretches = np.linalg.svd(linear, compute_uv=False)
    if stretches.max() > MAX_STRETCH or stretches.min() < 1 / MAX_STRETCH:
        raise LocaliseError(
            "localise.stretched",
            f"the scan fits the template only when stretched {stretches.min():.2f} to {stretches.max():.2f} times; "
            f"expected at most {MAX_STRETCH:g}; check the voxel size and that the whole head is in the scan",
        )


def read_template(name: str, bundle_root: Path) -> Volume:
    """A template to register to.

    Args:
        name: "mni152_t1" (ICBM 2009a, symmetric, skull-stripped, 1 mm; Fonov et al. 2011,
            doi:10.1016/j.neuroimage.2010.07.033; comes with nilearn), or a NIfTI file in the bundle.
        bundle_root: the bundle's folder.

    Raises:
        EnvironmentFault: `environment.template`, it is not there.
    """
    from napari_seg.formats import read

    if name == "mni152_t1":
        path = mni152_path()
    else:
        path = (bundle_root / name).resolve()
        if not path.is_relative_to(bundle_root.resolve()) or not path.is_file():
            raise EnvironmentFault("environment.template", f"found no template {name!r} in bundle {bundle_root.name!r}")
    return read(path)


def mni152_path() -> Path:
    """The MNI152 T1 template's file, found without importing nilearn."""
    from importlib.util import find_spec

    spec = find_spec("nilearn")
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0], "datasets", "data")
        for path in sorted(folder.glob("mni_icbm152_t1_tal_nlin_sym_09a*.nii.gz")):
            return path
    raise EnvironmentFault(
        "environment.template", "the MNI152 template was not found; it comes with nilearn: pip install nilearn"
    )


def register(template: Volume, scan: Volume, progress: Progress | None = None) -> tuple[NDArray[np.float64], float]:
    """The affine transform from the template to the scan that maximises their mutual information.

    Moments give the place. A rigid transform is sought from three pitches of the head, because the gradient
    alone does not recover one of 15 degrees; the best of them is refined to an affine transform at two
    resolutions. 5 % random samples with a fixed seed, so that the same scan gives the same answer.

    Args:
        template: first channel is used.
        scan: first channel is used.
        progress: called at every iteration with the stage "locating".

    Returns:
        (4, 4) from a point in the template to the point in the scan, in mm, RAS+; and the mutual information
        reached (nats; 0 means that neither image tells anything of the other).

    Raises:
        RuntimeError: ITK could not compare the two: the scan is empty, or they never overlap.
    """
    import SimpleITK as sitk

    fixed, moving = _itk_image(template), _itk_image(scan)
    start = sitk.AffineTransform(
        sitk.CenteredTransformInitializer(
            fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
        )
    )
    watch = _Watch(progress, total=len(_PITCHES_DEGREES) * _RIGID.iterations + 2 * _AFFINE.iterations)
    rigids = []
    for pitch in _PITCHES_DEGREES:
        rigid = sitk.Euler3DTransform(start.GetCenter(), float(np.radians(pitch)), 0.0, 0.0, start.GetTranslation())
        rigids.append((_maximise(fixed, moving, rigid, _RIGID, [2], watch), rigid))
    _, best = max(rigids, key=lambda pair: pair[0])
    affine = sitk.AffineTransform(best.GetMatrix(), best.GetTranslation(), best.GetCenter())
    similarity = _maximise(fixed, moving, affine, _AFFINE, [2, 1], watch)
    watch.finish()

    matrix = np.array(affine.GetMatrix()).reshape(3, 3)
    center = np.array(affine.GetCenter())
    to_scan = np.eye(4)
    to_scan[:3, :3] = _LPS_FROM_RAS @ matrix @ _LPS_FROM_RAS
    to_scan[:3, 3] = _LPS_FROM_RAS @ (center + np.array(affine.GetTranslation()) - matrix @ center)
    return to_scan, similarity


@dataclass(frozen=True)
class _Descent:
    """Settings of a regular-step gradient descent; steps in mm of the voxel that moves most."""

    first_step_mm: float
    last_step_mm: float
    relaxation: float
    iterations: int


_RIGID = _Descent(first_step_mm=8.0, last_step_mm=0.1, relaxation=0.8, iterations=80)
_AFFINE = _Descent(first_step_mm=1.0, last_step_mm=0.01, relaxation=0.7, iterations=100)
_PITCHES_DEGREES = (-20.0, 0.0, 20.0)


def _maximise(
    fixed: sitk.Image,
    moving: sitk.Image,
    transform: sitk.Transform,
    descent: _Descent,
    shrink: list[int],
    watch: _Watch,
) -> float:
    """Changes the transform in place and gives the mutual information it reaches."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.05, 20)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        descent.first_step_mm, descent.last_step_mm, descent.iterations, descent.relaxation
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([float(factor) for factor in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    method.AddCommand(sitk.sitkIterationEvent, lambda: watch.step(method))
    try:
        method.Execute(fixed, moving)
    finally:
        watch.raise_again()
    watch.level(descent.iterations * len(shrink))
    return -float(method.GetMetricValue())


class _Watch:
    """Passes iterations on as progress, and keeps what the callback raises: ITK would swallow it."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._before = 0
        self._within = 0
        self._raised: BaseException | None = None

    def step(self, method: sitk.ImageRegistrationMethod) -> None:
        if self._progress is None or self._raised is not None:
            return
        self._within += 1
        try:
            self._progress("locating", min(self._before + self._within, self._total - 1), self._total)
        except BaseException as stop:  # Ctrl-C among them; raised again once ITK has returned
            self._raised = stop
            method.StopRegistration()

    def level(self, iterations: int) -> None:
        self._before += iterations
        self._within = 0

    def raise_again(self) -> None:
        if self._raised is not None:
            raise self._raised

    def finish(self) -> None:
        if self._progress is not None:
            self._progress("locating", self._total, self._total)


def _itk_image(volume: Volume) -> sitk.Image:
    """The first channel at about 2 mm as ITK sees it: array axes (k, j, i), world in LPS."""
    import SimpleITK as sitk

    fine = volume.grid.reoriented("RAS")
    array = resample(volume.array[0], volume.grid, fine)
    bins = [min(n, max(1, round(_REGISTRATION_MM / s))) for n, s in zip(fine.shape, fine.spacing_mm, strict=True)]
    means = _binned(array, bins)
    affine = fine.affine @ np.diag([*bins, 1.0])
    affine[:3, 3] = fine.to_world([(n - 1) / 2 for n in bins])
    grid = Grid(means.shape, affine)
    image = sitk.GetImageFromArray(means.T)  # small by now: it would stop all other threads
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection((_LPS_FROM_RAS @ grid.directions).ravel().tolist())
    image.SetOrigin((_LPS_FROM_RAS @ grid.affine[:3, 3]).tolist())
    return image


def _binned(array: NDArray, bins: Sequence[int]) -> NDArray[np.float32]:
    """Means of boxes of so many voxels, (I, J, K); what is left over at the ends is left out."""
    i, j, k = (n // size for n, size in zip(array.shape, bins, strict=True))
    answer = np.empty((i, j, k), np.float32)
    for n in range(i):
        slab = array[n * bins[0] : (n + 1) * bins[0], : j * bins[1], : k * bins[2]]
        answer[n] = slab.reshape(bins[0], j, bins[1], k, bins[2]).mean(axis=(0, 2, 4), dtype=np.float64)
    return answer
