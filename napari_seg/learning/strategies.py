"""Names of the strategies that order the cases to correct; see `ranking`. Importing them is cheap."""

from __future__ import annotations

from typing import Literal, get_args

Strategy = Literal["uncertain-diverse", "uncertain", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
