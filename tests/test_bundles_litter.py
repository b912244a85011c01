"""Files of the Finder and of Explorer are known by name and content together."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from napari_seg.bundles.content import consent_hash, content_hash
from napari_seg.bundles.digest import model_digest
from napari_seg.bundles.litter import is_litter
from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.bundles.store.folders import digests_of

FINDER = b"\0\0\0\1Bud1\0\0\x10\0"
SETTINGS = "[.ShellClassInfo]\r\nIconResource=C:\\Windows\\System32\\shell32.dll,3\r\n[ViewState]\r\nMode=\r\nVid=\r\n"
LITTER = {
    ".DS_Store": FINDER,
    "._unet.py": b"\0\5\x16\7\0\2\0\0Mac OS X        ",
    "Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(8),
    "desktop.ini": SETTINGS.encode(),
    "Desktop.ini": f"\r\n{SETTINGS}".encode("utf-16"),
}
"""Name and content of files that file managers leave."""


@pytest.mark.parametrize("name", LITTER)
def test_a_folder_that_somebody_looked_into_holds_the_same_model(name: str, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    for folder in ("configs", "models", "segnets"):
        shutil.copytree(shipped_root() / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    bundle = read_bundle(root)
    before = [compute(bundle) for compute in (content_hash, consent_hash, model_digest)], digests_of(root)
    for place in (root, root / "segnets"):
        (place / name).write_bytes(LITTER[name])
    assert ([compute(bundle) for compute in (content_hash, consent_hash, model_digest)], digests_of(root)) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".DS_Store", b"\x80\4." + FINDER),
        ("._unet.py", b"print(1)"),
        ("thumbs.db.py", LITTER["Thumbs.db"]),
        ("unet.py", FINDER),
        ("desktop.ini", b"[ViewState]\na=__import__('os')\n"),
        ("desktop.ini", SETTINGS.encode() + b"[loggers]\nkeys=root\n"),
        ("desktop.ini", SETTINGS.encode() + b"print(1)\n"),
        ("desktop.ini", SETTINGS.encode() + b"a=" + b"b" * 4096),
        ("desktop.ini", b""),
    ],
)
def test_what_only_has_the_name_or_the_content_is_no_litter(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert not is_litter(tmp_path / name)


def test_an_archive_that_begins_as_a_file_of_the_finder_counts(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    for folder in ("configs", "models"):
        shutil.copytree(shipped_root() / folder, root / folder)
    before = consent_hash(read_bundle(root))
    with tarfile.open(root / ".DS_Store", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x"))
    block = bytearray((root / ".DS_Store").read_bytes())
    block[:8] = FINDER[:8]
    total = sum(block[:148]) + sum(b" " * 8) + sum(block[156:512])
    block[148:156] = b"%06o\0 " % total
    (root / ".DS_Store").write_bytes(block)
    assert is_litter(root / ".DS_Store")
    assert consent_hash(read_bundle(root)) != before
