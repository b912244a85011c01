"""Test-time averaging: its names, which a bundle declares and a run may choose."""

from __future__ import annotations

from typing import Literal

TTA = Literal["none", "shifts", "mirror"]
"""Averaging of logits over shifted copies of each window, or over its mirror images."""
