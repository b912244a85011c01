"""`napari-seg models` on the command line."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bundles import write_threshold_bundle
from web import Web

from napari_seg.bundles.places import store_root
from napari_seg.cli.exit_codes import ExitCode
from napari_seg.cli.main import main


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = write_threshold_bundle(tmp_path / "from" / "threshold")
    (root / "LICENSE").write_text("MIT License\n\nCopyright")
    return root


def printed(capsys: pytest.CaptureFixture, *arguments: str | Path, status: int = 0) -> str:
    assert main(["models", *map(str, arguments)]) == status
    return capsys.readouterr().out


def test_a_model_is_added_listed_shown_verified_and_removed(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    assert "use it with --model threshold" in printed(capsys, "add", bundle)
    for command in ([], ["list"]):
        listed = printed(capsys, *command)
        assert "threshold  1.0   MR   needs your consent" in listed
        assert '  name: "Hippocampus, anterior and posterior"\n' in listed
        assert "installed as: threshold (2.8 kB)" in listed
        assert "installed models take 2.8 kB\n" in listed
    shown = printed(capsys, "show", "threshold")
    assert "licence: MIT" in shown
    assert f"source: {bundle}" in shown
    assert "size: " in shown
    assert "way: needs your consent (--trust gives it)" in shown
    assert "because of configs/inference.yaml: network_def._target_ scripts.nets.Threshold" in shown
    assert "code: scripts/nets.py: all lines run (19) (Python module of the bundle)" in shown
    assert "as installed" in printed(capsys, "verify", "threshold")
    (store_root() / "threshold" / "models" / "model.pt").unlink()
    assert "missing models/model.pt" in printed(capsys, "verify", "threshold", status=4)
    assert "removed threshold" in printed(capsys, "remove", "threshold")
    assert "threshold" not in printed(capsys)


def test_everything_is_printed_as_json_too(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    added = json.loads(printed(capsys, "add", bundle, "--json"))
    assert added["folder"] == str(store_root() / "threshold")
    assert added["size_bytes"] > 0
    for command in (["--json"], ["list", "--json"], ["--json", "list"]):
        assert [entry["name"] for entry in json.loads(printed(capsys, *command))][1:] == ["threshold"]
    card = json.loads(printed(capsys, "show", "threshold", "--json"))
    assert (card["licence_kind"], card["channels"], card["source"]) == ("open", 1, str(bundle))
    assert (card["way"], card["needs_consent"], card["trusted"]) == ("engine", True, False)
    assert card["code"][0]["place"] == "scripts/nets.py"
    assert json.loads(printed(capsys, "verify", "threshold", "--json")) == []
    assert json.loads(printed(capsys, "remove", "threshold", "--json"))["removed"] == "threshold"
    assert json.loads(printed(capsys, "remove", "threshold", "--json", status=1))["code"] == "store.unknown"


def test_the_old_name_of_the_command_lists_and_shows(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bundles"]) == 0
    assert main(["bundles", "show", str(bundle)]) == 0
    assert "threshold  1.0" in capsys.readouterr().out


def test_mistakes_are_explained(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "add", str(tmp_path / "missing.zip")]) == 1
    assert "store.source" in capsys.readouterr().err
    assert main(["models", "add", str(bundle)]) == 0
    assert main(["models", "add", str(bundle)]) == 1
    assert "--replace" in capsys.readouterr().err
    assert main(["models", "add", str(bundle), "--replace"]) == 0
    assert main(["models", "add", str(bundle), "--name", "again"]) == 0
    assert (store_root() / "again").is_dir()


def test_the_catalogue_is_searched_without_a_network(capsys: pytest.CaptureFixture) -> None:
    text = printed(capsys, "search", "spleen", "ct")
    assert "spleen_ct_segmentation  0.5.9  CT  not installed; runs at once\n" in text
    assert "licence: Apache-2.0 (open); download: size unknown" in text
    assert "training data: " in text
    assert "(free for non-commercial use); download" in printed(capsys, "search", "tissue_types")
    assert "vista3d  0.5.4  CT  can't be used\n" in printed(capsys, "search", "vista3d")
    assert "it needs clicks" in printed(capsys, "search", "vista3d")
    (entry,) = json.loads(printed(capsys, "search", "brats", "segmentation", "--json"))
    assert entry["channels"] == ["T1c", "T1", "T2", "FLAIR"]
    assert entry["installed"] is False
    assert "it runs without any" in printed(capsys, "search", "deepedit")
    text = printed(capsys, "search", "no-such-organ", "glioma", "flair", status=2)
    assert "no model has all of these words; 0 have 'no-such-organ', " in text
    assert "1 has 'flair'; 'models search' alone lists all 92" in text
    assert "0 have 'hipocampus' (did you mean hippocampus?);" in printed(capsys, "search", "hipocampus", status=2)


def test_a_model_that_is_not_installed_says_how_to_install_it(capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "show", "BRATS_mri_segmentation"]) == 1
    text = (
        "'brats_mri_segmentation' is in the catalogue but not installed; 'napari-seg models add brats_mri_segmentation'"
    )
    assert text in capsys.readouterr().err
    assert main(["models", "show", "vista3d"]) == 1
    assert "'vista3d' is in the catalogue but can't be used: it needs clicks" in capsys.readouterr().err


def hub_of(web: Web, bundle: Path) -> None:
    """Serve a bundle as `hf:MONAI/threshold`."""
    commit, files = "c" * 40, [path for path in sorted(bundle.rglob("*")) if path.is_file()]
    web.put_json("/api/models/MONAI/threshold/revision/main", {"sha": commit})
    listing = []
    for path in files:
        name, content = path.relative_to(bundle).as_posix(), path.read_bytes()
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        listing.append({"type": "file", "path": name, "size": len(content), "oid": digest})
        web.files[f"/MONAI/threshold/resolve/{commit}/{name}"] = content
    web.put_json(f"/api/models/MONAI/threshold/tree/{commit}?recursive=true", listing)


def test_a_licence_is_asked_for_once(
    bundle: Path, web: Web, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_of(web, bundle)
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    command = ["models", "add", "hf:MONAI/threshold"]
    assert main(command) == 1  # there is nobody to ask
    asked = capsys.readouterr().err
    assert "MIT License" in asked
    assert "store.licence" in asked
    assert not [path for path in web.paths() if path.endswith("model.pt")]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: "n\n"))
    assert main(command) == 1
    assert not [path for path in web.paths() if path.endswith("model.pt")]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: "y\n"))
    assert main(command) == 0
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert main([*command, "--replace"]) == 0
    capsys.readouterr()
    shown = json.loads(printed(capsys, "show", "threshold", "--json"))
    assert (shown["source"], shown["revision"]) == ("hf:MONAI/threshold", "c" * 40)
    assert shown["licence_accepted"]


def test_a_script_accepts_a_licence(bundle: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_of(web, bundle)
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    assert main(["models", "add", "hf:MONAI/threshold", "--accept-licence"]) == 0


def test_a_failed_download_has_its_exit_status(
    web: Web, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    assert main(["models", "add", "hf:MONAI/none", "--accept-licence"]) == 5
    assert "download.not_found" in capsys.readouterr().err


def test_a_new_bundle_is_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "liver"
    names = ["--finds", "liver", "spleen", "--modality", "CT"]
    assert "docs/README.md" in printed(capsys, "new", folder, *names)
    text = printed(capsys, "check", folder)
    assert "warning  models/model.pt: there are no weights yet" in text
    assert "to do: add the licence of the weights" in text
    assert "0 errors, 2 warnings, 0 notes; it can't be used until its weights are there" in text
    shown = printed(capsys, "show", folder)
    assert "CT   runs at once, once its weights are there" in shown
    assert "weights: missing; bundle 'liver' has no models/model.pt; train it first" in shown
    assert "way: runs at once\n" in shown
    added = printed(capsys, "add", folder)
    assert "it can't be used until its weights are there: bundle 'liver' has no models/model.pt" in added
    assert main(["models", "new", str(folder)]) == 1
    assert "store.exists" in capsys.readouterr().err
    (folder / "configs" / "metadata.json").unlink()
    findings = json.loads(printed(capsys, "check", folder, "--json", status=4))
    assert (findings[0]["level"], findings[0]["file"]) == ("error", "configs/metadata.json")
    assert main(["models", "check", "no-such-model"]) == 1


def test_the_help_of_new_has_an_example(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["models", "new", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: napari-seg models new FOLDER [--finds NAME")
    assert "Example: napari-seg models new brain_tumor --finds core edema" in text
    assert main(["models", "new", str(tmp_path / "four"), "--channels", "4"]) == 1
    assert "such as --channels T1 T1c T2 FLAIR" in capsys.readouterr().err
    assert not (tmp_path / "four").exists()


def test_without_a_network_other_ways_are_named(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["models", "add", "brats_mri_segmentation"]) == 5
    text = capsys.readouterr().err
    assert "download.no_network" in text
    assert "download https://huggingface.co/MONAI/brats_mri_segmentation as a folder or https://api.ngc." in text
    assert "copy it here and give 'napari-seg models add FOLDER_OR_ZIP'" in text
    assert main(["models", "add", "hf:OTHER/brats_mri_segmentation"]) == 5
    assert "api.ngc" not in capsys.readouterr().err


def test_what_can_not_be_used_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "boxes"
    printed(capsys, "new", folder)
    config = folder / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("_target_: UNet", "_target_: RetinaNet"))
    shown = printed(capsys, "show", folder)
    assert "way: can't be used" in shown
    assert "it detects objects" in shown
    assert "1 error, 2 warnings, 0 notes; the bundle can't be used" in printed(capsys, "check", folder, status=4)
    config.write_text("[")
    assert "way: can't be used" in printed(capsys, "show", folder)


class Evil:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (f"open({str(self.trap)!r}, 'w')",)


def test_no_action_runs_anything_of_a_model(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    trap = tmp_path / "ran"
    code = f"open({str(trap)!r}, 'w')"
    for name in ("scripts/__init__.py", "scripts/nets.py", "numpy/__init__.py", "torch.py", "sitecustomize.py"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text(code)
    (bundle / "configs" / "logging.conf").write_text(
        f"[handlers]\nkeys=a\n[handler_a]\nclass=StreamHandler\nargs=({code},)"
    )
    config = bundle / "configs" / "inference.yaml"
    config.write_text(f'imports: ["${code}"]\nbundle_root: "${code}"\n{config.read_text()}evil: "${code}"\n')
    metadata = bundle / "configs" / "metadata.json"
    content = json.loads(metadata.read_text())
    content |= {"name": f"${code}", "description": f"$import os; {code}", "evil": {"_target_": code}}
    metadata.write_text(json.dumps(content))
    torch.save({"weight": Evil(trap)}, bundle / "models" / "model.pt")
    monkeypatch.chdir(bundle)
    assert main(["models", "show", str(bundle)]) == 0
    assert main(["models", "check", str(bundle)]) == 4
    assert main(["models", "add", str(bundle), "--name", "evil"]) == 0
    for command in (["list"], ["show", "evil"], ["verify", "evil"], ["list", "--json"], ["show", "evil", "--json"]):
        assert main(["models", *command]) == 0
    checked = printed(capsys, "check", "evil", status=4)
    assert "exec as it is loaded" in checked
    assert main(["models", "remove", "evil"]) == 0
    assert not trap.exists()


def test_a_model_of_nnunet_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nnunet_models import write_model

    source = write_model(tmp_path / "source")
    target = tmp_path / "bundle"
    assert main(["models", "convert", str(source), "-o", str(target), "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out) == {"folder": str(target)}
    assert (target / "models" / "model.pt").is_file()
    assert main(["models", "convert", str(source), "-o", str(target)]) != ExitCode.DONE
    assert "store.exists" in capsys.readouterr().err


def test_a_model_of_nnunet_is_shown_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nnunet_models import write_model

    source = write_model(tmp_path / "source")
    assert main(["models", "show", str(source)]) == ExitCode.DONE
    assert "runs at once" in capsys.readouterr().out
    assert main(["models", "check", str(source)]) == ExitCode.DONE
    assert "its weights fit its network" in capsys.readouterr().out
    assert main(["models", "add", str(source.parent), "--name", "phantom"]) == ExitCode.DONE
    assert "installed as phantom" in capsys.readouterr().out
    assert main(["models", "list"]) == ExitCode.DONE
    assert "installed as: phantom" in capsys.readouterr().out
    assert main(["models", "verify", "phantom"]) == ExitCode.DONE
    assert main(["models", "remove", "phantom"]) == ExitCode.DONE


def test_a_folder_of_several_nnunet_models_is_installed_and_removed_as_a_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunet_models import configuration, write_model

    source = write_model(tmp_path / "source").parent
    write_model(tmp_path / "source", "2d", configuration((16, 16), (1, 1)))
    added = printed(capsys, "add", source, "--name", "phantom")
    assert "Dataset001_Phantom 2d" in added
    assert "Dataset001_Phantom 3d_fullres" in added
    assert "  channels: T1\n" in added
    assert "installed as phantom (" in added
    assert "; it holds 2d, 3d_fullres; use one with --model phantom:3d_fullres\n" in added
    again = json.loads(printed(capsys, "add", source, "--name", "phantom", "--replace", "--json"))
    assert again["installed_as"] == ["phantom:2d", "phantom:3d_fullres"]
    assert main(["models", "remove", "phantom:2d"]) == ExitCode.USAGE
    assert "'phantom:2d' is one model of 'phantom', which is kept as a whole" in capsys.readouterr().err
    printed(capsys, "remove", "phantom")
