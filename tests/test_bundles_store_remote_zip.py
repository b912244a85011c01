"""The licence in a zip on the web is read without its weights."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from web import Web

from napari_seg.bundles.store.remote_zip import BLOCK_BYTES, licence_in_zip

APACHE = "Apache License\nVersion 2.0\n" + "\n" * 10_000
WEIGHTS = np.random.default_rng(0).bytes(5_000_000)


def served(web: Web, files: dict[str, bytes | str]) -> str:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    web.files["/a.zip"] = content.getvalue()
    return f"{web.url}/a.zip"


@pytest.mark.parametrize("folder", ["", "spleen/"])
@pytest.mark.parametrize("is_first", [True, False])
def test_the_licence_is_read_without_the_weights(web: Web, folder: str, is_first: bool) -> None:
    licence = {f"{folder}LICENSE": APACHE, f"{folder}docs/data_license.txt": "CC BY-SA"}
    others = {
        f"{folder}models/model.pt": WEIGHTS,
        f"{folder}configs/metadata.json": "{}",
        "other/LICENSE": "MIT License",
    }
    if not folder:
        others.pop("other/LICENSE")
    address = served(web, licence | others if is_first else others | licence)
    found = licence_in_zip(address, "spleen")
    assert found is not None
    assert (found.model, found.name, found.kind) == ("spleen", "Apache-2.0", "open")
    assert "CC BY-SA" in found.text
    assert sum(sent for _, _, sent in web.requests) <= 4 * BLOCK_BYTES


def test_none_is_found_where_parts_or_licences_are_missing(web: Web) -> None:
    address = served(web, {"configs/metadata.json": "{}", "models/model.pt": WEIGHTS})
    assert licence_in_zip(address, "spleen") is None
    web.ranges = False
    assert licence_in_zip(served(web, {"LICENSE": APACHE, "configs/metadata.json": "{}"}), "spleen") is None
    web.ranges = True
    for content in (b"", b"PK", b"x" * 100_000, web.files["/a.zip"][:-30], b"PK\x05\x06" + b"\xff" * 18):
        web.files["/a.zip"] = content
        if content:
            assert licence_in_zip(address, "spleen") is None


def test_a_licence_that_unpacks_to_gigabytes_is_cut(web: Web) -> None:
    address = served(web, {"configs/metadata.json": "{}", "LICENSE": APACHE + "x" * 50_000_000})
    found = licence_in_zip(address, "spleen")
    assert found is not None
    assert len(found.text) < 300_000
