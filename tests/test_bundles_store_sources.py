"""What a user types is understood, or refused with what is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_seg.bundles.store.sources import Source, parse_source
from napari_seg.errors import StoreError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:MONAI/spleen_ct_segmentation", Source("hf", "MONAI/spleen_ct_segmentation", "spleen_ct_segmentation")),
        ("hf:MONAI/spleen@0.5.9", Source("hf", "MONAI/spleen", "spleen", "0.5.9")),
        ("hf:MONAI/spleen@refs/pr/3", Source("hf", "MONAI/spleen", "spleen", "refs/pr/3")),
        ("https://huggingface.co/MONAI/spleen", Source("hf", "MONAI/spleen", "spleen")),
        ("https://huggingface.co/MONAI/spleen/tree/main", Source("hf", "MONAI/spleen", "spleen", "main")),
        ("ngc:spleen", Source("ngc", "spleen", "spleen")),
        ("ngc:spleen@0.5.9", Source("ngc", "spleen", "spleen", "0.5.9")),
        ("https://a.org/x/liver_v1.2.zip?a=b", Source("url", "https://a.org/x/liver_v1.2.zip?a=b", "liver")),
        ("https://a.org/files/liver%20ct.ZIP", Source("url", "https://a.org/files/liver%20ct.ZIP", "liver_ct")),
        ("Spleen_CT_segmentation", Source("hf", "MONAI/spleen_ct_segmentation", "spleen_ct_segmentation")),
    ],
)
def test_sources_are_understood(text: str, expected: Source) -> None:
    assert parse_source(text) == expected


def test_a_folder_goes_before_a_model_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spleen_ct_segmentation").mkdir()
    monkeypatch.chdir(tmp_path)
    source = parse_source("spleen_ct_segmentation")
    assert (source.kind, source.place) == ("folder", str(tmp_path / "spleen_ct_segmentation"))


@pytest.mark.parametrize("text", ["", "hf:", "hf:a", "hf:a/b/c", "ngc:", "ngc:a/b", "ftp://a/b.zip", "no-such-model"])
def test_other_words_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError) as caught:
        parse_source(text or "nothing")
    assert caught.value.code == "store.source"


def test_files_and_folders_that_are_no_source_are_named(tmp_path: Path) -> None:
    for name, content in (("text.zip", b"text"), ("empty.zip", b""), ("notes.txt", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError, match=rf"{name}' is no zip archive; expected") as caught:
            parse_source(str(tmp_path / name))
        assert caught.value.code == "store.source"
    for source in (str(tmp_path / "none"), tmp_path / "none.zip", "none.zip", "no/such/folder"):
        with pytest.raises(StoreError, match=r"none.*' does not exist|folder' does not exist") as caught:
            parse_source(source)
        assert caught.value.code == "store.source"
    for source in ("no-such-model", "hf:a/b/c"):
        with pytest.raises(StoreError, match="found nothing to install"):
            parse_source(source)


def test_what_can_not_be_used_is_not_downloaded() -> None:
    with pytest.raises(StoreError, match="clicks") as caught:
        parse_source("vista3d")
    assert caught.value.code == "store.refused"
    assert parse_source("hf:MONAI/vista3d").name == "vista3d"


def test_secrets_of_an_address_are_not_shown() -> None:
    assert str(parse_source("https://me:secret@a.org/liver.zip?token=secret")) == "https://a.org/liver.zip"
    assert str(parse_source("hf:MONAI/spleen@0.5.9")) == "hf:MONAI/spleen@0.5.9"
