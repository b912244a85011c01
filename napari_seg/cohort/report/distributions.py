"""Distribution of the volumes of one structure over the cases of a model, and which volumes are unusual.

Volumes of a structure are roughly log-normal, so they are compared as logarithms. A volume is unusual if its modified
z-score, 0.6745 (x - median) / MAD, is above 3.5 (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993). Median
and median absolute deviation do not depend on the outliers themselves. If more than half of the volumes are equal, the
MAD is 0 and the mean absolute deviation replaces it, as the same source does. A structure without voxels has no
logarithm: it is unusual if most other cases have the structure.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from math import copysign, inf, log

import numpy as np

LIMIT = 3.5
"""Modified z-score above which a volume is unusual."""

MIN_CASES = 8
"""Number of cases below which no volume is called unusual."""

MAX_ABSENT = 0.1
"""Fraction of cases up to which a missing structure is unusual."""

RULE = (
    f"A volume is unusual if the modified z-score of its logarithm, 0.6745 (x − median) / MAD, is above {LIMIT} "
    f"(Iglewicz and Hoaglin, 1993). A structure without voxels is unusual if at most {100 * MAX_ABSENT:.0f} % of the "
    f"cases lack it. Each model and structure is judged by itself, and only with at least {MIN_CASES} cases."
)


@dataclass(frozen=True)
class Distribution:
    """Volumes of one structure over the cases of a model.

    Attributes:
        structure: name of the structure.
        count: number of cases that have the structure.
        absent: number of cases without a voxel of it.
        quartiles_ml: minimum, first quartile, median, third quartile and maximum of the volumes above 0, in ml; zeros
            without any.
        center: median of the logarithms.
        scale: standard deviation that corresponds to the spread of the logarithms; 0 if nothing can be judged.
    """

    structure: str
    count: int
    absent: int
    quartiles_ml: tuple[float, float, float, float, float]
    center: float
    scale: float

    def z(self, volume_ml: float) -> float | None:
        """Return the modified z-score of a volume; -inf for an unusual absence, None if nothing can be judged."""
        total = self.count + self.absent
        if volume_ml <= 0:
            return -inf if total >= MIN_CASES and self.absent <= MAX_ABSENT * total else None
        if self.count < MIN_CASES:
            return None
        distance = log(volume_ml) - self.center
        if self.scale == 0:
            return 0.0 if abs(distance) < 1e-9 else copysign(inf, distance)
        return distance / self.scale

    def is_unusual(self, volume_ml: float) -> bool:
        """Return whether a volume is unusual."""
        z = self.z(volume_ml)
        return z is not None and abs(z) > LIMIT


def distribution(structure: str, volumes_ml: array[float]) -> Distribution:
    """Return the distribution of volumes in ml; zeros are cases without the structure."""
    volumes = np.asarray(volumes_ml, dtype=np.float64)
    found = volumes[volumes > 0]
    absent = len(volumes) - len(found)
    if not len(found):
        return Distribution(structure, 0, absent, (0.0,) * 5, 0.0, 0.0)
    logs = np.log(found)
    center = float(np.median(logs))
    distances = np.abs(logs - center)
    # both factors make the deviation of a normal distribution 1
    scale = float(np.median(distances)) / 0.6745 or float(distances.mean()) * 1.253314
    low, first, middle, third, high = (float(value) for value in np.percentile(found, (0, 25, 50, 75, 100)))
    return Distribution(structure, len(found), absent, (low, first, middle, third, high), center, scale)
