"""The model of the Segment tab, on a viewer model without a window."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from bundles import write_threshold_bundle
from labelled import found_in
from napari.components import ViewerModel
from napari.layers import Image, Labels

import napari_seg.bundles.read
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import BundleError, EnvironmentFault, Notice
from napari_seg.formats.image2d import read_image2d
from napari_seg.geometry import Grid
from napari_seg.inference.options import SegmentOptions
from napari_seg.plugin.autosave import Autosave, Unsaved
from napari_seg.plugin.edit.new_structure import add_structure
from napari_seg.plugin.job import NETWORK_WORKER
from napari_seg.plugin.labels_on_scan import on_scan
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, placement_of
from napari_seg.plugin.layers import image_layers, labels_layer, layer_of
from napari_seg.plugin.messages import Message
from napari_seg.plugin.placement import place
from napari_seg.plugin.planes.orientation import orientation_letters
from napari_seg.plugin.segment import run as segment_run
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.plugin.writer import write_labels
from napari_seg.volume import ConfidenceMaps, Segment, Segmentation, Volume

SEGMENTS = (Segment(1, "left ball", (255, 0, 0)), Segment(3, "nose", (0, 128, 255)), Segment(4, "tail", (9, 9, 9)))


def bundle(name: str = "balls") -> Bundle:
    return Bundle(
        root=Path("nowhere"),
        name=name,
        version="1",
        description="Finds balls.",
        modality="MR",
        in_channels=1,
        network_segments=SEGMENTS,
        segments=SEGMENTS,
        trusted=True,
    )


def thresholded(volume: Volume, bundle: Any, options: Any = None, *, progress: Any = None) -> Segmentation:
    """Stands in for `segment`: bright is 1, middle is 3, nothing is 4."""
    for window in range(5):
        progress("segmenting", window, 5)
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[volume.array[0] > 300] = 3
    labels[volume.array[0] > 800] = 1
    return Segmentation(labels, volume.grid, SEGMENTS, notices=(Notice("result.implausible", "tail: 0 ml"),))


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch, in_process: None) -> ViewerModel:
    monkeypatch.setattr(napari_seg.bundles.read, "find_bundles", lambda folders: ([bundle(), bundle("cubes")], []))
    monkeypatch.setattr(segment_run, "segment", thresholded)
    return ViewerModel()


def show(viewer: ViewerModel, volume: Volume) -> Image:
    (layer_tuple,) = image_layers(volume)
    layer = Image(layer_tuple[0], **layer_tuple[1])
    viewer.add_layer(layer)
    return layer


def test_new_labels_adopt_the_scan_they_are_drawn_on(viewer: ViewerModel, head: Volume, tmp_path: Path) -> None:
    model = SegmentModel(Session(viewer))
    show(viewer, head)
    viewer._new_labels()
    assert model.session.labels is viewer.layers[-1]
    layer = viewer.layers[-1]
    layer.data[3, 4, 5] = 2
    (path,) = write_labels(str(tmp_path / "mine.nii.gz"), *layer.as_layer_data_tuple()[:2])
    saved = nibabel.nifti1.load(path)
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_allclose(saved.affine, head.grid.affine, atol=1e-5)
    index = np.argwhere(np.asarray(saved.dataobj) == 2)
    assert len(index) == 1
    placement = placement_of(layer)
    np.testing.assert_allclose(
        placement.to_layer_mm(head.grid.to_world(index[0])), layer.data_to_world((3, 4, 5)), atol=1e-4
    )


def test_the_scan_follows_the_active_layer(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(Session(viewer))
    assert "Open a scan" in model.obstacle
    foreign = viewer.add_image(np.zeros((3, 4, 5)))
    assert "napari-seg" in model.obstacle
    first, second = show(viewer, head), show(viewer, replace(head, name="other"))
    assert model.session.scans == [first, second]
    assert model.session.scan is second
    viewer.layers.selection.active = first
    assert model.session.scan is first
    viewer.layers.selection.active = foreign
    assert model.session.scan is first
    assert model.obstacle == ""
    viewer.layers.remove(first)
    assert model.session.scan is second


def test_a_run_adds_one_new_named_and_coloured_layer(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(Session(viewer))
    image = show(viewer, head)
    for count in (1, 2):
        viewer.layers.selection.active = image
        model.start()
        model.session.jobs.wait()
        assert len(viewer.layers) == 1 + count
    assert [layer.name for layer in viewer.layers] == ["head", "head - balls", "head - balls [1]"]
    layer = viewer.layers[1]
    assert isinstance(layer, Labels)
    np.testing.assert_array_equal(layer.scale, image.scale)
    np.testing.assert_array_equal(layer.translate, image.translate)
    assert model.session.messages[0] == Message("warning", "tail: 0 ml (result.implausible)")


def test_labels_keep_the_doubt_about_left_and_right(viewer: ViewerModel, head: Volume, tmp_path: Path) -> None:
    """A scan without orientation; its labels are found, resampled, drawn, copied, and left alone."""
    doubtful = replace(head, notices=(Notice("geometry.no_orientation", "unknown"), Notice("other", "no matter")))
    session = Session(viewer)
    model, structures = SegmentModel(session), StructuresModel(session)
    scan = show(viewer, doubtful)
    model.start()
    session.jobs.wait()
    found = viewer.layers[-1]
    assert isinstance(found, Labels)
    moved = on_scan(Snapshot.of(layer_of(labels_layer(found_in(head), place(head.grid), "known"))), scan)  # type: ignore[arg-type]
    viewer.layers.remove(found)
    add_structure(session, structures, "liver")
    session.jobs.wait()
    drawn = viewer.layers[-1]
    assert isinstance(drawn, Labels)
    state_of(drawn).count_edit()
    autosave = Autosave(tmp_path)
    autosave.write_copies(autosave.due([drawn]))
    (restored,) = Unsaved(autosave.folder, ("x",), 0).read(None)
    viewer.layers.remove(scan)
    for layer in (found, moved, drawn, restored):
        assert not LayerInfo.require(layer).is_oriented, layer.name
        assert [notice.code for notice in LayerInfo.require(layer).notices] == ["geometry.no_orientation"]
    assert orientation_letters(viewer, viewer.layers) == ("", "", "", "")


def test_a_result_is_shown_in_the_frame_that_another_scan_has_set(viewer: ViewerModel, head: Volume) -> None:
    """The scan is closed during the run, and one that is tilted otherwise is opened."""
    model = SegmentModel(Session(viewer))
    scan = show(viewer, head)
    model.start()
    viewer.layers.remove(scan)
    upright = show(viewer, replace(head, grid=Grid(head.grid.shape, np.diag([1.5, 1.25, 2.5, 1]))))
    model.session.jobs.wait()
    found = viewer.layers[-1]
    assert isinstance(found, Labels)
    np.testing.assert_allclose(placement_of(found).frame, placement_of(upright).frame)
    point = head.grid.to_world(np.argwhere(head.array[0] > 800).mean(axis=0))
    index = found.world_to_data(placement_of(upright).to_layer_mm(point))
    assert found.data[tuple(np.rint(index).astype(int))] == 1


def test_stop_leaves_the_viewer_as_it_was(viewer: ViewerModel, head: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(volume: Volume, bundle: Any, options: Any = None, *, progress: Any) -> None:
        while True:
            progress("segmenting", 1, 5)

    monkeypatch.setattr(segment_run, "segment", endless)
    model = SegmentModel(Session(viewer))
    show(viewer, head)
    run = model.start()
    model.stop()
    assert model.run is None  # at once: what the network is busy with ends by itself
    model.session.jobs.wait()
    assert model.run is None
    assert run.segmentation is None
    assert len(viewer.layers) == 1
    assert model.session.messages == [Message("info", "Stopped. Nothing was added.")]
    assert model.obstacle == ""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BundleError("bundle.untrusted", "balls is not trusted"), "balls is not trusted (bundle.untrusted)"),
        (
            MemoryError("no room"),
            "There is too little memory for this. Close other scans or programs, then try again.",
        ),
        (KeyError("Jane^Doe"), "Unexpected error: KeyError. Details are in the log of napari."),
    ],
)
def test_a_run_that_fails_says_why(
    viewer: ViewerModel, head: Volume, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(segment_run, "segment", fail)
    model = SegmentModel(Session(viewer))
    show(viewer, head)
    model.start()
    model.session.jobs.wait()
    assert model.session.messages == [Message("error", text)]
    assert len(viewer.layers) == 1


def test_warnings_of_the_engine_are_reported_with_the_result(
    viewer: ViewerModel, head: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handing_over(volume: Volume, bundle: Any, *_: Any, **__: Any) -> Segmentation:
        for _ in range(2):
            logging.getLogger("napari_seg.inference.backends.base").warning(
                "cuda has too little memory; %s goes on", "cpu"
            )
        return thresholded(volume, bundle)

    monkeypatch.setattr(segment_run, "segment", handing_over)
    show(viewer, head)
    model = SegmentModel(Session(viewer))
    model.start()
    model.session.jobs.wait()
    texts = [message.text for message in model.session.messages if message.kind == "warning"]
    assert texts.count("cuda has too little memory; cpu goes on") == 1


def test_messages_do_not_outlive_what_they_are_about(
    viewer: ViewerModel, head: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise EnvironmentFault("environment.device", "this computer has no CUDA device; try --device cpu")

    monkeypatch.setattr(segment_run, "segment", fail)
    first, second = show(viewer, head), show(viewer, replace(head, name="second"))
    model = SegmentModel(session := Session(viewer))

    def texts_after_a_run() -> list[str]:
        model.start()
        model.session.jobs.wait()
        return [message.text for message in session.messages]

    (text,) = texts_after_a_run()
    assert text == "this computer has no CUDA device; try the device cpu in the Segment tab (environment.device)"
    viewer.layers.selection.active = first
    assert session.messages == []
    assert texts_after_a_run()
    model.choose_device("cpu")
    assert session.messages == []
    assert texts_after_a_run()
    viewer.layers.remove(first)
    assert session.messages == []
    model.start()
    viewer.layers.remove(second)  # meanwhile
    session.jobs.wait()
    assert session.messages[0].text.startswith("second: this computer")
    show(viewer, head)
    assert session.messages == []
    session.show_messages(Message("info", "3 done"), lasting=True)
    viewer.layers.clear()
    assert session.messages


def test_a_closed_panel_lets_go_of_the_viewer(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(Session(viewer))
    show(viewer, head)
    run = model.start()
    model.session.close()
    assert run.job is not None
    assert run.job.is_stopping
    assert model.session.scan is None  # the panel may be the last one to hold a scan
    show(viewer, head)
    assert model.session.scan is None  # and it no longer listens


def test_runs_wait_for_one_another(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(Session(viewer))
    show(viewer, head)
    first = model.start()
    model.choose_bundle(model.bundles[1])
    second = model.start()
    assert (model.run, model.waiting) == (first, [second])
    seen: list[Any] = []
    model.changed.connect(lambda: seen.append(model.run))
    model.session.jobs.wait()
    assert list(dict.fromkeys(seen)) == [first, second, None]
    assert [layer.name for layer in viewer.layers] == ["head", "head - balls", "head - cubes"]


def test_confidence_is_a_layer_of_its_own(viewer: ViewerModel, head: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    def confident(volume: Volume, bundle: Any, options: SegmentOptions, **rest: Any) -> Segmentation:
        found = thresholded(volume, bundle, options, **rest)
        assert options.confidence_maps
        confidence = np.arange(found.array.size, dtype=np.uint8).reshape(found.array.shape)
        return replace(found, confidence_maps=ConfidenceMaps(confidence, confidence))

    monkeypatch.setattr(segment_run, "segment", confident)
    model = SegmentModel(Session(viewer))
    image = show(viewer, head)
    model.choose_confidence(True)
    model.start()
    model.session.jobs.wait()
    assert [layer.name for layer in viewer.layers] == ["head", "head - balls, confidence", "head - balls"]
    layer = viewer.layers[1]
    assert not layer.visible
    np.testing.assert_array_equal(layer.translate, image.translate)
    assert model.session.labels is viewer.layers[2]
    info = LayerInfo.require(viewer.layers[2])
    assert info.model_confidence is not None  # for clicks, also if the layer of it is removed
    np.testing.assert_array_equal(placement_of(layer).show(info.model_confidence.unpack()), layer.data)


def test_a_model_that_does_not_fit_the_scan_is_not_run(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(Session(viewer))
    show(viewer, replace(head, modality="CT"))
    assert "the scan is CT" in model.obstacle


def test_a_foreign_bundle_is_read_shown_and_run_only_once_it_is_trusted(
    viewer: ViewerModel, head: Volume, tmp_path: Path
) -> None:
    model = SegmentModel(Session(viewer))
    show(viewer, head)
    foreign = read_bundle(write_threshold_bundle(tmp_path / "foreign"))
    model.bundles.append(foreign)
    model.choose_bundle(foreign)
    assert "Checking" in model.obstacle
    model.session.jobs.wait()
    assert "Trust" in model.obstacle
    assert dict(model.card)["Trust"].startswith("needs your consent")
    assert model.runnable_bundle is None
    model.trust(foreign, model.permission)
    model.session.jobs.wait()
    assert model.obstacle == ""
    assert dict(model.card)["Trust"] == "consent given"
    assert model.runnable_bundle is foreign

    (foreign.root / "scripts" / "nets.py").write_text("something_else = 1")
    model.choose_bundle(foreign)
    model.session.jobs.wait()
    assert "changed since you trusted it" in model.obstacle


def test_a_folder_that_is_no_bundle_is_refused(viewer: ViewerModel, tmp_path: Path) -> None:
    model = SegmentModel(Session(viewer))
    model.add_bundle(tmp_path)
    assert "bundle.unknown" in model.session.messages[0].text
    assert len(model.bundles) == 2


def test_the_card_of_the_shipped_bundle() -> None:
    model = SegmentModel(Session(ViewerModel()))
    card = dict(model.card)
    assert "anterior hippocampus" in card["Structures"]
    assert card["Input"].startswith("T1-weighted MRI, 1 mm")
    assert "CC-BY-SA" in card["Licence"]
    assert "0.884" in card["Accuracy"]


def test_a_run_is_estimated_before_it_starts(head: Volume, tmp_path: Path) -> None:
    viewer = ViewerModel()
    model = SegmentModel(Session(viewer))
    show(viewer, head)
    assert model.bundle is not None
    assert model.needs_estimate
    model.start_estimate()
    model.session.jobs.wait(120)
    text = model.estimate_text
    assert text.startswith("Estimate: ")
    assert "1 window" in text


def test_an_estimate_does_not_keep_a_removed_scan(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(Session(viewer))
    layer = show(viewer, head)
    key = model._estimate_key
    assert key == model._estimate_key
    assert layer not in gc.get_referents(key)


def brats(name: str = "brats") -> Bundle:
    return replace(bundle(name), in_channels=4, channel_names=("T1c", "T1", "T2", "FLAIR"))


def test_a_model_with_channels_takes_them_from_layers(
    viewer: ViewerModel, head: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Volume] = []

    def first(volume: Volume, *args: Any, **options: Any) -> Segmentation:
        given.append(volume)
        return thresholded(volume, *args, **options)

    monkeypatch.setattr(segment_run, "segment", first)
    model = SegmentModel(Session(viewer))
    model.choose_bundle(brats())
    assert "Open a scan" in model.obstacle
    t1 = show(viewer, replace(head, name="T1w"))
    show(viewer, replace(head, name="sub-01_FLAIR", array=head.array + 1))
    show(viewer, replace(head, name="post gadolinium T1", array=head.array + 2))
    assert "Open and choose T2." in model.obstacle
    unnamed = show(viewer, replace(head, name="series 7", array=head.array + 3, grid=head.grid.mirrored()))
    assert "Open and choose T2." in model.obstacle  # nothing is guessed
    model.choose_channel("T2", unnamed)
    assert model.obstacle == ""
    names = {name: layer and layer.name for name, layer in model.channels.items()}
    assert names == {"T1c": "post gadolinium T1", "T1": "T1w", "T2": "series 7", "FLAIR": "sub-01 FLAIR"}
    model.start()
    model.session.jobs.wait()
    (volume,) = given
    assert volume.channel_names == ("T1c", "T1", "T2", "FLAIR")
    for channel, array in enumerate((head.array + 2, head.array, head.array[:, ::-1] + 3, head.array + 1)):
        np.testing.assert_array_equal(volume.array[channel], array[0])
    assert viewer.layers[-1].name == "post gadolinium T1 - brats"
    viewer.layers.remove(unnamed)
    assert "Open and choose T2." in model.obstacle
    model.choose_channel("T2", t1)
    assert model.obstacle == ""
    model.choose_bundle(replace(brats(), modality="CT"))
    viewer.layers.clear()
    assert "Open a scan" in model.obstacle


def test_a_scan_with_all_channels_needs_no_choice(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(Session(viewer))
    model.choose_bundle(brats())
    volume = replace(head, array=np.concatenate([head.array] * 4), channel_names=("T1c", "T1", "T2", "FLAIR"))
    for data, settings, _ in image_layers(volume):
        viewer.add_layer(Image(data, **settings))
    assert [layer.name for layer in viewer.layers] == ["head T1c", "head T1", "head T2", "head FLAIR"]
    assert model.channels == {}
    assert model.obstacle == ""


def test_channels_of_another_modality_are_refused(viewer: ViewerModel, head: Volume) -> None:
    model = SegmentModel(Session(viewer))
    model.choose_bundle(replace(brats(), modality="CT"))
    for name in ("t1ce", "t1", "t2", "flair"):
        show(viewer, replace(head, name=name, modality="MR"))
    assert "was trained on CT" in model.obstacle


def test_two_foreign_bundles_with_modules_of_the_same_names_take_turns(head: Volume, tmp_path: Path) -> None:
    """In the worker process of the plugin, one after the other and again; both import a module late."""
    NETWORK_WORKER.close()  # one of an earlier test has the store of that test
    viewer = ViewerModel()
    session = Session(viewer)
    model = SegmentModel(session)
    image = show(viewer, head)
    levels = {"low": 100.0, "high": 700.0}
    for name, level in levels.items():
        spacing = tuple(float(size) for size in head.grid.spacing_mm)
        root = write_threshold_bundle(tmp_path / name, spacing=spacing)
        nets = root / "scripts" / "nets.py"
        late = "    def forward(self, image):\n        from scripts.level import LEVEL\n"
        text = nets.read_text().replace("    def forward(self, image):\n", late).replace("- 100.0", "- LEVEL")
        nets.write_text(text)
        (root / "scripts" / "level.py").write_text(f"LEVEL = {level}\n")
        bundle = read_bundle(root)
        model.bundles.append(bundle)
        model.choose_bundle(bundle)
        session.jobs.wait()
        assert model.runnable_bundle is None
        model.trust(bundle, model.permission)
        session.jobs.wait()
    expected = {name: head.array[0] > level for name, level in levels.items()}
    for name in ("low", "high", "low", "high"):
        viewer.layers.selection.active = image
        model.choose_bundle(next(one for one in model.bundles if one.root.name == name))
        session.jobs.wait()
        run = model.start()
        session.jobs.wait(180)
        assert run.segmentation is not None, session.messages
        found = run.segmentation.array == 1
        assert 0 < expected[name].sum() < found.size
        assert (found == expected[name]).mean() > 0.999


def test_2d_images_fit_models_of_grey_and_colours(viewer: ViewerModel, tmp_path: Path) -> None:
    PIL.Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(tmp_path / "tissue.png")
    model = SegmentModel(Session(viewer))
    for data, settings, _ in image_layers(read_image2d(tmp_path / "tissue.png", None)):
        viewer.add_layer(Image(data, **settings))
    for channels in (1, 3):
        model.choose_bundle(replace(bundle(), in_channels=channels, takes_one_slice=True))
        assert model.obstacle == ""
    model.choose_bundle(replace(bundle(), in_channels=3))
    assert "segments volumes" in model.obstacle
    model.choose_bundle(brats())
    assert "expects 4" in model.obstacle


def test_structures_are_chosen_for_each_model_and_remembered(
    viewer: ViewerModel, head: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(bundle("cubes"), root=Path("elsewhere"))
    monkeypatch.setattr(napari_seg.bundles.read, "find_bundles", lambda folders: ([bundle(), other], []))
    model = SegmentModel(Session(viewer))
    assert model.offers_structures
    assert model.structures == ()
    model.choose_structures(("nose",))
    assert model.run_options.structures == ("nose",)
    assert ("Structures", "nose") in model.card
    model.choose_bundle(other)
    assert model.run_options.structures == ()
    again = SegmentModel(Session(viewer))
    assert again.structures == ("nose",)


def test_only_models_with_a_program_of_their_own_match_it(viewer: ViewerModel) -> None:
    model = SegmentModel(Session(viewer))
    model.choose_match("exact")
    assert not model.offers_match
    assert model.run_options.match == "auto"
    model.choose_bundle(replace(bundle(), kind="nnunet"))
    assert model.offers_match
    assert model.run_options.match == "exact"
