"""Interactive networks: what is refused, and what nnInteractive's client is given."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from napari_seg.editing.interactive_network import NnInteractive, refine_with
from napari_seg.editing.prompts import Prompts
from napari_seg.errors import EnvironmentFault, InputError

SERVER = "http://127.0.0.1:1527"


class FakeSession:
    """The client's session, which answers with a ball of two voxels around each positive point."""

    supports_initial_label = True
    license = "CC BY-NC-SA 4.0"
    fails = False

    def __init__(self, server_url: str, api_key: str | None = None) -> None:
        self.supported_interactions = {"points": True, "scribble": True, "bbox2d": True, "bbox3d": False}
        self.calls: list[tuple[str, Any, Any]] = [("connect", server_url, api_key)]
        self.points: list[tuple[list[int], bool]] = []

    def set_image(self, image: np.ndarray) -> None:
        assert image.ndim == 4
        self.calls.append(("image", image.shape, None))

    def set_target_buffer(self, buffer: np.ndarray) -> None:
        self.buffer = buffer

    def reset_interactions(self) -> None:
        self.points = []
        self.buffer.fill(0)

    def add_initial_seg_interaction(self, initial_seg: np.ndarray, run_prediction: bool = False) -> None:
        self.calls.append(("initial", int(initial_seg.sum()), run_prediction))
        self.buffer[:] = initial_seg

    def add_point_interaction(self, place: list[int], include_interaction: bool, run_prediction: bool = True) -> None:
        if self.fails:
            raise ConnectionError("secret text of the server")
        self.calls.append(("point", tuple(place), include_interaction))
        self.points.append((place, include_interaction))
        if run_prediction:
            self.calls.append(("predict", None, None))
            for (i, j, k), is_positive in self.points:
                self.buffer[i - 2 : i + 3, j - 2 : j + 3, k - 2 : k + 3] |= is_positive

    def add_scribble_interaction(
        self, mask: np.ndarray, include_interaction: bool, run_prediction: bool = True
    ) -> None:
        self.calls.append(("scribble", int(mask.sum()), include_interaction))

    def add_bbox_interaction(self, box: list, include_interaction: bool, run_prediction: bool = True) -> None:
        self.calls.append(("box", box, include_interaction))

    def close(self) -> None:
        self.calls.append(("close", None, None))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    names = ("nnInteractive", "nnInteractive.inference", "nnInteractive.inference.remote")
    for name in names:
        module = ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec(name, None, is_package=True)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules[names[-1]].nnInteractiveRemoteInferenceSession = FakeSession  # type: ignore[attr-defined]
    return FakeSession


def test_without_the_client_the_message_says_what_to_install() -> None:
    if NnInteractive.is_available():
        pytest.skip("the client is installed")
    with pytest.raises(EnvironmentFault, match=r"edit\.backend_missing.*pip install nninteractive-client"):
        NnInteractive(SERVER, licence_accepted=True)


@pytest.mark.parametrize("is_broken", [True, False])
def test_asking_for_the_client_does_not_load_it(
    is_broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "nnInteractive"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libcudart is missing')" if is_broken else "")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nnInteractive", raising=False)
    assert NnInteractive.is_available()
    assert "nnInteractive" not in sys.modules
    code = r"edit\.backend_failed.*OSError" if is_broken else r"edit\.backend_missing.*pip install"
    with pytest.raises(EnvironmentFault, match=code):
        NnInteractive(SERVER, licence_accepted=True)
    sys.modules.pop("nnInteractive", None)


def test_a_package_without_a_spec_is_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nnInteractive", ModuleType("nnInteractive"))
    assert not NnInteractive.is_available()


def test_the_licence_is_known_before_and_needed_for_the_first_use(client: type[FakeSession]) -> None:
    assert NnInteractive.is_available()
    assert NnInteractive.licence.name == "CC BY-NC-SA 4.0"
    assert "non-commercial" in NnInteractive.licence.summary
    with pytest.raises(InputError, match=r"edit\.backend_licence.*CC BY-NC-SA 4\.0"):
        NnInteractive(SERVER, licence_accepted=False)


@pytest.mark.parametrize("address", ["", "gpu-box", "file:///etc/passwd", "http://", "http://gpu-box:1527"])
def test_without_the_address_of_a_server_nothing_is_connected(client: type[FakeSession], address: str) -> None:
    with pytest.raises(InputError, match=r"edit\.backend_address"):
        NnInteractive(address, licence_accepted=True)


@pytest.mark.parametrize("address", ["https://gpu-box", "http://localhost:1527", "http://[::1]:1527"])
def test_a_scan_goes_only_over_an_encrypted_connection_or_within_this_machine(
    client: type[FakeSession], address: str
) -> None:
    NnInteractive(address, licence_accepted=True)
    NnInteractive("http://gpu-box:1527", licence_accepted=True, unencrypted=True)


def test_a_change_by_a_network_holds_only_the_box_of_the_structure(client: type[FakeSession]) -> None:
    network = NnInteractive(SERVER, licence_accepted=True)
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[30, 30, 30] = 1
    change = refine_with(network, labels, 1, np.zeros(labels.shape), Prompts([(10, 10, 10)], [(20, 3, 8)]))
    assert change.box == (slice(8, 31), slice(8, 31), slice(8, 31))


def test_the_image_is_sent_once_and_all_prompts_every_time(client: type[FakeSession]) -> None:
    network = NnInteractive(SERVER, licence_accepted=True)
    image, labels = np.zeros((12, 14, 10), np.int16), np.zeros((12, 14, 10), np.uint8)
    labels[0, 0, 0:2] = 7
    labels[5, 5, 5] = 2  # another structure is in the way
    change = refine_with(network, labels, 7, image, Prompts([(4, 5, 4)], [(4, 6, 4)]))
    change = refine_with(network, labels, 7, image, Prompts([(4, 5, 4)], [(4, 6, 4)]))
    calls = network._session.calls
    assert [name for name, _, _ in calls] == ["connect", "image", *(["initial", "point", "point", "predict"] * 2)]
    assert ("initial", 2, False) in calls
    assert ("image", (1, 12, 14, 10), None) in calls
    change.apply(labels)
    assert labels[4, 5, 4] == 7
    assert labels[4, 6, 4] == 0
    assert labels[5, 5, 5] == 2
    assert (labels == 7).sum() == 2 + 125 - 2
    assert network.server_licence == "CC BY-NC-SA 4.0"
    network.close()
    assert calls[-1][0] == "close"


def test_painted_voxels_become_a_scribble_and_a_box_a_rectangle_in_its_middle_slice(client: type[FakeSession]) -> None:
    network = NnInteractive(SERVER, licence_accepted=True)
    image = np.zeros((12, 14, 10), np.float32)
    network.set_image(image)
    box = (slice(1, 9), slice(2, 9), slice(3, 8))
    prompts = Prompts([(2, 3, 4), (2, 4, 5), (2, 5, 5), (8, 8, 7)], [(0, 0, 0)], box)
    network.find(prompts, np.zeros(image.shape, bool))
    assert network._session.calls[2:] == [
        ("box", [[1, 9], [2, 9], [5, 6]], True),
        ("point", (0, 0, 0), False),
        ("point", (8, 8, 7), True),
        ("scribble", 3, True),
    ]


def test_a_failing_server_is_one_error_without_its_text(
    client: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = NnInteractive(SERVER, licence_accepted=True)
    monkeypatch.setattr(client, "fails", True)
    with pytest.raises(EnvironmentFault, match=r"edit\.backend_failed.*ConnectionError") as caught:
        refine_with(network, np.zeros((9, 9, 9), np.uint8), 1, np.zeros((9, 9, 9)), Prompts([(4, 4, 4)]))
    assert "secret" not in str(caught.value)
