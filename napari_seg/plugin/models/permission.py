"""Whether a bundle may run: at once, after the user's consent to its code, or not at all. Without Qt.

Nothing of the bundle runs here. The answer is for the window: the loader checks the content again as it loads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from napari_seg.bundles.content import CodeLine, code_lines, consent_hash
from napari_seg.bundles.read import with_inner
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.trust import check_consent, check_runnable, remember
from napari_seg.bundles.ways import way_of
from napari_seg.errors import BundleError
from napari_seg.plugin.messages import gui_text_of

PermissionKind = Literal["not needed", "given", "needed", "changed", "refused"]


@dataclass(frozen=True)
class Permission:
    """Permission of a bundle to run.

    Attributes:
        kind: "not needed", it runs at once; "given", the user consented to this content; "needed", the user has to
            consent first; "changed", the same, because the content changed since an earlier consent; "refused", it
            can't run.
        reasons: why it needs consent, or why it is refused, as text for the user.
        digest: consent hash that a consent is for; "" if none is needed.
        lines: lines of the bundle that would run beyond napari-seg's control.
        runs_as_written: MONAI runs its config as written, because napari-seg's own inference can't express it.
    """

    kind: PermissionKind
    reasons: tuple[str, ...] = ()
    digest: str = ""
    lines: tuple[CodeLine, ...] = ()
    runs_as_written: bool = False

    @property
    def may_run(self) -> bool:
        """True if Run is enabled."""
        return self.kind in ("not needed", "given")

    @property
    def asks(self) -> bool:
        """True if the user can consent now."""
        return self.kind in ("needed", "changed")

    @property
    def sentence(self) -> str:
        """The permission in one sentence, as text for the user."""
        if self.kind == "refused":
            return f"It can't run: {'; '.join(self.reasons)}"
        by = " MONAI runs it exactly as written." if self.runs_as_written else ""
        return _SENTENCES[self.kind] + by


_SENTENCES: dict[PermissionKind, str] = {
    "not needed": "It runs at once.",
    "given": "You gave your consent, so it runs at once.",
    "needed": "It needs your consent: it contains program code.",
    "changed": "It needs your consent again: its files changed since you trusted it, or were not all checked then.",
}


def permission_of(bundle: Bundle) -> Permission:
    """Return whether a bundle may run, from its content at this moment; reads files, so call it in a job."""
    if bundle.trusted:
        return Permission("not needed")
    try:
        check_runnable(replace(bundle, trusted=True))  # what no consent would change
        ways = [way_of(each) for each in with_inner(bundle)]
        runs_as_written = ways[0].kind == "workflow"
        if not any(way.needs_consent for way in ways):
            return Permission("not needed")
        digest, lines = consent_hash(bundle), tuple(code_lines(bundle))
    except BundleError as error:
        return Permission("refused", (gui_text_of(error),))
    asked = Permission(
        "needed", tuple(reason for way in ways for reason in way.reasons), digest, lines, runs_as_written
    )
    try:
        check_consent(bundle)
    except BundleError as error:
        return replace(asked, kind="changed") if error.code == "bundle.trust_changed" else asked
    return replace(asked, kind="given")


def give_consent(bundle: Bundle, shown: Permission) -> Permission:
    """Remember the user's consent to the content that was shown, and return the new permission.

    If the content is no longer the one that was shown, nothing is remembered, and the new content asks again.

    Raises:
        BundleError: the content can't be consented to.
        OSError: the store can't be written.
    """
    if consent_hash(bundle) != shown.digest:
        return replace(permission_of(bundle), kind="changed")
    remember(bundle)
    return permission_of(bundle)
