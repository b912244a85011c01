#!/usr/bin/env python3
"""Write napari_seg/bundles/store/catalogue.json from a clone of the MONAI Model Zoo.

git clone https://github.com/Project-MONAI/model-zoo
python scripts/catalogue.py model-zoo

Only facts are taken: names, versions, structures, modality and topics from each bundle's `metadata.json`, digests from
`models/model_info.json`, how its config runs, and the names and class of its licences. What these files don't say, such
as sizes, stays empty.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.store.licence import kind_of, name_of, names_in
from napari_seg.bundles.ways import Way, way_of

CATALOGUE = Path(__file__).parents[1] / "napari_seg" / "bundles" / "store" / "catalogue.json"

REFUSED = {
    "brats_mri_axial_slices_generative_diffusion": "generation",
    "brats_mri_generative_diffusion": "generation",
    "breast_density_classification": "classification",
    "classification_template": "classification",
    "endoscopic_inbody_classification": "classification",
    "lung_nodule_ct_detection": "detection",
    "maisi_ct_generative": "generation",
    "mednist_gan": "generation",
    "mednist_reg": "registration",
    "pathology_nuclei_classification": "classification",
    "pathology_nuclei_segmentation_classification": "instances",
    "pathology_nuclick_annotation": "prompts",
    "pathology_tumor_detection": "classification",
    "valve_landmarks": "landmarks",
    "vista2d": "instances",
    "vista3d": "prompts",
}
"""Bundles that do not segment a scan into classes by themselves, and what they do instead."""

NOTES = {"spleen_deepedit_annotation": "it takes clicks in MONAI Label; here it runs without any, as its config does"}
"""What a user has to know before the download."""

TOPICS = re.findall(
    r"\w+",
    "abdomen abdominal bladder bone brain breast cardiac colon endoscopy heart kidney liver lung nodule nuclei "
    "pancreas pediatric polyp prostate renal spleen tumor valve vertebra vessel",
)
"""Words by which users search; those that a description holds are facts on the model."""

MAX_DATA = 80
"""Length limit of the source of the training data; longer ones are sentences."""

MODALITIES = {"MRI": "MR", "mri": "MR", "regular": "RGB", "Mammogram": "MG", "none": ""}
"""Words of the zoo, and the words of the catalogue."""


def git(repository: str, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def entry(repository: str, name: str, archives: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of one bundle."""
    paths = git(repository, "ls-tree", "-r", "--name-only", "HEAD", f"models/{name}/").split()

    def read(path: str) -> str:
        return git(repository, "show", f"HEAD:models/{name}/{path}") if f"models/{name}/{path}" in paths else ""

    metadata = json.loads(read("configs/metadata.json"))
    data_format = metadata.get("network_data_format", {})
    image = next(iter(data_format.get("inputs", {}).values()), {})
    output = next(iter(data_format.get("outputs", {}).values()), {})
    names = output.get("channel_def") or output.get("label_def") or {}
    archive = archives.get(f"{name}_v{metadata['version']}", {})
    modality = image.get("modality") or ""
    data = metadata.get("data_source", "").strip()
    channels = list((image.get("channel_def") or {}).values())
    about = f"{metadata.get('description', '')} {metadata.get('task', '')}".lower()
    way = way_in(repository, name) if name not in REFUSED else Way("refused", needs_consent=False)
    return {
        "name": name,
        "title": metadata.get("name") or name,
        "version": metadata["version"],
        "finds": [] if name in REFUSED else [text for text in names.values() if text.lower() != "background"],
        "modality": MODALITIES.get(modality, modality),
        "channels": channels if len(channels) > 1 else [],
        "size_bytes": None,
        "licence": name_of(read("LICENSE")),
        "licence_kind": kind_of(read("LICENSE")),
        "data": data if len(data) <= MAX_DATA else "",
        "data_licence": " and ".join(names_in(read("docs/data_license.txt"))),
        "topics": [topic for topic in TOPICS if topic in about],
        "way": way.kind,
        "needs_consent": way.needs_consent,
        "note": NOTES.get(name, ""),
        "refused": REFUSED.get(name, ""),
        "source": f"hf:MONAI/{name}",
        "archive_digest": f"sha1:{archive['checksum']}" if archive else "",
    }


def way_in(repository: str, name: str) -> Way:
    """Return how a bundle runs; without its weights, and nothing of it runs."""
    with TemporaryDirectory() as folder:
        archive = Path(folder, "bundle.tar")
        git(repository, "archive", f"--output={archive}", "HEAD", f"models/{name}")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return way_of(read_bundle(Path(folder, "models", name)))


def main(repository: str) -> None:
    archives = json.loads(git(repository, "show", "HEAD:models/model_info.json"))
    folders = git(repository, "ls-tree", "-d", "--name-only", "HEAD", "models/").split()
    catalogue = {
        "from": "https://github.com/Project-MONAI/model-zoo",
        "revision": git(repository, "rev-parse", "HEAD").strip(),
        "date": git(repository, "show", "-s", "--format=%cs", "HEAD").strip(),
        "entries": [entry(repository, folder.removeprefix("models/"), archives) for folder in folders],
    }
    CATALOGUE.write_text(json.dumps(catalogue, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
