"""Threads of the networks of this process."""

from __future__ import annotations

import torch


def use_threads(count: int) -> None:
    """Let networks use so many threads from now on, whichever program runs them."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
