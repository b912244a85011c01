"""No command opens a connection, or leaves anything in the home folder."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import phantoms
from bundles import write_threshold_bundle

RECORDER = """
import os, sys

def note(event, arguments):
    # an address of the internet is a pair; processes of one machine talk through a path
    if event in ("socket.getaddrinfo", "socket.gethostbyname") or (
        event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple)
    ):
        with open(os.environ["NOTED"], "a") as file:
            file.write(f"{event} {arguments[1:]}\\n")

sys.addaudithook(note)
"""

COMMANDS = """
import sys
from napari_seg.cli.main import main

scan, bundle, out = sys.argv[1:]
trusted = ["--bundle", bundle, "--trust-bundle"]
backends = ["torch", "openvino"] if {openvino} else ["torch"]
assert main(["bundles"]) == 0
assert main(["models", "search", "spleen"]) == 0
assert main(["models", "add", bundle, "--name", "copy"]) == 0
for action in ("show", "check", "verify", "remove"):
    assert main(["models", action, "copy"]) == 0
assert main(["inspect", scan]) == 0
for backend in backends:
    assert main(["predict", scan, "-o", f"{{out}}/{{backend}}", "--backend", backend, *trusted]) == 0
labels = f"{{out}}/torch/head_seg.nii.gz"
assert main(["convert", labels, f"{{out}}/labels.seg.nrrd"]) == 0
assert main(["evaluate", labels, f"{{out}}/labels.seg.nrrd", "-o", f"{{out}}/evaluated"]) == 0
import napari_seg.training, napari_seg.training.run
"""


def test_no_command_opens_a_connection(tmp_path: Path) -> None:
    noted, home = tmp_path / "noted", tmp_path / "home"
    (tmp_path / "site").mkdir()
    home.mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(RECORDER)
    scan = phantoms.write_nifti(phantoms.head(), tmp_path / "head.nii.gz")
    bundle = write_threshold_bundle(tmp_path / "threshold", roi=(16, 16, 16))
    environment = {
        **os.environ,
        "NOTED": str(noted),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH")))),
        "HOME": str(home),
        "USERPROFILE": str(home),
        "NAPARI_SEG_CACHE": "",
    }
    commands = COMMANDS.format(openvino=importlib.util.find_spec("openvino") is not None)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", commands, scan, bundle, tmp_path / "out"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not noted.exists(), noted.read_text()
    assert not [path for path in home.rglob("*") if "intel" in path.name.lower()]
