"""The processes beside napari's, which keep its window quick and outlive neither it nor what goes wrong in them."""

from __future__ import annotations

from napari_seg.worker import OwnProcess

NETWORKS = OwnProcess()
"""Runs networks, which are kept from one scan to the next."""

COMPARING = OwnProcess()
"""Compares with references; scipy holds Python for up to a second."""

SAVING = OwnProcess()
"""Writes files and reads them back, also while others work; highdicom holds Python for up to a second."""
