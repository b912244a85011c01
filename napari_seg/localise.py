"""Localisation: place the regions that a bundle declares in a scan, as grids that its network sees.

A template is registered to the scan of a whole head by an affine transform (Mattes mutual information, Mattes et al.
2003, doi:10.1109/TMI.2003.809072), which maps the boxes that the bundle declares in template space to the scan. Each
region is a grid in the scan's own world. It is rotated as the template is, but neither stretched nor sheared; a box is
mirrored by reversing one of its index axes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.spec import Bundle, LocaliserSpec, RegionSpec
from napari_seg.errors import EnvironmentFault, LocaliseError, Notice
from napari_seg.geometry import RAS_FROM_LPS, Grid, resample
from napari_seg.progress import Progress
from napari_seg.volume import Segment, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk

MNI152 = "mni152_t1"
"""Name of the template that comes with the package: a T1-weighted MRI of a head, see `read_template`."""

MAX_STRETCH = 1.5
"""Largest stretch or shrinkage of a head relative to the template; beyond it the registration is wrong."""

_REGISTRATION_MM = 2.0
"""Voxel size at which images are registered."""

_TIMED_ITERATIONS = 6
"""Iterations that are timed for an estimate."""

_REGISTRATION_FACTOR = 9.5
"""Time of a registration relative to the timed iterations: 9.3 to 11.2 for two heads."""


@dataclass(frozen=True)
class Region:
    """A part of the scan that the network sees.

    Attributes:
        name: name for messages.
        grid: grid of the region in the scan's world; None: the scan as it is.
        labels: label of the network -> label in the result.
        segments: structures that the labels of the result stand for.
    """

    name: str
    grid: Grid | None
    labels: dict[int, int]
    segments: tuple[Segment, ...]


def localise(
    volume: Volume, bundle: Bundle, progress: Progress | None = None
) -> tuple[list[Region], tuple[Notice, ...]]:
    """Return the regions of a scan that a bundle's network must see, and notices about their position.

    The only notice is `localise.doubtful`. A bundle without a localiser, or a scan that is a crop already, gives one
    region: the scan as it is.

    Args:
        volume: the scan.
        bundle: bundle that declares the regions.
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
    template = template_image(spec.template, bundle.root)
    try:
        to_scan, similarity = register(template, itk_image(volume), progress)
    except RuntimeError as error:  # ITK raises it if the scan is empty, or never overlaps the template
        raise LocaliseError(
            "localise.failed",
            "the scan could not be registered to the template: it is empty or too thin, or the two never overlap; "
            "check its orientation and that the whole head is in the scan",
        ) from error
    if similarity < spec.min_similarity:
        shown = "a T1-weighted MRI of a whole head" if spec.template == MNI152 else "a scan of what it shows"
        raise LocaliseError(
            "localise.low_similarity",
            f"the similarity of the scan to the template {spec.template!r} is {similarity:.2f}; expected at least "
            f"{spec.min_similarity:.2f}, from {shown}, or a scan shorter than {spec.crop_below_mm:g} mm such as those "
            f"that the network was trained on ({bundle.images or 'crops around the structure'}); is this another part "
            "of the body? choose another model (--model; 'napari-seg models search' finds models to install); "
            "otherwise check the orientation of the scan",
        )
    _check_plausible(to_scan[:3, :3])
    regions = [_region(volume, bundle, spec, region, to_scan) for region in spec.regions]
    if similarity < spec.usual_similarity:
        text = f"the similarity to the template is {similarity:.2f}; expected at least {spec.usual_similarity:.2f}"
        return regions, (Notice("localise.doubtful", f"{text}; check that the structures lie where they should"),)
    return regions, ()


def locating_seconds(volume: Volume, bundle: Bundle) -> float:
    """Return the estimated seconds of `localise`, from the first iterations of a registration.

    The iterations that are timed register the template to itself.

    Args:
        volume: the scan.
        bundle: bundle that declares the regions.

    Raises:
        EnvironmentFault: `environment.template`, the template is not installed.
    """
    spec = bundle.localiser
    if spec is None or is_crop(volume, spec):
        return 0.0
    return _REGISTRATION_FACTOR * _seconds_of_first_iterations(spec.template, bundle.root)


@lru_cache(maxsize=2)  # timed once, not for each scan of a cohort
def _seconds_of_first_iterations(template: str, bundle_root: Path) -> float:
    """Return the seconds of the first iterations of registering a template to itself."""
    import SimpleITK as sitk

    fixed = template_image(template, bundle_root)
    start = time.perf_counter()
    first = _Descent(_RIGID.first_step_mm, _RIGID.last_step_mm, _RIGID.relaxation, _TIMED_ITERATIONS)
    _maximise(fixed, fixed, sitk.Euler3DTransform(), first, [2], _ProgressReporter(None, _TIMED_ITERATIONS))
    return time.perf_counter() - start


@lru_cache(maxsize=2)
def template_image(name: str, bundle_root: Path) -> sitk.Image:
    """Return a template as `register` takes it; the last two stay in memory. See `read_template`."""
    return itk_image(read_template(name, bundle_root))


def is_crop(volume: Volume, spec: LocaliserSpec) -> bool:
    """Return whether a scan is a crop already, which the network sees as it is."""
    return max(volume.grid.size_mm) < spec.crop_below_mm


def _region(
    volume: Volume, bundle: Bundle, spec: LocaliserSpec, region: RegionSpec, to_scan: NDArray[np.float64]
) -> Region:
    linear = to_scan[:3, :3]
    u, _, vt = np.linalg.svd(linear)
    center = linear @ np.array(region.center_mm) + to_scan[:3, 3]
    # the rotation nearest to the transform (polar decomposition) rotates the box; its size follows that of the head
    size = np.array(region.size_mm) * np.linalg.norm(linear, axis=0)
    grid = Grid.around(center, tuple(size), spec.spacing_mm, u @ vt)
    if not volume.grid.contains(grid.corners_mm).all():
        raise LocaliseError(
            "localise.outside",
            f"the {region.name} lies partly outside the scan's field of view; expected a scan of the whole head, "
            f"or a crop of less than {spec.crop_below_mm:g} mm around the structure",
        )
    segments = tuple(segment for segment in bundle.segments if segment.label in region.labels.values())
    return Region(region.name, grid.mirrored(0) if region.mirror else grid, region.labels, segments)


def _check_plausible(linear: NDArray[np.float64]) -> None:
    """Raise if a transform mirrors, which would exchange left and right, or stretches too much."""
    if np.linalg.det(linear) <= 0:
        raise LocaliseError(
            "localise.mirrored",
            "the scan matches only the mirror image of the template; expected a head; check its orientation",
        )
    stretches = np.linalg.svd(linear, compute_uv=False)
    if stretches.max() > MAX_STRETCH or stretches.min() < 1 / MAX_STRETCH:
        raise LocaliseError(
            "localise.stretched",
            f"the scan matches the template only if stretched {stretches.min():.2f} to {stretches.max():.2f} times; "
            f"expected at most {MAX_STRETCH:g}; check the voxel size and that the whole head is in the scan; for "
            "another part of the body choose another model (--model)",
        )


def read_template(name: str, bundle_root: Path) -> Volume:
    """Read a template.

    Args:
        name: "mni152_t1" (ICBM 2009a, symmetric, skull-stripped, 1 mm; Fonov et al. 2011,
            doi:10.1016/j.neuroimage.2010.07.033; installed with nilearn), or a NIfTI file in the bundle.
        bundle_root: the bundle's folder.

    Raises:
        EnvironmentFault: `environment.template`, there is no such file.
    """
    from napari_seg.formats.read import read

    return read(template_file(name, bundle_root))


def template_file(name: str, bundle_root: Path) -> Path:
    """Return the file of a template.

    Args:
        name: see `read_template`.
        bundle_root: the bundle's folder.

    Raises:
        EnvironmentFault: `environment.template`, there is no such file.
    """
    if name == MNI152:
        return mni152_path()
    root = bundle_root.resolve()
    path = Path(os.path.normpath(root / name))  # on Windows, resolving a share connects to its host
    if not path.is_relative_to(root) or not path.resolve().is_relative_to(root) or not path.is_file():
        raise EnvironmentFault("environment.template", f"found no template {name!r} in bundle {bundle_root.name!r}")
    return path


def mni152_path() -> Path:
    """Return the file of the MNI152 T1 template, without importing nilearn.

    Raises:
        EnvironmentFault: `environment.template`, nilearn is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("nilearn")
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0], "datasets", "data")
        for path in sorted(folder.glob("mni_icbm152_t1_tal_nlin_sym_09a*.nii.gz")):
            return path
    raise EnvironmentFault(
        "environment.template", "the MNI152 template was not found; it comes with nilearn: pip install nilearn"
    )


def register(
    fixed: sitk.Image, moving: sitk.Image, progress: Progress | None = None
) -> tuple[NDArray[np.float64], float]:
    """Return the affine transform from a template to a scan that maximises their mutual information.

    Moments give the initial position. Rigid transforms start from three pitches of the head, because the gradient
    alone does not correct one of 15 degrees; the best of them is refined to an affine transform at two resolutions.
    5 % of the voxels are sampled at random with a fixed seed, so that the same scan gives the same result.

    Args:
        fixed: the template, from `itk_image`.
        moving: the scan, from `itk_image`.
        progress: called at every iteration with the stage "locating".

    Returns:
        (4, 4) from a point in the template to the point in the scan, in mm, RAS+; and the mutual information
        (nats; 0 if the images are independent).

    Raises:
        RuntimeError: ITK could not compare the two: the scan is empty, or they never overlap.
    """
    import SimpleITK as sitk

    start = sitk.AffineTransform(
        sitk.CenteredTransformInitializer(
            fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
        )
    )
    reporter = _ProgressReporter(progress, total=len(_PITCHES_DEGREES) * _RIGID.iterations + 2 * _AFFINE.iterations)
    rigids = []
    for pitch in _PITCHES_DEGREES:
        rigid = sitk.Euler3DTransform(start.GetCenter(), float(np.radians(pitch)), 0.0, 0.0, start.GetTranslation())
        rigids.append((_maximise(fixed, moving, rigid, _RIGID, [2], reporter), rigid))
    _, best = max(rigids, key=lambda pair: pair[0])
    affine = sitk.AffineTransform(best.GetMatrix(), best.GetTranslation(), best.GetCenter())
    similarity = _maximise(fixed, moving, affine, _AFFINE, [2, 1], reporter)
    reporter.finish()

    matrix = np.array(affine.GetMatrix()).reshape(3, 3)
    center = np.array(affine.GetCenter())
    to_scan = np.eye(4)
    to_scan[:3, :3] = matrix
    to_scan[:3, 3] = center + np.array(affine.GetTranslation()) - matrix @ center
    return RAS_FROM_LPS @ to_scan @ RAS_FROM_LPS, similarity


@dataclass(frozen=True)
class _Descent:
    """Settings of a regular-step gradient descent.

    Step lengths are the displacement, in mm, of the voxel that moves most.
    """

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
    reporter: _ProgressReporter,
) -> float:
    """Optimise a transform in place, and return its mutual information.

    Args:
        fixed: the template.
        moving: the scan.
        transform: changed in place.
        descent: settings of the optimiser.
        shrink: factors by which the images are shrunk, one per level.
        reporter: reports the iterations as progress.
    """
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
    method.AddCommand(sitk.sitkIterationEvent, lambda: reporter.step(method))
    try:
        method.Execute(fixed, moving)
    finally:
        reporter.raise_again()
    reporter.finish_level(descent.iterations * len(shrink))
    return -float(method.GetMetricValue())


class _ProgressReporter:
    """Report iterations as progress, and keep an exception of the callback, which ITK would discard."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._finished_iterations = 0
        self._level_iterations = 0
        self._raised: BaseException | None = None

    def step(self, method: sitk.ImageRegistrationMethod) -> None:
        """Report an iteration; stop the registration if the callback raises."""
        if self._progress is None or self._raised is not None:
            return
        self._level_iterations += 1
        try:
            self._progress(
                "locating", min(self._finished_iterations + self._level_iterations, self._total - 1), self._total
            )
        except BaseException as stop:  # Ctrl-C among them; raised again once ITK has returned
            self._raised = stop
            method.StopRegistration()

    def finish_level(self, iterations: int) -> None:
        """Count all iterations of a level as done, even if the optimiser stopped earlier."""
        self._finished_iterations += iterations
        self._level_iterations = 0

    def raise_again(self) -> None:
        """Raise the exception of the callback, if there was one."""
        if self._raised is not None:
            raise self._raised

    def finish(self) -> None:
        """Report that all iterations are done."""
        if self._progress is not None:
            self._progress("locating", self._total, self._total)


def itk_image(volume: Volume) -> sitk.Image:
    """Return the first channel at about 2 mm as an image of ITK: array axes (k, j, i), world in LPS+."""
    from napari_seg.formats.itk import to_itk

    reoriented = volume.grid.reoriented("RAS")
    array = resample(volume.array[0], volume.grid, reoriented)
    bins = [
        min(n, max(1, round(_REGISTRATION_MM / s)))
        for n, s in zip(reoriented.shape, reoriented.spacing_mm, strict=True)
    ]
    means = _binned(array, bins)
    affine = reoriented.affine @ np.diag([*bins, 1.0])
    affine[:3, 3] = reoriented.to_world([(n - 1) / 2 for n in bins])
    return to_itk(means, Grid(means.shape, affine))  # binned first, because ITK blocks all other threads meanwhile


def _binned(array: NDArray, bins: Sequence[int]) -> NDArray[np.float32]:
    """Return means (I, J, K) over boxes of `bins` voxels; incomplete boxes at the ends are dropped."""
    i, j, k = (n // size for n, size in zip(array.shape, bins, strict=True))
    answer = np.empty((i, j, k), np.float32)
    for n in range(i):
        slab = array[n * bins[0] : (n + 1) * bins[0], : j * bins[1], : k * bins[2]]
        answer[n] = slab.reshape(bins[0], j, bins[1], k, bins[2]).mean(axis=(0, 2, 4), dtype=np.float64)
    return answer
