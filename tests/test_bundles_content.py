"""The hash of a bundle changes with all that can act, and nothing else; lines of code are found unevaluated."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from bundles import write_threshold_bundle
from PIL import Image

from napari_seg.bundles import content as module
from napari_seg.bundles.content import code_lines, consent_hash, content_hash
from napari_seg.bundles.read import read_bundle
from napari_seg.errors import BundleError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_threshold_bundle(tmp_path / "threshold")


def digest(root: Path) -> str:
    return content_hash(read_bundle(root))


def refused(root: Path) -> str:
    with pytest.raises(BundleError) as caught:
        digest(root)
    return caught.value.code


@pytest.mark.parametrize(
    "name",
    [
        "configs/inference.yaml",
        "configs/metadata.json",
        "configs/logging.conf",
        "configs/train.json",
        "scripts/nets.py",
        "scripts/deep/er/one.py",
        "scripts/fast.so",
        "scripts/old.pyc",
        "numpy/__init__.py",
        "models/model.ts",
        "models/net.pt2",
        "models/search.pkl",
        "models/table.npy",
        "docs/README.md",
        "model.json",
        "run",
    ],
)
def test_whatever_can_act_is_in_the_hash(root: Path, name: str) -> None:
    before = digest(root)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(b" ")
    added = digest(root)
    assert added != before
    stamp = path.stat()
    with path.open("ab") as file:
        file.write(b"\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digest(root) != added


def test_data_is_not_in_the_hash_and_its_name_is(root: Path) -> None:
    before = digest(root)
    torch.save({"model": {"weight": torch.ones(3)}}, root / "models" / "model.pt")
    (root / "scripts" / "__pycache__").mkdir()
    (root / "scripts" / "__pycache__" / "nets.cpython-311.pyc").write_bytes(b"x")
    assert digest(root) == before
    (root / "docs").mkdir()
    (root / "docs" / "a.png").write_bytes(b"x")
    assert digest(root) != before


def test_logs_and_caches_of_a_training_are_data_and_its_configs_are_not(root: Path) -> None:
    (root / "training" / "cache").mkdir(parents=True)
    for name in ("log.txt", "curves.csv", "cache/case"):
        (root / "training" / name).touch()
    (root / "training" / "plan.json").write_text("{}")
    before = digest(root)
    for name in ("log.txt", "curves.csv", "cache/case"):
        (root / "training" / name).write_text("more")
    assert digest(root) == before
    (root / "training" / "plan.json").write_text("[]")
    assert digest(root) != before


@pytest.mark.parametrize(
    "name",
    [
        *("models/net.nii", "models/net.nii.gz", "docs/a.png", "a.tif", "scans/a.dcm", "models/model.safetensors"),
        *("training/net", "training/net.html", "training/curve.png", "training/log.jsonl", "fold_0/net.nii"),
    ],
)
def test_consent_covers_what_a_module_could_load_whatever_its_name_is(root: Path, name: str) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(b"image")
    before = consent_hash(read_bundle(root))
    (root / name).write_bytes(pickle.dumps(Path))
    bundle = read_bundle(root)
    assert consent_hash(bundle) != before
    assert ("pickle", "pathlib.Path") in [(line.cause, line.text) for line in code_lines(bundle) if line.file == name]


def test_consent_holds_while_a_training_goes_on(root: Path) -> None:
    (root / "training").mkdir()

    def written(number: int) -> str:
        Image.new("L", (2, 2), number).save(root / "training" / "curve.png")
        (root / "training" / "events.out.tfevents.1.vm.2.0").write_bytes(b"H" + bytes(7) + bytes([number]))
        (root / "training" / "progress.jsonl").write_text(json.dumps({"step": number}) + "\n")
        for name in ("training/latest.pt", "models/model.pt"):
            torch.save({"model": {"weight": torch.full((3,), number)}}, root / name)
        return consent_hash(read_bundle(root))

    assert written(1) == written(2)
    for name in ("curve.png", "progress.jsonl", "events.out.tfevents.1.vm.2.0"):
        (root / "training" / name).write_bytes(b"PK\x03\x04")
        assert consent_hash(read_bundle(root)) != written(2)


def nifti(value: int) -> bytes:
    return gzip.compress((348).to_bytes(4, "little") + bytes(344) + bytes([value]))


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), value).save(stream, "png")
    return stream.getvalue()


def tar_named(start: bytes) -> bytes:
    """Return an archive as torch wrote them once, whose first member has these bytes as its name."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo(start.decode("latin-1")))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("data/imagesTr/a.nii.gz", nifti(1), nifti(2)),
        ("eval/a/a_trans.nii.gz", nifti(1), nifti(2)),
        ("eval/a.png", png(1), png(2)),
        ("training/report.html", b"<!doctype html>\n<p>1", b"<!doctype html>\n<p>2"),
        ("training/evaluation/mean_dice_raw.csv", b"filename,class0\na,0.1", b"filename,class0\na,0.2"),
    ],
    ids=["scan", "result", "figure", "report", "scores"],
)
def test_results_and_reports_need_no_new_consent(root: Path, name: str, first: bytes, second: bytes) -> None:
    before = consent_hash(read_bundle(root))
    (root / name).parent.mkdir(parents=True)
    for content in (first, second):
        (root / name).write_bytes(content)
        assert consent_hash(read_bundle(root)) == before
    for content in (pickle.dumps(Path), gzip.compress(pickle.dumps(Path)), pickle.dumps(Path, 0), tar_named(first[:4])):
        (root / name).write_bytes(content)
        assert consent_hash(read_bundle(root)) != before


@pytest.mark.parametrize("name", ["evil.py", "evil.pyc", "inner/evil.py"])
def test_modules_in_a_folder_of_compiled_files_count(root: Path, name: str) -> None:
    before = digest(root)
    path = root / "scripts" / "__pycache__" / name  # scripts.__pycache__.evil is a name that a config can use
    path.parent.mkdir(parents=True)
    path.write_text("x = 1\n")
    assert digest(root) != before


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
@pytest.mark.parametrize("name", ["__pycache__", "scripts/__pycache__/inner", ".git", "code"])
def test_links_of_folders_that_do_not_count_are_refused(root: Path, tmp_path: Path, name: str) -> None:
    target = root / ".git" if name == "code" else tmp_path / "elsewhere"
    target.mkdir()
    (target / "net.py").write_text("x = 1\n")
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).symlink_to(target)
    assert refused(root) == "bundle.link"


def test_a_copy_has_the_same_hash_and_a_renamed_file_another(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(root)
    (tmp_path / "copy" / "scripts" / "nets.py").rename(tmp_path / "copy" / "scripts" / "net.py")
    assert digest(tmp_path / "copy") != digest(root)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_links_out_of_a_bundle_are_refused_those_of_weights_counted(root: Path, tmp_path: Path) -> None:
    before = digest(root)
    (tmp_path / "elsewhere").mkdir()
    for name in ("net.py", "model.pt"):
        shutil.copy(
            root / ("scripts/nets.py" if name == "net.py" else "models/model.pt"), tmp_path / "elsewhere" / name
        )
    weights = root / "models" / "model.pt"
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere" / "model.pt")
    assert digest(root) != before
    assert [(line.file, line.cause) for line in code_lines(read_bundle(root))][-1] == ("models/model.pt", "link")
    inside = root / "scripts" / "again.py"
    inside.symlink_to(root / "scripts" / "nets.py")
    assert digest(root)
    for target in (tmp_path / "elsewhere" / "net.py", Path("/dev/zero")):
        inside.unlink()
        inside.symlink_to(target)
        assert refused(root) == "bundle.link"
    inside.unlink()
    (root / "extra").symlink_to(tmp_path / "elsewhere")
    assert refused(root) == "bundle.link"
    (root / "extra").rename(root / "training_code")
    assert refused(root) == "bundle.link"
    (root / "training_code").rename(root / "training")
    before = digest(root)
    assert "training/net.py" in [line.file for line in code_lines(read_bundle(root))]
    (tmp_path / "elsewhere" / "net.py").write_text("import os")
    assert digest(root) != before


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_link_to_another_folder_of_the_bundle_is_in_the_hash(root: Path) -> None:
    (root / "scripts").rename(root / "one")
    shutil.copytree(root / "one", root / "two")
    found = []
    for target in ("one", "two"):
        (root / "scripts").unlink(missing_ok=True)
        (root / "scripts").symlink_to(target)
        found.append(digest(root))
        assert code_lines(read_bundle(root))
    assert found[0] != found[1]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes there")
@pytest.mark.parametrize("name", ["pipe.py", ".DS_Store", "desktop.ini"])
def test_a_pipe_is_refused_and_does_not_hang(root: Path, name: str) -> None:
    os.mkfifo(root / "scripts" / name)
    assert refused(root) == "bundle.link"


def test_a_folder_with_too_much_in_it_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (root / "large.json").open("wb") as file:
        file.truncate(module.MAX_BYTES + 1)
    assert refused(root) == "bundle.too_large"
    (root / "large.json").unlink()
    monkeypatch.setattr(module, "MAX_FILES", 3)
    assert refused(root) == "bundle.too_large"


def test_lines_of_code_are_found_with_their_places_and_not_run(root: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    config = root / "configs" / "inference.yaml"
    config.write_text(
        f"{config.read_text()}values:\n"
        f"  - \"$open({str(trap)!r}, 'w')\"\n"
        "  - $@inferer\n"
        "  - $[1, 2]\n"
        "  - {_target_: os.system, command: ls}\n"
    )
    (root / "scripts" / "nets.py").write_text('"""Nets."""\nimport torch\n\n\ndef f():\n    eval("1\\x1b[2K")\n')
    (root / "configs" / "logging.conf").write_text("[handler_a]\nclass=StreamHandler\nargs=(open('x', 'w'),)\n")
    (root / "configs" / "other.json").write_text('{\n  "a": "$__import__(\'os\')"\n}')
    lines = {(line.place, line.cause) for line in code_lines(read_bundle(root))}
    end = len(config.read_text().splitlines())
    assert lines == {
        ("scripts/nets.py", "module"),
        ("scripts/nets.py:6", "notable"),
        ("configs/inference.yaml:3", "target"),
        (f"configs/inference.yaml:{end - 3}", "expression"),
        (f"configs/inference.yaml:{end}", "target"),
        ("configs/logging.conf:2", "logging"),
        ("configs/logging.conf:3", "logging"),
        ("configs/other.json:2", "expression"),
    }
    found = code_lines(read_bundle(root))
    assert all(line.text.isprintable() and line.why for line in found)
    assert [line.file for line in found if not line.is_used] == ["configs/other.json", *["configs/logging.conf"] * 2]
    assert [line.is_used for line in found] == sorted((line.is_used for line in found), reverse=True)
    assert not trap.exists()


def test_a_config_that_the_inference_config_names_is_used(root: Path) -> None:
    (root / "configs" / "other.json").write_text('{"a": "$evil()"}')
    with (root / "configs" / "inference.yaml").open("a") as file:
        file.write('more: "%configs/other.json::a"\n')
    assert all(line.is_used for line in code_lines(read_bundle(root)))


@pytest.mark.parametrize("macro", ["%docs/net.json::a", "%docs/\\u006eet.json::a", "%docs/chain.yml::b"])
def test_a_config_that_a_macro_reads_is_used(root: Path, macro: str) -> None:
    (root / "docs").mkdir(exist_ok=True)
    (root / "docs" / "net.json").write_text('{"a": "$evil()"}')
    (root / "docs" / "chain.yml").write_text('b: "%docs/net.json::a"')
    (root / "docs" / "data.json").write_text("[1]")
    lines = [line for line in code_lines(read_bundle(root)) if line.file.startswith("docs")]
    assert [(line.place, line.text, line.is_used) for line in lines] == [("docs/net.json:1", "$evil()", False)]
    with (root / "configs" / "inference.yaml").open("a") as file:
        file.write(f'more: "{macro}"\n')
    lines = [line for line in code_lines(read_bundle(root)) if line.file.startswith("docs")]
    assert [(line.text, line.is_used) for line in lines] == [("$evil()", True)]


def test_the_configs_of_a_coarse_bundle_are_used(root: Path) -> None:
    write_threshold_bundle(root / "coarse")
    with (root / "coarse" / "configs" / "inference.yaml").open("a") as file:
        file.write('more: "$evil()"\n')
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    metadata["napari_seg"] = {"coarse": {"bundle": "coarse", "margin_mm": 10}}
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    found = {(line.file, line.text): line.is_used for line in code_lines(read_bundle(root))}
    assert found["coarse/configs/inference.yaml", "$evil()"]


def test_a_config_that_can_t_be_read_is_a_line_too(root: Path) -> None:
    (root / "configs" / "broken.json").write_text("[" * 200_000)
    (root / "configs" / "huge.yaml").write_text("a: " + "b" * 2**20)
    found = [line.file for line in code_lines(read_bundle(root)) if line.cause == "unreadable"]
    assert found == ["configs/broken.json", "configs/huge.yaml"]


def test_a_config_that_is_slow_to_search_is_searched_quickly(root: Path) -> None:
    (root / "configs" / "long.json").write_text(json.dumps({"_target_": "monai.data." + "A" * 200_000 + "!"}))
    (root / "configs" / "z.json").write_text("{" + ",\n".join(f'"k{n}": "$x{n}()"' for n in range(10_000)) + "}")
    (root / "configs" / "plain.json").write_text(json.dumps({"a": [f"${n}" for n in range(20_000)]}))
    (root / "configs" / "inference.yaml").write_text("a: " + "b" * 200_000)
    start = time.perf_counter()
    lines = code_lines(read_bundle(root))
    assert time.perf_counter() - start < 20
    assert {line.file for line in lines} >= {"configs/long.json", "configs/z.json", "configs/plain.json"}


def test_the_end_of_a_long_expression_is_listed_too(root: Path) -> None:
    text = "$[name for name in (" + "'orientation', " * 400 + ")] + [__import__('os').system('rm')]"
    (root / "configs" / "other.json").write_text(json.dumps({"a": text}))
    lines = [line.text for line in code_lines(read_bundle(root)) if line.file == "configs/other.json"]
    assert len(lines) == 4
    assert lines[-1].endswith("[__import__('os').system('rm')]")
