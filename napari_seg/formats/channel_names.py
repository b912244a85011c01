"""Recognise the channels of a model in names of files and in descriptions of DICOM series.

A name or a description says which channel an image is, or it says nothing: what could be two channels counts as none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from napari_seg.errors import InputError, Notice

_AGENT = r"gd|gad|gado|gadolinium|gadovist|gadavist|gadobutrol|gadoter\w+|km"
_POST = rf"post(?:contrast|gad|gd|km)?|contrast|ce|{_AGENT}"
_PRE = r"pre|precontrast|native?|noncontrast"
_METHOD = (
    r"(?:mprage|mp2rage|t?se|fse|fs|spc|space|vibe|fl[23]d|ffe|tfe|f?spgr|gre|bravo|cube|dixon|haste|blade|stir|[23]d"
    r"|ax|axial|sag|cor|tra)*"
)
_PREFIX = r"(?<![a-z0-9])(?:ax|axial|sag|cor|tra|3d)?"
_WEIGHTED = r"(?:wi|w|weighted)?"
_T1 = re.compile(rf"{_PREFIX}t1(?:n|{_WEIGHTED}{_METHOD}(?:c|{_POST}|{_PRE})?{_METHOD})\b|\bmp ?2?rage\b|\bbravo\b")
_T2 = re.compile(rf"{_PREFIX}t2{_WEIGHTED}{_METHOD}\b(?!\*)")
_FLAIR = re.compile(rf"{_PREFIX}(?:t2{_WEIGHTED})?flair{_METHOD}\b|\bt2 ?f\b|\bdark ?fluid\b")
_CONTRAST = re.compile(rf"t1{_WEIGHTED}{_METHOD} ?(?:c|{_POST}){_METHOD}\b|\+ ?c\b|\bc ?\+|\b(?:{_POST}|enhanced)\b")
_NO_CONTRAST = re.compile(
    r"\b(pre|non?|without|ohne|nativ\w*|unenhanced|pre ?(contrast|gd|gad\w*|km))\b"
    rf"|t1{_WEIGHTED}{_METHOD}(?:{_PRE}){_METHOD}\b"
)
_DERIVED = re.compile(
    r"\b(adc|dwi|dti|diff\w*|trace\w*|swi|swan|maps?|mapping|sub\w*|star|perf\w*|dce|dsc|asl|mip|tof|angio\w*|mask|seg"
    r"|scout|survey|locali[sz]er)\b"
)
"""Images that are named after a sequence but have other values: maps, subtractions, diffusion, perfusion, labels."""

_SYNONYMS = {
    "T1": ("t1", "t1w", "t1wi", "t1weighted", "t1n", "t1native", "t1pre", "t1precontrast", "t1mprage", "mprage"),
    "T1c": (
        *("t1c", "t1ce", "t1gd", "t1km", "t1contrast", "t1post", "t1postcontrast", "t1postgd", "t1+c"),
        *("t1wc", "t1wce", "t1wgd", "t1wpost", "cet1", "cet1w", "cegdt1w"),
    ),
    "T2": ("t2", "t2w", "t2wi", "t2weighted"),
    "FLAIR": ("flair", "t2flair", "t2wflair", "t2f"),
}
"""Other names of a sequence that a user may give to an image, in lower case without separators."""

_MIN_LIKENESS = 0.6
"""Likeness (0 to 1) from which a channel is suggested for an unknown name."""

_VIEWS = frozenset(
    ("ax", "axial", "cor", "coronal", "sag", "sagittal", "tra", "transversal", "2d", "3d", "pre", "native", "nativ")
)
"""Words next to the name of a channel that name no case."""

NUMBERED = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")
"""Name of a file in the layout of nnU-Net, which counts channels from 0."""

_BIDS_CASE = re.compile(r"sub-[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?(?=_)")

_BIDS_SUBJECT = re.compile(r"(?<![a-z0-9])sub-[a-z0-9]+", re.IGNORECASE)


def sequence_of(text: str) -> str:
    """Return "T1", "T1c" (with contrast agent), "T2" or "FLAIR"; "" if a text names none of them, or several."""
    words = _words(text)
    if _DERIVED.search(words):
        return ""
    is_t1, is_t2, is_flair = (bool(pattern.search(words)) for pattern in (_T1, _T2, _FLAIR))
    if is_t1 and not is_t2 and not is_flair:
        return "T1c" if _CONTRAST.search(words) and not _NO_CONTRAST.search(words) else "T1"
    if is_flair and not is_t1:
        return "FLAIR"
    return "T2" if is_t2 and not is_t1 else ""


def channels_in(text: str, names: Sequence[str], *, has_contrast: bool = False) -> list[str]:
    """Return the channels that a text, such as the name of a file, may mean; several if it does not say which.

    A channel of an MR sequence (T1, T1 with contrast agent, T2, FLAIR) is recognised by the usual synonyms, every other
    one by its own words.

    Args:
        text: name or description.
        names: names of the model's channels.
        has_contrast: whether a contrast agent was given; a T1 that does not state the opposite is then one with it.
    """
    words = _words(text)
    same = [name for name in names if _words(name) == words]
    if same:
        return same
    found = sequence_of(text)
    if found == "T1" and has_contrast and not _NO_CONTRAST.search(words):
        found = "T1c"
    sequences = [sequence_of(name) for name in names]
    channels = []
    for name, sequence in zip(names, sequences, strict=True):
        is_by_sequence = bool(sequence) and sequences.count(sequence) == 1
        is_meant = found == sequence if is_by_sequence else not name.isdigit() and f" {_words(name)} " in f" {words} "
        channels += [name] if is_meant else []
    return channels


def case_in(stem: str, channels: Sequence[str], names: Sequence[str]) -> str:
    """Return the name of the case in the name of a file, without its channel; "" if nothing else is in it.

    Args:
        stem: name of the file without its ending.
        channels: channels that the name may mean.
        names: names of the model's channels.
    """
    if numbered := NUMBERED.fullmatch(stem):
        return numbered["case"]
    if subject := _BIDS_CASE.match(stem):
        return subject[0]
    return _without_channel(stem, channels[0], names) if len(channels) == 1 else stem


def _without_channel(stem: str, channel: str, names: Sequence[str]) -> str:
    """Return the name of a file without the words that name its channel; "" if no word is left.

    Args:
        stem: name of the file without its ending.
        channel: the channel that the name means.
        names: names of the model's channels.
    """
    parts = re.split(r"([-_. ]+)", stem)
    words, separators = parts[::2], ["", *parts[1::2]]
    for length in range(1, len(words)):
        for start in range(len(words) - length, -1, -1):
            inner = "".join(s + w for s, w in zip(separators[start:], words[start : start + length], strict=False))
            rest = [*words[:start], *words[start + length :]]
            if channels_in(inner.strip("-_. "), names) == [channel] and not channels_in(" ".join(rest), names):
                links = [*separators[:start], *separators[start + length :]]
                return "".join(s + w for s, w in zip(links, rest, strict=True)).strip("-_. ")
    return ""


def words_of_case(case: str) -> frozenset[str]:
    """Return the words that tell a case from others, in lower case; a subject and session of BIDS count as one word."""
    if _BIDS_SUBJECT.match(case):
        return frozenset({case.casefold()})
    return frozenset(_words(case).split()) - _VIEWS


def assigned(given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return channel -> the given name that means it, in the order of the channels.

    A given name is that of the channel, upper and lower case and separators aside, a synonym of its MR sequence from a
    closed list, or its number. Nothing else is accepted; see `synonym_notices` for what to tell the user.

    Args:
        given: names that a user gave to images; a number counts channels from 0.
        names: names of the model's channels.

    Raises:
        InputError: `channels.unknown`, a name means no channel, or several; `channels.ambiguous`, two names mean the
            same; `channels.missing`.
    """
    listed = ", ".join(names)
    found: dict[str, str] = {}
    for one in given:
        meant = _meant(one, names)
        if len(meant) != 1:
            nearest = " or ".join(_nearest(one, names))
            hint = f" did you mean {nearest}?" if nearest else ""
            raise InputError("channels.unknown", f"found the channel {one!r};{hint} the model expects {listed}")
        if meant[0] in found:
            text = f"{found[meant[0]]!r} and {one!r} both mean the channel {meant[0]}; the model expects {listed}"
            raise InputError("channels.ambiguous", text)
        found[meant[0]] = one
    if missing := [name for name in names if name not in found]:
        text = f"no image for {', '.join(missing)}; the model expects {listed}"
        raise InputError("channels.missing", text)
    return {name: found[name] for name in names}


def synonym_notices(chosen: Mapping[str, str]) -> list[Notice]:
    """Return a notice for each given name that is not the channel's own, case and separators aside.

    Args:
        chosen: channel -> given name; see `assigned`.
    """
    others = {channel: given for channel, given in chosen.items() if _compact(given) != _compact(channel)}
    return [Notice("channels.synonym", f"{given} was taken for {channel}") for channel, given in others.items()]


def _meant(given: str, names: Sequence[str]) -> list[str]:
    """Return the channels that a name given by a user means; see `assigned`."""
    if given in names:
        return [given]
    if same := [name for name in names if _compact(name) == _compact(given)]:
        return same
    if given.isdecimal():
        return [names[int(given)]] if int(given) < len(names) else []
    return [name for name, others in _synonyms_of(names).items() if _compact(given) in others]


def _synonyms_of(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return channel -> its synonyms; none for channels of no MR sequence, or of the same one."""
    sequences = [sequence_of(name) for name in names]
    return {
        name: _SYNONYMS[sequence] if sequence and sequences.count(sequence) == 1 else ()
        for name, sequence in zip(names, sequences, strict=True)
    }


def _nearest(given: str, names: Sequence[str]) -> list[str]:
    """Return the channels whose name or synonym is most like an unknown name; empty if none is."""
    text = _compact(given)
    likeness = {
        name: max(SequenceMatcher(None, one, text).ratio() for one in (_compact(name), *others))
        for name, others in _synonyms_of(names).items()
    }
    best = max(likeness.values(), default=0.0)
    return [name for name, value in likeness.items() if value == best >= _MIN_LIKENESS]


def _compact(text: str) -> str:
    """Return a name in lower case without spaces, hyphens, underscores and other separators."""
    return re.sub(r"[\s\-_./]+", "", text.casefold())


def _words(text: str) -> str:
    """Return the words of a text in lower case, separated by single spaces, without BIDS's name of a subject."""
    return " ".join(re.sub(r"[^a-z0-9+*]+", " ", _BIDS_SUBJECT.sub(" ", text).casefold()).split())
