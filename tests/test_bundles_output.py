"""Labels of a network's output, and the channels that name them."""

from __future__ import annotations

from napari_seg.bundles.output import Channel, LabelStep, Output, independent_channels


def test_labels_keep_the_channels_that_name_them() -> None:
    rule = (Channel(1, 0.5, 2), Channel(0, 0.5, 1), Channel(2, 0.5, 4))
    output = Output(activation="sigmoid", decision="thresholds", channels=rule)
    assert output.channels_of_labels(3) == {1: 0, 2: 1, 4: 2}
    assert output.class_labels == {1: 2, 2: 1, 3: 4}
    step = LabelStep("MapLabelValue", (("orig_labels", (1, 2)), ("target_labels", (5, 0))), "scan")
    assert Output(steps=(step,)).channels_of_labels(4) == {3: 3, 5: 1}
    assert Output().channels_of_labels(3) == {1: 1, 2: 2}


def test_independent_channels_are_above_their_thresholds() -> None:
    (first, second) = independent_channels((0.25, 0.75), "sigmoid")
    assert (first.number, first.label, second.label) == (0, 1, 2)
    assert 0.25 < first.threshold < 0.2501
    assert 0 < independent_channels((0.5,), "none")[0].threshold < 1e-30
