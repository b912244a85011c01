"""Interactive networks as an alternative to `refine`: the protocol, and nnInteractive on a server of the user's.

Nothing is installed, loaded or connected here by itself. A user installs the client of a network, reads and accepts the
licence of its weights, and gives the address of a server. The scan is sent to that server.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Change, box_of, change_structure, whole
from napari_seg.editing.prompts import Prompts
from napari_seg.errors import EnvironmentFault, InputError, one_line


@dataclass(frozen=True)
class NetworkLicence:
    """Licence of a network's weights, to be shown before the first use.

    Attributes:
        name: short name, such as "CC BY-NC-SA 4.0".
        url: where its text is.
        summary: what it allows, in one sentence.
    """

    name: str
    url: str
    summary: str


class InteractiveNetwork(Protocol):
    """A network that segments one structure from prompts."""

    @property
    def name(self) -> str:
        """Name that a user knows."""

    @property
    def licence(self) -> NetworkLicence:
        """Licence of the weights."""

    @property
    def server_licence(self) -> str:
        """Licence of the weights that the server has loaded, as it states it; "" if it states none."""

    def set_image(self, image: NDArray) -> None:
        """Take the intensities (I, J, K) of a scan; an array that was taken last is not sent again."""

    def find(self, prompts: Prompts, structure: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the structure (I, J, K).

        Args:
            prompts: all prompts so far.
            structure: (I, J, K) the structure before the first prompt; empty for a new one.
        """

    def close(self) -> None:
        """Release the connection."""


def refine_with(
    network: InteractiveNetwork,
    labels: NDArray[np.unsignedinteger],
    label: int,
    image: NDArray,
    prompts: Prompts,
    *,
    overwrite: Collection[int] = (),
) -> Change:
    """Return the change after which a structure is what a network finds from prompts.

    As with `refine`, every positive voxel is in the result and no negative one, whatever the network says.

    Args:
        network: an interactive network.
        labels: (I, J, K) label map.
        label: label of the structure; it may be new.
        image: (I, J, K) intensities on the same grid.
        prompts: clicks, scribbles and box.
        overwrite: labels of other structures that the structure may take voxels from.

    Raises:
        InputError: `edit.prompt_missing` or `edit.prompt_outside`.
        EnvironmentFault: `edit.backend_failed`, the server does not answer or refuses.
    """
    prompts.check(labels.shape)
    network.set_image(image)
    found = np.array(network.find(prompts, labels == label), bool)
    if found.shape != labels.shape:
        raise EnvironmentFault(
            "edit.backend_failed",
            f"{network.name} returned a structure of shape {found.shape}; expected {labels.shape}; "
            "check the versions of its client and server",
        )
    found[tuple(prompts.positive.T)] = True
    found[tuple(prompts.negative.T)] = False
    box = box_of(found | (labels == label)) or whole(labels.shape)
    return change_structure(labels, box, label, found[box], overwrite)


def _check_address(server: str, unencrypted: bool) -> None:
    """Raise an error if an address is none, or if a scan would travel readable by others."""
    address = urlsplit(server)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InputError(
            "edit.backend_address",
            f"found the server address {one_line(server, 80)!r}; expected one such as http://127.0.0.1:1527",
        )
    if address.scheme == "http" and address.hostname not in ("127.0.0.1", "localhost", "::1") and not unencrypted:
        raise InputError(
            "edit.backend_address",
            f"found the address {one_line(server, 80)!r}, to which scans would be sent unencrypted; use https, a "
            "tunnel to this machine, or allow it explicitly",
        )


class NnInteractive:
    """nnInteractive (Isensee et al., arXiv 2503.08373) on a server, through its client without torch.

    Args:
        server: address of an `nninteractive-server`, such as "http://127.0.0.1:1527".
        licence_accepted: whether the user has read `licence` and accepted it.
        api_key: key of the server; "" if it has none.
        unencrypted: whether the scan may be sent over http to another machine, as in a network of one's own.

    Raises:
        InputError: `edit.backend_licence`, the licence is not accepted; `edit.backend_address`, the address is none.
        EnvironmentFault: `edit.backend_missing`, the client is not installed; `edit.backend_failed`, no connection.
    """

    name = "nnInteractive"
    licence = NetworkLicence(
        "CC BY-NC-SA 4.0",
        "https://creativecommons.org/licenses/by-nc-sa/4.0/",
        "The weights of nnInteractive may be used for non-commercial purposes only, with attribution, and what is "
        "derived from them is shared under the same licence.",
    )

    def __init__(self, server: str, *, licence_accepted: bool, api_key: str = "", unencrypted: bool = False) -> None:
        if not licence_accepted:
            raise InputError(
                "edit.backend_licence",
                f"the licence of the weights of {self.name}, {self.licence.name}, is not accepted; read it at "
                f"{self.licence.url} and accept it",
            )
        _check_address(server, unencrypted)
        if not self.is_available():
            raise self._missing()
        self._image: NDArray | None = None
        self._target: NDArray[np.uint8] = np.zeros((0, 0, 0), np.uint8)
        self._session = self._call(self._connect, server, api_key)

    @staticmethod
    def is_available() -> bool:
        """Return whether its package is installed; nothing of it is loaded."""
        try:
            return find_spec("nnInteractive") is not None
        except (ImportError, ValueError):  # a module that somebody made has no spec
            return False

    @property
    def server_licence(self) -> str:
        """Licence of the weights that the server has loaded, as it states it; "" if it states none."""
        stated = one_line(getattr(self._session, "license", None) or "", 80)
        return "" if stated.strip("!") == "MISSING" else stated

    def set_image(self, image: NDArray) -> None:
        """Send the intensities (I, J, K) of a scan, unless they were the last that were sent."""
        if image is self._image:
            return
        self._call(self._session.set_image, np.ascontiguousarray(image, np.float32)[None])
        self._target = np.zeros(image.shape, np.uint8)
        self._call(self._session.set_target_buffer, self._target)
        self._image = image

    def find(self, prompts: Prompts, structure: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the structure (I, J, K) by all prompts, beginning from the structure as it is if there is one."""
        session = self._session
        self._call(session.reset_interactions)
        self._target[...] = 0
        if structure.any() and getattr(session, "supports_initial_label", False):
            self._call(session.add_initial_seg_interaction, structure.astype(np.uint8), run_prediction=False)
        steps = self._steps(prompts)
        for number, (method, place, is_positive) in enumerate(steps):
            is_last = number == len(steps) - 1
            self._call(getattr(session, method), place, include_interaction=is_positive, run_prediction=is_last)
        return self._target > 0

    def close(self) -> None:
        """Give the place on the server back."""
        self._session.close()

    def _steps(self, prompts: Prompts) -> list[tuple[str, Any, bool]]:
        """Return the calls of the client that express prompts: method, place, whether positive."""
        from scipy.ndimage import label as components

        steps: list[tuple[str, Any, bool]] = []
        if prompts.box is not None:
            ends = [[part.start, part.stop] for part in prompts.box]
            if not getattr(self._session, "supported_interactions", {}).get("bbox3d", False):
                # such a model takes a rectangle in one slice: the middle one along the shortest side
                axis = int(np.argmin([stop - start for start, stop in ends]))
                middle = sum(ends[axis]) // 2
                ends[axis] = [middle, middle + 1]
            steps.append(("add_bbox_interaction", ends, True))
        for voxels, is_positive in ((prompts.negative, False), (prompts.positive, True)):
            painted = np.zeros(self._target.shape, np.uint8)
            painted[tuple(voxels.T)] = 1
            parts, _ = components(painted, np.ones((3, 3, 3)))
            part_of = parts[tuple(voxels.T)]
            sizes = np.bincount(part_of)
            for voxel in voxels[sizes[part_of] == 1]:
                steps.append(("add_point_interaction", [int(v) for v in voxel], is_positive))
            if (sizes > 1).any():
                scribbles = sizes[parts] > 1
                steps.append(("add_scribble_interaction", scribbles.astype(np.uint8), is_positive))
        return steps

    @classmethod
    def _missing(cls) -> EnvironmentFault:
        return EnvironmentFault(
            "edit.backend_missing",
            f"the client of {cls.name} is not installed; run: pip install nninteractive-client",
        )

    def _connect(self, server: str, api_key: str) -> Any:
        try:
            from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession
        except ModuleNotFoundError:
            raise self._missing() from None

        return nnInteractiveRemoteInferenceSession(server, api_key=api_key)

    def _call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Return the answer of the client, whose errors become one of ours that quotes no text of the server."""
        try:
            return function(*arguments, **options)
        except EnvironmentFault:
            raise
        except Exception as error:
            raise EnvironmentFault(
                "edit.backend_failed",
                f"{self.name} failed ({type(error).__name__}); check that its server runs, is free and can be reached",
            ) from None
