"""The arguments that choose a Dask cluster."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import pytest

from napari_seg.cli import dask_options
from napari_seg.errors import EnvironmentFault


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    dask_options.add_dask_options(parser)
    parser.set_defaults(refuse=parser.error)
    return parser.parse_args(words)


def test_without_the_option_nothing_of_dask_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "napari_seg.cohort.distributed", None)
    assert dask_options.pool_of(parsed()) is None


def test_the_pool_gets_place_and_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra 'dask' is not installed")
    from napari_seg.cohort import distributed

    monkeypatch.setattr(distributed, "DaskPool", lambda where, **options: (where, options))
    words = [
        "--dask",
        "tcp://host:8786",
        "--dask-resources",
        "GPU=1",
        "--dask-resources",
        "MEMORY=0.5",
        "--dask-threads",
        "4",
    ]
    connect = dask_options.pool_of(parsed(*words))
    assert connect is not None
    pool: Any = connect([])
    assert pool == ("tcp://host:8786", {"resources": {"GPU": 1.0, "MEMORY": 0.5}, "threads": 4})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_options, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'napari-seg\[dask\]'"):
        dask_options.pool_of(parsed("--dask", "local:2"))


@pytest.mark.parametrize(
    "words",
    [
        ["--dask", "local:0"],
        ["--dask", "local:many"],
        ["--dask", "http://host"],
        ["--dask", "tcp://"],
        ["--dask", "local:2", "--dask-resources", "GPU"],
        ["--dask", "local:2", "--dask-resources", "GPU=0"],
        ["--dask", "local:2", "--dask-resources", "GPU=-1"],
        ["--dask", "local:2", "--dask-threads", "0"],
    ],
)
def test_wrong_values_are_refused(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--dask-resources", "GPU=1"], ["--dask-threads", "2"]])
def test_other_options_alone_are_refused(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        dask_options.pool_of(parsed(*words))
    assert "need --dask" in capsys.readouterr().err
