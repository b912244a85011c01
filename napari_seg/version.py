"""The version of this package, and that of its results: the one place that holds them."""

__version__ = "0.1.0"

RESULTS = 1
"""Version of the results: raised when the same scan, model and options give other labels or volumes than before.

A cohort that began with another one is not continued silently; one that began with another release is.
"""
