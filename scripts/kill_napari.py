"""Kill napari at random times while a person edits and saves, and check what is left.

    xvfb-run -a -s "-screen 0 1600x1000x24" python scripts/kill_napari.py --work FOLDER
    xvfb-run -a -s "-screen 0 1600x1000x24" python scripts/kill_napari.py --work FOLDER --kills 30 --at saving

Each round opens a real window on a scan and edits with what the Edit tab uses: strokes of the brush, prompts,
operations and refinements that are computed and applied, and changes of the selected structure. A journal notes when
each edit began, and the labels and prompts after it. The window and all its processes are then killed (SIGKILL). What
is left must be whole (labels and prompts as they were after one and the same edit), the session file must hold at least
the last save that was reported, and the first edit that is lost must not be older than the interval between two
automatic copies plus the time that writing one takes, which the window measures. The exit status is 0 if all of this
holds and every kind of edit occurred.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    from napari.layers import Labels

    from napari_seg.plugin.edit.model import EditModel

WAYS = ("saving", "writing", "copying", "both")
"""What the window does while a person edits: it saves the session again and again (in "writing" it is killed while the
new file is incomplete), it makes automatic copies, or both."""

SHAPE = (256, 256, 160)

EDIT_MS = 50

CYCLE = ("stroke", "prompt", "prompt", "dilate", "other", "back", "stroke", "erode", "prompt", "refine", "smooth")
"""Edits, which are repeated: "other" selects another structure and "back" the first one again, with its prompts."""


@dataclass(frozen=True)
class Left:
    """What a killed window has left.

    Attributes:
        edits: number of edits; -1 if there is nothing.
        fault: what is wrong; "" if nothing is.
    """

    edits: int = -1
    fault: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the rounds; emptied first")
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--interval", type=int, default=5, help="seconds between two automatic copies")
    parser.add_argument("--at", choices=WAYS, help="what the window does; default: in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kills < 1:
        parser.error("without a kill, nothing is checked")
    if arguments.window:
        edit(Path(arguments.window[0]), arguments.window[1], arguments.interval)
        return 0

    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    chance, faults, counts, kinds = random.Random(arguments.seed), 0, Counter[str](), Counter[str]()
    lost = defaultdict[str, list[float]](list)
    for number in range(arguments.kills):
        way = arguments.at or WAYS[number % len(WAYS)]
        folder = arguments.work / f"round_{number}"
        killed, journal = kill(folder, way, arguments.interval, chance)
        fault, seconds, text = check(folder, way, killed, journal, arguments.interval)
        faults += bool(fault)
        lost[way].append(seconds)
        kinds.update(entry["kind"] for entry in journal if "edit" in entry)
        counts[way] += 1
        hidden = len(list(folder.glob(".*.napari-seg")))
        counts["in the middle of a write"] += hidden > 0
        print(f"kill {number + 1:3}  {way:8} {text}{' unfinished file' if hidden else ''}  {fault or 'ok'}", flush=True)
        if not fault:
            shutil.rmtree(folder)
    listed = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    ages = ", ".join(f"{max(ages):.1f} s {way}" for way, ages in sorted(lost.items()))
    print(f"{arguments.kills} kills ({listed}); {faults} faults; interval {arguments.interval} s; lost at most {ages}")
    print("edits: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    if missing := set(CYCLE) - set(kinds):
        print(f"no edit was: {', '.join(sorted(missing))}")
    return int(faults > 0 or bool(missing))


def kill(folder: Path, way: str, interval: int, chance: random.Random) -> tuple[float, list[dict[str, Any]]]:
    """Open a window, kill it while it works, and return the time of the kill and the journal.

    Raises:
        SystemExit: the window ended by itself.
    """
    folder.mkdir()
    write_scan(folder / "scan.nii")
    command = [sys.executable, __file__, "--work", str(folder), "--interval", str(interval)]
    environment = {
        **os.environ,
        "NAPARI_SEG_UNSAVED": str(folder / "unsaved"),
        "NAPARI_CONFIG": str(folder / "settings.yaml"),
        "NAPARI_SEG_MODELS": str(folder / "store"),
    }
    with (folder / "log.txt").open("w") as log:
        window = subprocess.Popen(
            [*command, "--window", str(folder), way], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    began = time.monotonic()
    while not is_under_way(folder, way):
        if window.poll() is not None or time.monotonic() - began > 180:
            raise SystemExit(f"the window does not work: see {folder / 'log.txt'}")
        time.sleep(0.02)
    if way == "writing":
        while not any(folder.glob(".*.napari-seg")):  # the name of a file that is being written
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.1))
    else:
        time.sleep(chance.uniform(0, 2 * interval))
    killed = time.time()
    os.killpg(window.pid, signal.SIGKILL)
    window.wait()
    lines = (folder / "journal.txt").read_text().splitlines()
    return killed, [json.loads(line) for line in lines if line.endswith("}")]


def is_under_way(folder: Path, way: str) -> bool:
    """Return whether the first session file or the first copies are written, as far as the way makes any."""
    has_session = (folder / "a.napari-seg").exists()
    has_copies = any(folder.glob("unsaved/*/unsaved.json"))
    return (
        has_session if way in ("saving", "writing") else has_copies if way == "copying" else has_session and has_copies
    )


def balls() -> np.ndarray:
    """Return the label map (I, J, K) that is edited: two balls."""
    labels = np.zeros(SHAPE, np.uint8)
    for label, center in enumerate(((90, 120, 80), (180, 120, 80)), start=1):
        labels[sum((index - c) ** 2 for index, c in zip(np.ogrid[*map(slice, SHAPE)], center, strict=True)) < 900] = (
            label
        )
    return labels


def write_scan(path: Path) -> None:
    """Write a scan with two bright balls in noise."""
    from napari_seg.formats.nifti import write_volume
    from napari_seg.geometry import Grid
    from napari_seg.volume import Volume

    noise = np.random.default_rng(0).integers(0, 300, (1, *SHAPE), np.int16)
    write_volume(Volume(noise + np.int16(200) * (balls() > 0), Grid(SHAPE, np.diag([1.0, 1.0, 1.5, 1.0]))), path)


def edit(folder: Path, way: str, interval: int) -> None:
    """Open a window and edit until it is killed."""
    import napari
    from qtpy.QtCore import QTimer

    from napari_seg.plugin.layer_info import placement_of, volume_of
    from napari_seg.plugin.layers import labels_layer, layer_of
    from napari_seg.volume import Segment, Segmentation

    viewer = napari.Viewer()
    _, panel = viewer.window.add_plugin_dock_widget("napari-seg", "Segmentation")
    (image,) = viewer.open(str(folder / "scan.nii"), plugin="napari-seg")
    volume = volume_of(image)
    segments = (Segment(1, "ball", (255, 0, 0)), Segment(2, "other", (0, 255, 0)))
    found = Segmentation(balls(), volume.grid, segments)
    layer = layer_of(labels_layer(found, placement_of(image).for_new_layer(), "balls", scan=volume.source))
    viewer.add_layer(layer)
    viewer.layers.selection.active = layer
    layer.brush_size = 7
    person = Person(panel.edit_tab.model, layer)
    panel.guard.write_copies_every(0 if way in ("saving", "writing") else interval)
    journal = (folder / "journal.txt").open("w")
    state = {"edits": 0, "saving": -1, "next": 0.0}

    def note(**entry: Any) -> None:
        journal.write(json.dumps({**entry, "when": time.time()}) + "\n")
        journal.flush()

    def step() -> None:
        number, began = state["edits"], time.time()
        kind = CYCLE[number % len(CYCLE)]
        if person.has_done(kind):
            note(edit=number, kind=kind, began=began, **person.digests)
            state["edits"] += 1
        files = panel.session_files
        if state["saving"] >= 0 and not files.is_busy:
            note(saved=state["saving"])
            state["saving"] = -1
            state["next"] = time.monotonic() + (2 * interval if way == "both" else 0)
        if way != "copying" and not files.is_busy and time.monotonic() >= state["next"]:
            state["saving"] = state["edits"]
            files.save(folder / "a.napari-seg")

    write_copies = panel.guard.autosave.write_copies

    def timed(due: Any) -> int:
        note(copying=True)
        count = write_copies(due)
        note(copying=False)
        return count

    panel.guard.autosave.write_copies = timed
    note(edit=-1, kind="start", began=time.time(), **person.digests)
    timer = QTimer()
    timer.timeout.connect(step)
    timer.start(EDIT_MS)
    napari.run()


class Person:
    """Edits a layer as the Edit tab does.

    Args:
        editing: model of the Edit tab.
        layer: layer with the label 1 as a ball.
    """

    def __init__(self, editing: EditModel, layer: Labels) -> None:
        self._editing, self._layer = editing, layer
        self._center = np.argwhere(np.asarray(layer.data) == 1).mean(axis=0)
        self._prompts: dict[tuple[int, ...], bool] = {}
        self._is_asked = False
        self._rng = np.random.default_rng(0)
        layer.brush_size, layer.selected_label, editing.size_mm = 7, 1, 2.0

    def has_done(self, kind: str) -> bool:
        """Edit as one of `CYCLE`; return False if it is still computed and this is to be called again."""
        if kind == "stroke":
            i, j, k = self._place()
            with self._layer.block_history():  # from the press of the mouse to its release
                for step in range(4):
                    self._layer.paint((i, j + step, k), 1)
        elif kind == "prompt":
            voxel = self._place()
            self._prompts[voxel] = bool(self._rng.integers(2))
            self._editing.add_prompt(np.array(voxel), self._prompts[voxel])
        elif kind in ("other", "back"):
            self._layer.selected_label = 2 if kind == "other" else 1
        else:
            return self._has_applied(kind)
        return True

    @property
    def digests(self) -> dict[str, int]:
        """Digests of the labels and of the prompts as they must be now."""
        return {"labels": digest_of_labels(self._layer.data), "prompts": digest_of_prompts(self._prompts)}

    def _has_applied(self, kind: str) -> bool:
        from napari_seg.plugin.labels_state import state_of

        editing = self._editing
        if not self._is_asked:
            self._is_asked = True
            if kind != "refine":  # it is computed after each prompt
                editing.run(kind)
            return False
        if editing.preview is not None and editing.preview.name.lower() == kind:
            applied = len(state_of(self._layer).actions)
            editing.apply()
            if len(state_of(self._layer).actions) == applied:
                return False  # it is computed again
            if kind == "refine":
                self._prompts.clear()
        elif editing.job is not None:
            return False
        self._is_asked = False
        return True

    def _place(self) -> tuple[int, ...]:
        """Return a voxel near the border of the ball."""
        direction = self._rng.normal(size=3)
        radius = self._rng.uniform(24, 36)
        return tuple((self._center + radius * direction / np.linalg.norm(direction)).round().astype(int).tolist())


def digest_of_labels(labels: Any) -> int:
    return crc32(np.ascontiguousarray(labels, np.uint8))


def digest_of_prompts(prompts: Mapping[tuple[int, ...], bool]) -> int:
    """Return the digest of voxels and whether they belong to the structure."""
    return crc32(repr(sorted(prompts.items())).encode())


def check(
    folder: Path, way: str, killed: float, journal: list[dict[str, Any]], interval: int
) -> tuple[str, float, str]:
    """Return what is wrong ("" if nothing is), the age of the first lost edit in seconds, and a text."""
    edits = [entry for entry in journal if "edit" in entry]
    times = {entry["edit"]: entry["began"] for entry in edits}
    reported = max((entry["saved"] for entry in journal if "saved" in entry), default=0)
    writing = longest_copying(journal, killed)
    limit = max(interval, writing) + writing + 1  # an edit just after the beginning of a copy is in the next one
    session, copies = session_of(folder, edits), copies_of(folder, edits)
    best = max(session.edits, copies.edits)
    seconds = killed - times[best] if best in times else 0.0
    held = f"{session.edits:4} in the session, {copies.edits:4} in the copies"
    text = f"{len(times) - 1:4} edits, {held}, lost {seconds:4.1f} s, writing {writing:3.1f} s"
    fault = session.fault or copies.fault
    if best < 0:
        fault = fault or "nothing is left"
    if session.edits < reported and way != "copying":
        fault = fault or f"the session has {session.edits} edits; {reported} were saved"
    if way in ("copying", "both") and seconds > limit:
        fault = fault or f"the first lost edit is {seconds:.1f} s old; allowed are {limit:.1f} s"
    return fault, seconds, text


def longest_copying(journal: list[dict[str, Any]], killed: float) -> float:
    """Return the longest time in seconds that automatic copies were written; the last ones may be incomplete."""
    times, longest = [entry for entry in journal if "copying" in entry], 0.0
    for number, entry in enumerate(times):
        if entry["copying"]:
            end = times[number + 1]["when"] if number + 1 < len(times) else killed
            longest = max(longest, end - entry["when"])
    return longest


def session_of(folder: Path, edits: list[dict[str, Any]]) -> Left:
    """Return what is in the session file."""
    from napari_seg.errors import NapariSegError
    from napari_seg.plugin.session_file.restore import open_session

    path = folder / "a.napari-seg"
    if not path.exists():
        return Left()
    try:
        opened = open_session(path)
    except NapariSegError as error:
        return Left(fault=f"the session file is damaged: {error}")
    if opened.faults or opened.missing or len(opened.layers) != 2:
        return Left(fault=f"the session is incomplete: {opened.faults}")
    return left_in(opened.layers[1], edits, "the session")


def copies_of(folder: Path, edits: list[dict[str, Any]]) -> Left:
    """Return what the next window would offer to restore."""
    from napari_seg.errors import NapariSegError
    from napari_seg.plugin.autosave import Autosave

    offered = Autosave(folder / "unsaved").left_behind()
    try:
        layers = [layer for one in offered for layer in one.read(None)]
    except (NapariSegError, OSError, ValueError) as error:
        return Left(fault=f"the copies are damaged: {error}")
    return left_in(layers[0], edits, "the copies") if layers else Left()


def left_in(layer: Any, edits: list[dict[str, Any]], where: str) -> Left:
    """Return what a layer holds: the latest edit after which its labels and prompts were like this."""
    from napari_seg.plugin.edit.kept_prompts import kept_prompts

    kept = kept_prompts(layer, 1)
    prompts = {tuple(voxel): True for voxel in kept.positive.tolist()}
    prompts |= {tuple(voxel): False for voxel in kept.negative.tolist()}
    found = {"labels": digest_of_labels(layer.data), "prompts": digest_of_prompts(prompts)}
    same = {name: {entry["edit"] for entry in edits if entry[name] == digest} for name, digest in found.items()}
    if both := same["labels"] & same["prompts"]:
        return Left(max(both) + 1)
    after = {name: f"{max(numbers)}" if numbers else "none" for name, numbers in same.items()}
    return Left(fault=f"{where} hold the labels after edit {after['labels']}, the prompts after {after['prompts']}")


if __name__ == "__main__":
    sys.exit(main())
