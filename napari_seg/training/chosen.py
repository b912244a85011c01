"""Copy the configuration that a comparison chooses, or the pair, into the folder of the comparison."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from napari_seg.bundles.spec import MEMBERS, METADATA, PREVIOUS, WEIGHTS
from napari_seg.formats.atomic import atomic_file, atomic_write
from napari_seg.training.pairs import Pair
from napari_seg.training.scores import MEAN, summarise_cases
from napari_seg.training.write import PLAN

_BUNDLE = ("segnets", "configs", "docs", "LICENSE", PLAN)
_ALL = (*_BUNDLE, "models", MEMBERS, PREVIOUS)


def copy_bundle(source: Path, out: Path) -> None:
    """Copy the files of a trained bundle, without its runs, to another folder; its weights come last.

    Args:
        source: folder of the bundle.
        out: folder of the copy; a bundle that is there is replaced.
    """
    _remove_bundle(out)
    for name in (*_BUNDLE, *((PREVIOUS,) if (source / PREVIOUS).is_dir() else ())):
        if (source / name).is_dir():
            shutil.copytree(source / name, out / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source / name, out / name)
    metadata = json.loads((out / METADATA).read_text(encoding="utf-8")) | {"name": out.name}
    atomic_write(out / METADATA, json.dumps(metadata, indent=4) + "\n")
    page = out / "docs" / "README.md"
    page.write_text(f"# {out.name}\n" + page.read_text(encoding="utf-8").partition("\n")[2], encoding="utf-8")
    (out / WEIGHTS).parent.mkdir(exist_ok=True)
    with atomic_file(out / WEIGHTS) as unfinished:
        shutil.copyfile(source / WEIGHTS, unfinished)


def copy_ensemble(pair: Pair, sources: Mapping[str, Path], out: Path, best: str) -> None:
    """Copy two trained bundles as the members of one bundle to another folder; its metadata come last.

    Args:
        pair: scores of the two, and the postprocessing that they chose.
        sources: name of a member -> folder of its bundle.
        out: folder of the new bundle; a bundle that is there is replaced.
        best: member whose licence, plan and description of the data are those of the new bundle.
    """
    _remove_bundle(out)
    for name, source in sources.items():
        (out / MEMBERS / name).mkdir(parents=True)
        copy_bundle(source, out / MEMBERS / name)
    member = out / MEMBERS / best
    shutil.copytree(member / "docs", out / "docs")
    for file in ("LICENSE", PLAN):
        shutil.copyfile(member / file, out / file)
    metadata = json.loads((member / METADATA).read_text(encoding="utf-8"))
    description = f"{metadata['description']} {_AVERAGED.format(names=' and '.join(sources))}"
    (out / "docs" / "README.md").write_text(_README.format(name=out.name, description=description), encoding="utf-8")
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    kept = {gain.structure for gain in pair.gains if gain.is_kept}
    metadata |= {
        "name": out.name,
        "description": description,
        "eval_metrics": {"mean Dice over the cases of all folds": round(summarise_cases(pair.cases, {})[MEAN].mean, 4)},
        "napari_seg": {
            "members": [f"{MEMBERS}/{name}" for name in sources],
            "largest": [int(number) for number, name in channels.items() if name in kept],
        },
    }
    (out / METADATA).parent.mkdir()
    atomic_write(out / METADATA, json.dumps(metadata, indent=4) + "\n")


def _remove_bundle(out: Path) -> None:
    for name in _ALL:  # a link is removed, not followed
        if (out / name).is_dir() and not (out / name).is_symlink():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)


_AVERAGED = (
    "napari-seg averages the probabilities of {names}, which are complete bundles in members/; python -m monai.bundle "
    "run can't average them, and runs one of them alone."
)

_README = """# {name}

{description}

```bash
napari-seg predict SCAN --model . --trust -o results
```

Each member has a page of its own in its `docs/README.md`. `python -m monai.bundle run` works in the folder of a member,
and gives the result of this member alone.

`plan.json` is that of one member. Before you share the bundle, fill in `docs/data_license.txt` here and in the members,
and authors, copyright and data_source in `configs/metadata.json`, and delete `training/` and, if it is there, `data/`:
they contain images of the data set.
"""
