"""Kill napari at random times while a person edits and saves, and check what is left.

    xvfb-run -a -s "-screen 0 1600x1000x24" python scripts/kill_napari.py --work FOLDER
    xvfb-run -a -s "-screen 0 1600x1000x24" python scripts/kill_napari.py --work FOLDER --kills 30 --at saving

Each round opens a real window on a scan. Edit number n paints voxel n and adds prompt n, and a journal notes the time.
The window and all its processes are then killed (SIGKILL). What is left must be whole (edits 0 to m, nothing else), the
session file must hold at least the last save that was reported, and the first edit that is lost must not be older than
the interval between two automatic copies plus the time that writing two takes, which the window measures. The exit
status is 0 if all of this holds.
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
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("saving", "writing", "copying", "both")
"""What the window does while a person edits: it saves the session again and again (in "writing" it is killed while the
new file is incomplete), it makes automatic copies, or both."""

SHAPE = (256, 256, 160)

EDIT_MS = 25


@dataclass(frozen=True)
class Left:
    """What a killed window has left.

    Attributes:
        edits: number of edits; -1 if there is nothing.
        prompts: number of prompts.
        fault: what is wrong; "" if nothing is.
    """

    edits: int = -1
    prompts: int = 0
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
    if arguments.window:
        edit(Path(arguments.window[0]), arguments.window[1], arguments.interval)
        return 0

    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    chance, faults, lost, counts = random.Random(arguments.seed), 0, [], Counter[str]()
    for number in range(arguments.kills):
        way = arguments.at or WAYS[number % len(WAYS)]
        folder = arguments.work / f"round_{number}"
        killed, journal = kill(folder, way, arguments.interval, chance)
        fault, seconds, text = check(folder, way, killed, journal, arguments.interval)
        faults += bool(fault)
        lost.append(seconds)
        counts[way] += 1
        hidden = len(list(folder.glob(".*.napari-seg")))
        counts["in the middle of a write"] += hidden > 0
        print(f"kill {number + 1:3}  {way:8} {text}{' unfinished file' if hidden else ''}  {fault or 'ok'}", flush=True)
        if not fault:
            shutil.rmtree(folder)
    listed = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(f"{arguments.kills} kills ({listed}); {faults} faults; lost at most {max(lost):.1f} s, median "
          f"{np.median(lost):.1f} s, interval {arguments.interval} s")  # fmt: skip
    return int(faults > 0)


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


def write_scan(path: Path) -> None:
    """Write a scan of noise."""
    from napari_seg.formats.nifti import write_volume
    from napari_seg.geometry import Grid
    from napari_seg.volume import Volume

    noise = np.random.default_rng(0).integers(0, 1000, (1, *SHAPE), np.int16)
    write_volume(Volume(noise, Grid(SHAPE, np.diag([1.0, 1.0, 1.5, 1.0]))), path)


def edit(folder: Path, way: str, interval: int) -> None:
    """Open a window and edit until it is killed."""
    import napari
    from qtpy.QtCore import QTimer

    from napari_seg.plugin import kept_data
    from napari_seg.plugin.layer_info import placement_of, volume_of
    from napari_seg.plugin.layers import labels_layer, layer_of
    from napari_seg.volume import Segment, Segmentation

    viewer = napari.Viewer()
    _, panel = viewer.window.add_plugin_dock_widget("napari-seg", "Segmentation")
    (image,) = viewer.open(str(folder / "scan.nii"), plugin="napari-seg")
    volume = volume_of(image)
    empty = Segmentation(np.zeros(SHAPE, np.uint8), volume.grid, (Segment(1, "spot", (255, 0, 0)),))
    layer = layer_of(labels_layer(empty, placement_of(image).for_new_layer(), "spots", scan=volume.source))
    viewer.add_layer(layer)
    panel.guard.write_copies_every(0 if way in ("saving", "writing") else interval)
    journal = (folder / "journal.txt").open("w")
    state = {"edits": 0, "saving": -1, "next": 0.0}

    def note(**entry: Any) -> None:
        journal.write(json.dumps({**entry, "when": time.time()}) + "\n")
        journal.flush()

    def step() -> None:
        number = state["edits"]
        note(edit=number)
        layer.data_setitem(tuple(np.array([n]) for n in np.unravel_index(number, layer.data.shape)), 1)
        kept_data.keep(layer, "spots", {"count": number + 1})
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
        began = time.monotonic()
        count = write_copies(due)
        note(copy_seconds=time.monotonic() - began)
        return count

    panel.guard.autosave.write_copies = timed
    timer = QTimer()
    timer.timeout.connect(step)
    timer.start(EDIT_MS)
    napari.run()


def check(
    folder: Path, way: str, killed: float, journal: list[dict[str, Any]], interval: int
) -> tuple[str, float, str]:
    """Return what is wrong ("" if nothing is), the age of the first lost edit in seconds, and a text."""
    times = {entry["edit"]: entry["when"] for entry in journal if "edit" in entry}
    reported = max((entry["saved"] for entry in journal if "saved" in entry), default=0)
    writing = max((entry["copy_seconds"] for entry in journal if "copy_seconds" in entry), default=0.0)
    limit = interval + 2 * writing + 1
    session, copies = session_of(folder), copies_of(folder)
    best = max(session.edits, copies.edits)
    seconds = killed - times[best] if best in times else 0.0
    held = f"{session.edits:5} in the session, {copies.edits:5} in the copies"
    text = f"{len(times):5} edits, {held}, lost {seconds:4.1f} s, writing {writing:3.1f} s"
    fault = session.fault or copies.fault
    if session.edits < reported and way != "copying":
        fault = fault or f"the session has {session.edits} edits; {reported} were saved"
    if way in ("copying", "both") and seconds > limit:
        fault = fault or f"the first lost edit is {seconds:.1f} s old"
    return fault, seconds, text


def session_of(folder: Path) -> Left:
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
    return left_in(opened.layers[1], "the session")


def copies_of(folder: Path) -> Left:
    """Return what the next window would offer to restore."""
    from napari_seg.errors import NapariSegError
    from napari_seg.plugin.autosave import Autosave

    offered = Autosave(folder / "unsaved").left_behind()
    try:
        layers = [layer for one in offered for layer in one.read(None)]
    except (NapariSegError, OSError, ValueError) as error:
        return Left(fault=f"the copies are damaged: {error}")
    return left_in(layers[0], "the copies") if layers else Left()


def left_in(layer: Any, where: str) -> Left:
    """Return what a layer holds."""
    from napari_seg.plugin import kept_data

    found = np.flatnonzero(layer.data)
    prompts = kept_data.kept(layer).get("spots", {}).get("count", 0)
    is_whole = np.array_equal(found, np.arange(len(found)))
    fault = (
        "" if is_whole and prompts == len(found) else f"{where} hold a mixture: {len(found)} edits, {prompts} prompts"
    )
    return Left(len(found), prompts, fault)


if __name__ == "__main__":
    sys.exit(main())
