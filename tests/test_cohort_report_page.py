"""Test the page of a run as text; a browser shows the same data."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cohorts import START, add_done, add_failed, add_model, draw_preview, new_manifest, output

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.report.write import write_report
from napari_seg.cohort.resume import settings_content
from napari_seg.cohort.settings import RunSettings
from napari_seg.error_codes import CODES
from napari_seg.errors import Notice

ATTACKS = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\"><svg onload='alert(1)'>",
    "a\u2028b\u2029c&lt;&amp;",
    "${alert(1)} $title $body <!--data-->",
)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    with new_manifest(tmp_path / "out", ended=START + 600) as manifest:
        yield manifest


class Page(HTMLParser):
    """Elements and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.blocks: dict[str, Any] = {}
        self._block: str | None = None
        self._tag = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._tag = tag
        self._block = dict(attrs).get("id") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "script" and self._block:
            self.blocks[self._block] = json.loads(data)
        elif self._tag not in ("script", "style"):
            self.text += data


def written(manifest: Manifest) -> Page:
    return Page(write_report(manifest).read_text(encoding="utf-8"))


def test_names_and_messages_are_text(manifest: Manifest) -> None:
    plain = new_tags(manifest)
    for attack in ATTACKS:
        model = manifest.add_model(attack, attack, attack, attack)
        manifest.add_runner(attack, 1, attack, False)
        for n in range(10):
            notices = (Notice(attack, attack, attack),)
            add_done(manifest, f"{attack}{n}", {attack: 1e6 ** (n == 9)}, model=model, source=attack, notices=notices)
        add_failed(manifest, f"{attack} failed", attack, attack, source=attack, model=model)
        manifest.add_case(f"{attack} skipped", {"state": "skipped", "code": attack, "message": attack})
    manifest.set_meta("settings", json.dumps({attack: attack for attack in ATTACKS}))
    page = written(manifest)
    assert {tag for tag, _ in page.elements} <= plain
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 3
    names = {case[1] for case in page.blocks["data"]["cases"]}
    assert {f"{attack}0" for attack in ATTACKS} <= names
    for attack in ATTACKS:
        assert attack in page.text


def new_tags(manifest: Manifest) -> set[str]:
    """Return the elements of the page of a run with ordinary names."""
    model = add_model(manifest)
    for n in range(9):
        notice = Notice("result.islands", "islands", "front")
        add_done(manifest, f"case_{n}", {"front": 90.0 if n == 8 else 1.0}, model=model, notices=(notice,))
    add_failed(manifest, "broken", model=model)
    return {tag for tag, _ in written(manifest).elements}


def test_the_page_runs_its_own_script_only_and_loads_nothing(manifest: Manifest) -> None:
    new_tags(manifest)
    page = written(manifest)
    (policy,) = (a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert re.fullmatch(
        "default-src 'none'; img-src data: 'self' file:; style-src 'unsafe-inline'; script-src 'sha256-[^']+'", policy
    )
    assert not [a for _, a in page.elements if "src" in a]
    assert [a["href"] for _, a in page.elements if "href" in a] == ["#cases"]


def test_failures_come_first_by_code_with_what_to_do(manifest: Manifest) -> None:
    add_done(manifest, "good", {"front": 1.0})
    add_failed(manifest, "one", "file.empty", "found 0 bytes")
    for n in range(30):
        add_failed(manifest, f"gap_{n}", "geometry.missing_slice", f"gap {n}")
    html = write_report(manifest).read_text(encoding="utf-8")
    text = Page(html).text
    places = [text.index(part) for part in ("Failed", "geometry.missing_slice", "file.empty", "Volumes", "Run")]
    assert places == sorted(places)
    assert CODES["geometry.missing_slice"].mend in text
    assert "found 0 bytes" in text
    assert "10 more" in text
    assert all(f"gap {n}" in text for n in range(30))


def test_the_summary_counts_cases_and_time(manifest: Manifest) -> None:
    model = add_model(manifest)
    for n in range(18):
        add_done(manifest, f"case_{n}", {"front": 1.0}, model=model, started=START + 10 * n, seconds=4.0)
    add_failed(manifest, "broken", started=START + 300)
    manifest.add_case("later", {"state": "waiting"})
    text = written(manifest).text
    assert "Segmentation of 20 cases" in text
    assert "1 case was not finished when this page was written." in text
    assert "2027-01-15 08:00 to 08:05 UTC" in text
    assert "10 min" in text
    assert "1.9 cases a minute" in text
    assert "network 50 %" in text
    assert "600 MiB" in text
    assert "hippocampus" in text
    assert "c0ffeec0ffeec0ff" in text
    assert "reading-room" in text
    assert "4242" in text


def test_the_data_of_a_case(manifest: Manifest) -> None:
    model = add_model(manifest)
    for n in range(12):
        add_done(manifest, f"case_{n}", {"front": 1.0 + n / 50, "back": 2.0}, model=model)
    add_done(manifest, "odd", {"front": 30.0, "back": 0.0}, model=model, confidence={"front": 0.5})
    data = written(manifest).blocks["data"]
    assert [one["name"] for one in data["structures"][0]] == ["front", "back"]
    assert data["structures"][0][1]["absentUnusual"] == 1
    odd = data["cases"][-1]
    volumes, confidence, unusual, notices, files = odd[13:18]
    assert (volumes, confidence, notices) == ([30.0, 0.0], [0.5, None], [])
    assert unusual[0][0] == 0
    assert unusual[0][1] > 3.5
    assert unusual[1] == [1, None]
    assert files == {"overlay": "odd_seg.png", "labels": "odd_seg.nii.gz", "record": "odd_seg.json"}


def test_previews_are_embedded_up_to_a_size_those_with_doubts_first(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = manifest.path.parent
    for n in range(6):
        notices = (Notice("result.islands", "islands"),) if n == 4 else ()
        add_done(manifest, f"case_{n}", {"front": 1.0}, notices=notices)
        draw_preview(folder / f"case_{n}_seg.png", n)
    (folder / "case_0_seg.png").write_bytes(b"no image")
    page = written(manifest)
    assert sorted(page.blocks["thumbs"]) == ["0", "1", "2", "3", "4", "5"]
    assert page.blocks["thumbs"]["0"] == ""
    assert page.blocks["thumbs"]["1"].startswith("UklGR")  # base64 of "RIFF"
    size = max(len(content) * 3 // 4 for content in page.blocks["thumbs"].values())
    monkeypatch.setattr("napari_seg.cohort.report.page.MAX_EMBEDDED_BYTES", int(2.5 * size))
    assert sorted(written(manifest).blocks["thumbs"]) == ["0", "1", "4"]


def test_paths_that_leave_the_folder_are_no_links(manifest: Manifest) -> None:
    number = add_done(manifest, "a", {"front": 1.0})
    for path in ("../../secret.png", "/etc/x.png", "javascript:alert(1)", "C:/x.png", "a\\..\\x.png"):
        manifest.change_case(number, {"outputs": {"overlay": output(path).to_record()}})
        page = written(manifest)
        assert page.blocks["data"]["cases"][0][17] == {}
        assert page.blocks["thumbs"] == {}


def test_one_case_is_no_distribution(manifest: Manifest) -> None:
    add_done(manifest, "a", {"front": 1.0})
    page = written(manifest)
    assert "median ml" in page.text
    assert "A dot" not in page.text
    assert "plots" not in [attributes.get("id") for _, attributes in page.elements]
    add_done(manifest, "b", {"front": 2.0, "back": 3.0})
    page = written(manifest)
    assert "A structure of a single case is in the table only." in page.text
    assert "plots" in [attributes.get("id") for _, attributes in page.elements]
    assert [one["count"] for one in page.blocks["data"]["structures"][0]] == [2, 1]


@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
def test_a_browser_draws_the_page_without_a_complaint(manifest: Manifest, tmp_path: Path) -> None:
    for attack in (*ATTACKS, "__proto__", "constructor"):
        model = manifest.add_model(attack, "1", "monai", attack)
        for n in range(9):
            notices = (Notice(attack, attack, attack),)
            add_done(manifest, f"{attack}{n}", {attack: 1e3 ** (n == 8)}, model=model, notices=notices)
        add_failed(manifest, f"{attack} failed", attack, attack, model=model)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000"]
    options += [f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1400,20000", "--dump-dom"]
    page = write_report(manifest).as_uri()
    result = subprocess.run([str(BROWSER), *options, page], capture_output=True, text=True, timeout=120)
    drawn = Page(result.stdout)
    assert "CONSOLE" not in result.stderr
    (root,) = (attributes for tag, attributes in drawn.elements if tag == "html")
    assert root["data-milliseconds"]  # the script came to its end
    assert "1–50 of 70 cases" in drawn.text
    assert len([tag for tag, _ in drawn.elements if tag == "circle"]) == 9 * 7
    assert not [tag for tag, _ in drawn.elements if tag == "img"]  # no preview, and none of the attacks
    assert not [name for _, attributes in drawn.elements for name in attributes if name.startswith("on")]


def test_cases_that_were_run_with_different_options_are_told(manifest: Manifest) -> None:
    attack = ATTACKS[0]
    for n, tta in enumerate(("none", "none", attack)):
        number = add_done(manifest, f"case_{n}", {"front": 1.0})
        manifest.change_case(number, {"settings": manifest.add_settings({"tta": tta, "crop": True})})
    manifest.add_settings({"tta": "of nobody"})
    page = written(manifest)
    assert "Cases were run with different options" in page.text
    assert "settings 1, 2 cases" in page.text
    assert "settings 2, 1 case" in page.text
    assert attack in page.text
    assert "of nobody" not in page.text
    with (manifest.path.parent / "cases.csv").open(newline="") as file:
        assert [row["settings"] for row in csv.DictReader(file)] == ["1", "1", "2"]


def test_a_run_that_went_on_after_an_update_states_both_versions_and_warns_of_nothing(manifest: Manifest) -> None:
    now = settings_content(RunSettings())
    before = {key: value for key, value in now.items() if key not in ("version of results", "crop")}
    for n, (version, settings) in enumerate((("0.0.9", before | {"version": "0.0.9"}), ("9.9.9", now))):
        runner = manifest.add_runner("reading-room", 1, f"x{n}", False)
        manifest._write("UPDATE runners SET version = ? WHERE id = ?", (version, runner))
        number = add_done(manifest, f"case_{n}", {"front": 1.0})
        manifest.change_case(number, {"runner": runner, "settings": manifest.add_settings(settings)})
    page = written(manifest)
    assert "napari-seg 0.0.9, 9.9.9. For research" in page.text
    assert "different options" not in page.text
    assert not [one for tag, one in page.elements if tag == "b" and one.get("class") == "warn"]
    with (manifest.path.parent / "cases.json").open() as file:
        assert json.load(file)["program"] == "napari-seg 0.0.9, 9.9.9"


def test_a_run_without_cases_has_a_page(manifest: Manifest) -> None:
    page = written(manifest)
    assert "Segmentation of 0 cases" in page.text
    assert "No case was started" in page.text


def test_a_volume_without_a_model_and_numbers_that_are_none(manifest: Manifest) -> None:
    number = add_done(manifest, "a", {"front": 1.0})
    add_done(manifest, "b", {"front": 2.0})
    manifest._write("UPDATE cases SET volumes_ml = ? WHERE id = ?", ('{"front": NaN}', number))
    data = written(manifest).blocks["data"]
    assert data["models"] == [{"name": "", "version": ""}]
    assert data["cases"][0][13] == [None]
    assert data["cases"][0][3] == 0
