"""Pictures as scans: in grey or in colours, and not where they lie among scans."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import phantoms
import pytest
from bundles import write_threshold_bundle
from PIL import Image
from test_formats_fuzz import damaged

from napari_seg.cli.main import main
from napari_seg.errors import ChoiceNeeded, EnvironmentFault, InputError
from napari_seg.formats.find import find, find_scans
from napari_seg.formats.image2d import count_pages, in_colours, read_image2d, read_label_image2d, stated_size
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.scan import Scan
from napari_seg.formats.verdict import verdicts
from napari_seg.memory import limited_to
from napari_seg.volume import Volume

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOURS = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


@pytest.mark.parametrize(
    ("name", "stored", "channels", "dtype"),
    [
        ("grey.png", Image.fromarray(GREY), 1, "uint8"),
        ("grey.tif", Image.fromarray(GREY.astype(np.uint16) * 200), 1, "uint16"),
        ("grey_in_colours.png", Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)), 1, "uint8"),
        ("grey_alpha.png", Image.fromarray(np.stack([GREY, GREY[::-1]], axis=-1), "LA"), 1, "uint8"),
        ("colours.bmp", Image.fromarray(COLOURS), 3, "uint8"),
        ("colours_alpha.png", Image.fromarray(np.dstack([COLOURS, GREY])), 3, "uint8"),
    ],
)
def test_a_picture_has_the_channels_that_are_wanted(
    tmp_path: Path, name: str, stored: Image.Image, channels: int, dtype: str
) -> None:
    stored.save(tmp_path / name)
    (scan,) = find_scans(tmp_path)
    assert (scan.name, scan.format) == (Path(name).stem, "image2d")
    own, grey, colours = scan.read(), scan.read(channels=1), scan.read(channels=3)
    assert own.array.shape == (channels, 4, 3, 1)
    assert str(own.array.dtype) == dtype
    assert (len(grey.array), len(colours.array)) == (1, 3)
    if channels == 1:
        assert np.array_equal(own.array, grey.array)
        assert np.array_equal(np.repeat(own.array, 3, axis=0), colours.array)
        assert np.array_equal(own.array[0, :, :, 0].T // (200 if dtype == "uint16" else 1), GREY)
    else:
        assert np.array_equal(own.array[..., 0].transpose(2, 1, 0), COLOURS)


def test_transparency_is_dropped_with_a_notice(tmp_path: Path) -> None:
    opaque = np.full_like(GREY, 255)
    palette = Image.fromarray(COLOURS).quantize(4)
    palette.info["transparency"] = 0
    for stored, codes in (
        (Image.fromarray(np.dstack([COLOURS, opaque])), []),
        (Image.fromarray(np.dstack([COLOURS, GREY])), ["data.alpha"]),
        (Image.fromarray(np.stack([GREY, GREY], axis=-1), "LA"), ["data.alpha"]),
        (palette, ["data.alpha"]),
    ):
        stored.save(tmp_path / "a.png", transparency=stored.info.get("transparency"))
        for channels in (1, 3, None):
            assert [notice.code for notice in read_image2d(tmp_path / "a.png", channels).notices] == codes


def test_an_image_is_converted_to_the_channels_of_a_model(tmp_path: Path, head: Volume) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    Image.fromarray(GREY.astype(np.uint16) * 200).save(tmp_path / "b.png")
    for name, own in (("a.png", 3), ("b.png", 1)):
        found = read_image2d(tmp_path / name, None)
        assert len(found.array) == own
        for channels in (1, 3):
            converted = in_colours(found, channels)
            np.testing.assert_array_equal(converted.array, read_image2d(tmp_path / name, channels).array)
        assert in_colours(found, 4) is found
    assert in_colours(head, 3) is head


def test_among_scans_a_picture_is_a_screenshot(tmp_path: Path, head: Volume) -> None:
    phantoms.write_nifti(head, tmp_path / "head.nii.gz")
    Image.fromarray(GREY).save(tmp_path / "shot.png")
    found = find(tmp_path)
    assert [scan.name for scan in found.scans] == ["head"]
    assert [skipped.code for skipped in found.skipped] == ["skip.picture"]
    assert [scan.name for scan in find_scans(tmp_path / "shot.png")] == ["shot"]


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    (verdict,) = verdicts(tmp_path)
    assert (verdict.verdict, verdict.code) == ("refuse", "file.not_picture")
    assert str(tmp_path) not in verdict.message


def test_a_picture_with_values_that_are_no_numbers_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.where(GREY > 100, np.nan, 1.0).astype(np.float32)).save(tmp_path / "a.tif")
    assert [verdict.code for verdict in verdicts(tmp_path)] == ["data.nonfinite"]


@pytest.mark.usefixtures("inline_cohorts")
def test_results_of_pictures_are_not_segmented_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "tissue.jpg")
    bundle = write_threshold_bundle(tmp_path / "bundle", roi=(8, 8, 1))
    for _ in range(2):
        words = ["predict", tmp_path / "tissue.jpg", "-o", tmp_path, "--bundle", bundle, "--trust-bundle", "--json"]
        assert main([str(word) for word in words]) == 0
        (result,) = json.loads(capsys.readouterr().out)
        assert (result["name"], result["status"]) == ("tissue", "done")
    words = ["predict", tmp_path, "-o", tmp_path / "out", "--bundle", bundle, "--trust-bundle", "--json"]
    main([str(word) for word in words])
    assert [result["name"] for result in json.loads(capsys.readouterr().out)] == ["tissue"]


def test_masks_of_single_bits_hold_0_and_1(tmp_path: Path) -> None:
    mask = np.zeros((6, 5), bool)
    mask[1:4, 2:5] = True
    for name in ("mask.png", "mask.tif", "mask.bmp"):
        Image.fromarray(mask).save(tmp_path / name)
        assert Image.open(tmp_path / name).mode in ("1", "P")
        assert np.array_equal(read_label_map(tmp_path / name).array[..., 0].T, mask.astype(np.uint8)), name
    assert read_image2d(tmp_path / "mask.png").array.max() == 255


@pytest.mark.parametrize("seed", range(3))
def test_damaged_label_maps_are_refused(tmp_path: Path, seed: int) -> None:
    """Files of every kind of 2D image, some of which made Pillow raise errors of kinds that nobody foresaw."""
    mask = np.zeros((60, 50), np.uint8)
    mask[1:40, 2:5] = 3
    random = np.random.default_rng(seed)
    for name, options in (("x.tif", {}), ("y.tif", {"compression": "tiff_lzw"}), ("x.png", {}), ("x.bmp", {})):
        path = tmp_path / name
        Image.fromarray(mask).save(path, **options)
        content = path.read_bytes()
        for _ in range(60):
            path.write_bytes(damaged(content, len(content), random))
            with warnings.catch_warnings(), suppress(InputError):
                warnings.simplefilter("ignore")
                read_label_image2d(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_and_its_mask_are_turned_as_exif_says(tmp_path: Path, orientation: int) -> None:
    upright = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: GREY[::-1].T,
        7: GREY[::-1, ::-1].T,
        8: GREY[:, ::-1].T,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.stack([GREY] * 3, axis=-1)).save(tmp_path / "b.tif", exif=exif)
    for scan in find_scans(tmp_path):
        assert np.array_equal(scan.read().array[0, :, :, 0].T, upright)
    assert np.array_equal(read_label_image2d(tmp_path / "a.png").array[0, :, :, 0].T, upright)
    Image.fromarray(GREY).save(tmp_path / "c.tif", exif=exif)
    assert np.array_equal(read_label_image2d(tmp_path / "c.tif").array[0, :, :, 0].T, upright)


def test_a_gif_of_grey_values_has_these_as_labels(tmp_path: Path) -> None:
    values = np.array([[0, 0], [200, 100]], np.uint8)
    Image.fromarray(values).save(tmp_path / "grey.gif")
    Image.fromarray(values[:, :1]).save(tmp_path / "fewer.gif")  # its writer numbers 200 as the other one's 100
    assert read_label_image2d(tmp_path / "grey.gif").array[0, ..., 0].T.tolist() == values.tolist()
    assert np.unique(read_label_image2d(tmp_path / "fewer.gif").array).tolist() == [0, 200]


def test_one_page_of_several_is_read(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 5), 50 * n, np.uint8)) for n in range(3)]
    for name in ("a.tif", "a.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        assert count_pages(tmp_path / name) == 3
        assert [int(read_image2d(tmp_path / name, 1, page=n).array.max()) for n in range(3)] == [0, 50, 100]
        assert int(read_label_image2d(tmp_path / name, page=2).array.max()) in (2, 100)  # of a palette: the index
        for page in (None, 3):
            with pytest.raises(InputError) as caught:
                read_image2d(tmp_path / name, page=page)
            assert caught.value.code == "file.pages"
        scan = Scan("a", "image2d", (tmp_path / name,))
        assert int(scan.read(1, channels=1).array.max()) == 50
        with pytest.raises(ChoiceNeeded) as choice:
            scan.read(channels=1)
        assert (choice.value.option, choice.value.count) == ("volume", 3)
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError):
        count_pages(tmp_path / "b.gif")


def test_large_images_are_limited_by_the_memory_alone(tmp_path: Path) -> None:
    path = tmp_path / "stitched.png"
    Image.new("1", (15_000, 13_000)).save(path)
    before = Image.MAX_IMAGE_PIXELS
    assert stated_size(path) == (15_000, 13_000)
    with limited_to(10_000_000), pytest.raises(EnvironmentFault, match=r"environment\.memory"):
        read_image2d(path)
    assert before == Image.MAX_IMAGE_PIXELS
