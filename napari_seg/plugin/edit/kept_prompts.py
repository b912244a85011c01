"""Prompts as plain data of their layer, so that automatic copies and sessions hold them."""

from __future__ import annotations

from napari.layers import Labels

from napari_seg.editing.change import Box
from napari_seg.editing.prompts import Prompts
from napari_seg.errors import InputError
from napari_seg.plugin import kept_data

_NAME = "prompts"


def keep_prompts(layer: Labels, label: int, prompts: Prompts) -> None:
    """Keep the prompts for a structure of a layer in place of earlier ones."""
    if prompts.is_empty:
        kept_data.keep(layer, _NAME, None)
        return
    box = None if prompts.box is None else [[int(s.start or 0), int(s.stop)] for s in prompts.box]
    data = {"label": label, "positive": prompts.positive.tolist(), "negative": prompts.negative.tolist(), "box": box}
    kept_data.keep(layer, _NAME, data)


def kept_prompts(layer: Labels, label: int) -> Prompts:
    """Return the prompts that are kept for a structure of a layer; empty if there are none, or if they don't fit.

    The data may come from the session file of a stranger.
    """
    data = kept_data.kept(layer).get(_NAME)
    if not isinstance(data, dict) or data.get("label") != label:
        return Prompts()
    try:
        box = None if data.get("box") is None else _box(data["box"])
        prompts = Prompts(data.get("positive", []), data.get("negative", []), box)
        prompts.check(layer.data.shape)
    except (InputError, ValueError, TypeError, OverflowError):
        return Prompts()
    return prompts


def _box(data: list[list[int]]) -> Box:
    (a, b), (c, d), (e, f) = data
    if not all(type(one) is int for one in (a, b, c, d, e, f)):
        raise TypeError
    return slice(a, b), slice(c, d), slice(e, f)
