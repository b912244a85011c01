"""The model that was chosen in a session: recognised by name, version and content, never by its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from napari_seg.errors import NapariSegError, one_line
from napari_seg.plugin.session_file.content import SavedModel

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle

_digests: dict[tuple, str] = {}
"""Reference of a model, stamp of its weights, hash of its other files -> its digest, for which weights are read."""


def saved_model(bundle: Bundle | None, salt: str) -> SavedModel | None:
    """Return what a session says about a model; slow for large weights, call outside the main thread."""
    if bundle is None:
        return None
    name, version = one_line(bundle.name, 500), one_line(bundle.version, 500)
    return SavedModel.model_validate({"name": name, "version": version, "digest": _salted_digest(bundle, salt)})


def find_model(saved: SavedModel | None, bundles: Sequence[Bundle], salt: str) -> tuple[Bundle | None, str]:
    """Return the model of a session and a warning ("" for none); slow, call outside the main thread.

    Nothing of the model runs, and being chosen in a session is no consent.

    Args:
        saved: what the session says.
        bundles: models on this computer.
        salt: salt of the session.
    """
    if saved is None:
        return None, ""
    named = [one for one in bundles if one_line(one.name, 500) == saved.name]
    same = [one for one in named if one_line(one.version, 500) == saved.version]
    equal = next((one for one in same if not saved.digest or _salted_digest(one, salt) == saved.digest), None)
    if equal is not None:
        return equal, ""
    title = f"{one_line(saved.name, 80)} {one_line(saved.version, 20)}".strip()
    if same:
        return same[0], f"The model {title} has other weights or code than when the session was saved."
    others = ", ".join(one.version for one in named)
    here = f"; version {others} is" if others else ""
    return None, f"The model of the session is not on this computer: {title}{here}. Choose one in the Segment tab."


def _salted_digest(bundle: Bundle, salt: str) -> str:
    """Return the salted digest of a model; "" if it can't be read."""
    from napari_seg.bundles.content import content_hash
    from napari_seg.bundles.digest import model_digest, model_stamp

    try:
        key = (bundle.reference, model_stamp(bundle), content_hash(bundle))
        if key not in _digests:
            _digests[key] = model_digest(bundle)
    except (NapariSegError, OSError):
        return ""
    return hashlib.blake2b(_digests[key].encode(), key=bytes.fromhex(salt), digest_size=16).hexdigest()
