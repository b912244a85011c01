"""The processes beside napari's, which keep its window quick and outlive neither it nor what goes wrong in them."""

from __future__ import annotations

from napari_seg.apart import OwnProcess

NETWORKS = OwnProcess()
"""Runs networks, which are kept from one scan to the next."""

REVIEW = OwnProcess()
"""Compares and saves, also while a network runs: scipy, SimpleITK and highdicom hold Python for up to a second."""
