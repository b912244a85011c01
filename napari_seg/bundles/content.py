"""Files of a bundle that can act, their hashes, and the lines in them that would run; nothing of the bundle runs here.

`consent_hash` is what a user consents to. All files count, whatever their names end with, because the bundle's code can
read any of them as code or data. Only plain data does not count, so that a bundle which is trained further, or that
writes results into its folder, needs no new consent: weights that hold only tensors, images, and the logs and reports
of a training (`_INERT`). They are known by their content, and no loader of pickles takes them.
`content_hash` identifies the program, for `model_digest`, which may leave files out; images and all outputs of a
training count with their names only, and so they did for consent in earlier versions.
The files in `__pycache__` that no name imports, and `.git`, do not count, because napari-seg never reads them; nor do
files that file managers leave (`litter.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.machinery import all_suffixes
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from napari_seg.bundles.config.allowed import is_listed, target_name
from napari_seg.bundles.config.expression import ExpressionError, parse, problems
from napari_seg.bundles.config.read import inference_config, read_config
from napari_seg.bundles.config.resolve import import_of
from napari_seg.bundles.litter import is_litter
from napari_seg.bundles.metadata import MAX_METADATA_BYTES
from napari_seg.bundles.read import with_inner
from napari_seg.bundles.spec import METADATA, Bundle, EnsembleBundle
from napari_seg.bundles.ways import resolver_of
from napari_seg.bundles.weights.files import WEIGHTS_ENDINGS, inspect_weights
from napari_seg.errors import BundleError, one_line

MAX_FILES = 100_000
MAX_BYTES = 2**32
"""Limits for the files of a bundle that count with their content."""

MAX_LINES = 500
"""Limit for the lines of one bundle."""

_MAX_CHUNK = 2000
_MAX_CODE = 2**16
"""Length limits of an expression: in one `CodeLine`, and of all that is listed of it."""

_MAX_LINES_OF_FILE = 20
_MAX_EXPRESSIONS = 5000
_MAX_TEXT = 160
_MAX_SOURCE_BYTES = 2**20

_DATA_ENDINGS = (".bmp", ".dcm", ".gif", ".jpeg", ".jpg", ".nii", ".nii.gz", ".png", ".safetensors", ".tif", ".tiff")
"""Endings of images and of weights in a format that can't hold code."""

_RUN = r"(training|fold_\d+)/(.+/)?[^/]+"
_NIFTI = (b"\x5c\1\0\0", b"\0\0\1\x5c", b"\x1c\2\0\0", b"\0\0\2\x1c")  # length of the header, 348 or 540
_INERT = tuple(
    (re.compile(pattern, re.IGNORECASE), starts)
    for pattern, starts in (
        (r".+\.nii(\.gz)?", _NIFTI),
        (r".+\.png", (b"\x89PNG\r\n\x1a\n",)),
        (r".+\.jpe?g", (b"\xff\xd8\xff",)),
        (r".+\.tiff?", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
        (rf"{_RUN}\.jsonl", (b"{",)),
        (rf"{_RUN}\.html", (b"<!doctype html>",)),
        (rf"{_RUN}\.csv", (b"filename,", b"filename\t")),  # scores that MONAI writes
        (r"(training|fold_\d+)/(.+/)?events\.out\.tfevents\.[^/]+", (b"H" + bytes(7), b"\x18" + bytes(7))),
    )
)
"""Names of images, and of what a training writes, and first bytes, unpacked ones of `.gz`; no pickle has these."""

_HEAD_BYTES = 4096
"""Bytes of a file that are read to recognise it."""

_PICKLE_STARTS = (b"\x80", b"PK\x03\x04")
"""First bytes of a pickle since protocol 2, and of a zip archive."""

_OUTPUT_FOLDER = re.compile(r"training|fold_\d+")
"""Folders into which a training writes; they may be links to a larger disk."""

_ACTING_ENDINGS = {
    *(".py", ".pyw", ".pyc", ".pyo", ".pyd", ".so", ".dylib", ".dll", ".json", ".yaml", ".yml", ".conf", ".cfg"),
    *(".bin", ".ckpt", ".pt", ".pt2", ".pth", ".tar", ".ts", ".pkl", ".pickle", ".sh", ".bat", ".exe", ".zip", ".whl"),
}
"""Endings of files in such a folder that count with their content all the same, unless they are weights."""

_COMPILED = {".pyc", ".pyo", ".pyd", ".so", ".dylib", ".dll"}

_NOTABLE = re.compile(
    r"\b(eval|exec|compile|__import__|getattr|open|system|popen|remove|unlink|rmtree)\s*\(|"
    r"^\s*(import|from)\s+(os|sys|subprocess|shutil|socket|ctypes|pickle|importlib|urllib|http|requests|ftplib|builtins)\b"
    r"|\b(subprocess|ctypes|socket|urllib|requests)\."
)
"""Lines of Python that reach beyond the network: files, other programs, the network connection, other code."""

_LOGGING = re.compile(r"\s*(class|args|kwargs|format|datefmt)\s*[=:]")

_HARMLESS_IMPORTS = {"glob", "math", "monai", "numpy", "os", "re", "torch"}
"""Modules that a config may import; what it calls in them is another expression."""

_KNOWN_ROOMS = re.compile(
    r"(monai\.(data|engines|handlers|inferers|losses|metrics|networks|optimizers|transforms)|torch\.optim)(\.\w+)*"
)
"""Modules with classes outside the list of `allowed.py` that a config usually needs, such as data loaders."""

Cause = Literal[
    "module", "compiled", "expression", "target", "logging", "program", "pickle", "link", "unreadable", "notable"
]

_WHY: dict[Cause, str] = {
    "module": "Python module of the bundle",
    "notable": "notable line of a module; there can be others",
    "compiled": "compiled code of the bundle",
    "expression": "expression that Python evaluates",
    "target": "component that is not one of MONAI's",
    "logging": "logging settings, which MONAI evaluates and napari-seg does not read",
    "program": "program in the format of TorchScript or torch.export",
    "pickle": "pickle that calls functions as it is loaded",
    "link": "link to a file outside the bundle",
    "unreadable": "config that can't be read",
}


@dataclass(frozen=True)
class CodeLine:
    """A line that would run, in printable text.

    Attributes:
        file: path in the bundle.
        line: number of the line, from 1; 0 if the file has no lines, or the line was not found.
        text: content of the line; a long expression has several lines.
        cause: what makes it code.
        is_used: whether a segmentation reads the file; configs of a training, for example, are only listed.
    """

    file: str
    line: int
    text: str
    cause: Cause
    is_used: bool = True

    @property
    def why(self) -> str:
        """Reason why it is code, in words."""
        return _WHY[self.cause]

    @property
    def place(self) -> str:
        """File and number of the line."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class BundleFile:
    """A file of a bundle.

    Attributes:
        path: where it is.
        name: path in the bundle, with "/" on every system.
        is_data: whether `content_hash` counts it with its name only.
        may_change: whether `consent_hash` leaves it out.
        target: where it leads, for a link to a folder or to a file outside the bundle; "" for all other files.
        leads_out: whether it is a file outside the bundle.
    """

    path: Path
    name: str
    is_data: bool
    may_change: bool
    target: str = ""
    leads_out: bool = False


def files_of(root: Path) -> list[BundleFile]:
    """Return the files of a bundle, sorted by name, without those that file managers leave.

    Raises:
        BundleError: `bundle.link`, a file with code, or a folder, is a link out of the bundle, or a file is a pipe or
            a device; `bundle.too_large`, there are too many files, or too much content.
    """
    found: list[BundleFile] = []
    size = 0
    for path in _walk(root, root.resolve()):
        if is_litter(path) and not _is_tar(_head(path)):
            continue
        name = path.relative_to(root).as_posix()
        try:
            status = path.stat()
        except OSError:  # a broken link, or a file that only others may read
            found.append(BundleFile(path, name, True, True))
            continue
        if stat.S_ISDIR(status.st_mode):  # a link; the files in its target are found there
            found.append(BundleFile(path, name, True, True, target=os.readlink(path)))
            continue
        if not stat.S_ISREG(status.st_mode):
            raise _link(root, f"{name} is a pipe, a socket or a device")
        is_tensors = _is_tensors(path, status)
        is_data = is_tensors or is_output(name) or name.lower().endswith(_DATA_ENDINGS)
        is_empty = status.st_size == 0 and is_output(name)  # such as a lock of a training
        may_change = is_tensors or is_empty or _is_inert(path, name)
        target = ""
        if path.is_symlink() and not (real := path.resolve()).is_relative_to(root.resolve()):
            target = str(real)
            if not is_data:
                raise _link(root, f"{name} is a link to a file outside the bundle")
        size += 0 if is_data else status.st_size
        found.append(BundleFile(path, name, is_data, may_change, target, leads_out=bool(target)))
        if len(found) > MAX_FILES or size > MAX_BYTES:
            raise BundleError(
                "bundle.too_large",
                f"bundle {root.name!r} has more than {MAX_FILES} files, or {MAX_BYTES // 2**30} GiB in addition to its "
                "weights; expected a folder with a model alone; move other files out of it",
            )
    return sorted(found, key=lambda file: file.name)


def content_hash(bundle: Bundle, without: Collection[str] = ()) -> str:
    """Return the SHA-256 of a bundle's program, as 64 hexadecimal digits: see `model_digest` for its data.

    Args:
        bundle: any bundle.
        without: names of files that do not count; none for a consent.

    Raises:
        BundleError: as for `files_of`; `bundle.unreadable`, a file can't be read.
    """
    counted = [file for file in files_of(bundle.root) if file.name not in without]
    return _hash_of(bundle, [(file, not file.is_data) for file in counted])


def consent_hash(bundle: Bundle) -> str:
    """Return the SHA-256 of everything in a bundle that can act, as 64 hexadecimal digits.

    Args:
        bundle: any bundle.

    Raises:
        BundleError: as for `files_of`; `bundle.unreadable`, a file can't be read.
    """
    counted = [file for file in files_of(bundle.root) if file.target or not file.may_change]
    return _hash_of(bundle, [(file, not file.may_change) for file in counted])


def _hash_of(bundle: Bundle, files: list[tuple[BundleFile, bool]]) -> str:
    """Return the SHA-256 of files, each with whether its content counts, and not only its name."""
    digest = hashlib.sha256()
    for file, counts in files:
        content = ""
        if counts:
            try:
                with file.path.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise BundleError(
                    "bundle.unreadable",
                    f"{file.name} of bundle {bundle.root.name!r} can't be read ({error.strerror}); expected a readable "
                    "file, because its content decides whether the bundle is the one that was trusted",
                ) from error
        digest.update(json.dumps([file.name, content, file.target]).encode() + b"\n")
    return digest.hexdigest()


def code_lines(bundle: Bundle) -> list[CodeLine]:
    """Return the code of a bundle that can run beyond napari-seg's control; that of unused files comes last.

    Nothing is evaluated or imported. Expressions and targets are listed whole. A module is one entry, because all of
    its lines run; notable lines, which name files, other programs or the network, follow as hints; they are not all.

    Args:
        bundle: any bundle.

    Raises:
        BundleError: as for `files_of`.
    """
    if isinstance(bundle, EnsembleBundle):
        each = [(os.path.relpath(one.root, bundle.root.resolve()), code_lines(one)) for one in bundle.members]
        found = [replace(line, file=Path(name, line.file).as_posix()) for name, lines in each for line in lines]
        return sorted(found, key=lambda line: not line.is_used)[:MAX_LINES]
    order = {"module": 0, "expression": 1, "target": 1, "notable": 3}
    used = _used_configs(bundle)
    lines = [line for file in files_of(bundle.root) for line in _lines_of(file, used)]
    return sorted(lines, key=lambda line: (not line.is_used, order.get(line.cause, 2)))[:MAX_LINES]


def _walk(root: Path, real_root: Path) -> Iterator[Path]:
    """Yield all files and all links to folders; the folders of a training are followed to wherever they lead."""

    def refuse(error: OSError) -> None:
        raise BundleError(
            "bundle.unreadable",
            f"a folder of bundle {root.name!r} can't be listed ({error.strerror}); expected a folder that you may read",
        ) from error

    tops, allowed = [root], [real_root]
    while tops:
        for folder, subfolders, names in os.walk(tops.pop(), onerror=refuse):
            is_cache = "__pycache__" in Path(folder).relative_to(root).parts
            for name in list(subfolders):
                path = Path(folder, name)
                if name == ".git" and not path.is_symlink():
                    subfolders.remove(name)
                    continue
                real = path.resolve()
                if path.is_symlink() and ".git" in real.parts:
                    raise _link(root, f"{path.relative_to(root).as_posix()} is a link into .git")
                if not any(real.is_relative_to(inside) for inside in allowed):
                    if path.parent != root or not _OUTPUT_FOLDER.fullmatch(name):
                        raise _link(
                            root, f"{path.relative_to(root).as_posix()} is a link to a folder outside the bundle"
                        )
                    allowed.append(real)
                    tops.append(path)
                if path.is_symlink():
                    yield path
            yield from (Path(folder, name) for name in names if not is_cache or _is_importable(name))


def _is_importable(name: str) -> bool:
    """Return whether an import can reach a file by its name; Python's own compiled files have two dots."""
    suffix = next((suffix for suffix in all_suffixes() if name.endswith(suffix)), "")
    return suffix != "" and "." not in name.removesuffix(suffix)


def _link(root: Path, found: str) -> BundleError:
    return BundleError(
        "bundle.link",
        f"{found} (bundle {one_line(root.name, _MAX_TEXT)!r}); expected all code inside the folder, because what lies "
        "outside can change unseen; copy the bundle with the files that its links lead to",
    )


def _is_tensors(path: Path, status: os.stat_result) -> bool:
    """Return whether a file is weights of torch that hold only tensors."""
    state = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return path.suffix.lower() in WEIGHTS_ENDINGS and _weights_kind(path, state) == "data"


def _is_inert(path: Path, name: str) -> bool:
    """Return whether a file is an image, or a log or report of a training, by its name and its first bytes."""
    starts = next((starts for pattern, starts in _INERT if pattern.fullmatch(name)), None)
    if starts is None or _is_tar(head := _head(path)):
        return False
    return (_unpacked(head) if name.lower().endswith(".gz") else head).startswith(starts)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _is_tar(head: bytes) -> bool:
    """Return whether a file begins as a tar archive, in which torch once kept pickles; it can begin with any name."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _unpacked(head: bytes) -> bytes:
    """Return the first bytes of a gzip file's content; b"" for any other file."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 16)
    except zlib.error:
        return b""


def is_output(name: str) -> bool:
    """Return whether a training wrote a file, which it may do again at any time, and no program reads it as code."""
    return (
        _OUTPUT_FOLDER.fullmatch(name.partition("/")[0]) is not None
        and Path(name).suffix.lower() not in _ACTING_ENDINGS
    )


@lru_cache(maxsize=10_000)
def _weights_kind(path: Path, state: tuple[int, ...]) -> str:
    """Return what a weights file holds; a training leaves thousands, so each is inspected once for each state."""
    try:
        return inspect_weights(path).kind
    except OSError:
        return "unknown"


def _used_configs(bundle: Bundle) -> set[Path] | None:
    """Return the configs that a segmentation reads, those of its inner bundles too; None if it is not known which.

    They are the inference config, the metadata, the files that macros take values from, and the files in `configs`
    that the inference config names anywhere, because its expressions may read them.
    """
    used: set[Path] = set()
    try:
        for each in with_inner(bundle):
            path = inference_config(each.root)
            text = "\n".join(_read_lines(path))
            used |= {path, each.root / METADATA, *resolver_of(each).files}
            used |= {one for one in (each.root / "configs").iterdir() if one.name in text}
    except (BundleError, OSError):
        return None
    return {path.resolve() for path in used}


def _lines_of(file: BundleFile, used: set[Path] | None) -> Iterator[CodeLine]:
    suffix = file.path.suffix.lower()
    name = one_line(file.name, _MAX_TEXT)
    if file.leads_out:
        yield CodeLine(name, 0, one_line(f"-> {file.target}", _MAX_TEXT), "link")
    elif file.target:
        return
    if suffix in (".py", ".pyw"):
        yield from _of_module(file.path, name)
    elif suffix in _COMPILED:
        yield CodeLine(name, 0, "", "compiled")
    elif suffix in (".json", ".yaml", ".yml"):
        is_used = used is None or file.path.resolve() in used
        lines = [replace(line, is_used=is_used) for line in _of_config(file.path, name)]
        if is_used or file.path.parent.name == "configs":
            yield from lines
        else:  # what can't be read is no config
            yield from (line for line in lines if line.cause != "unreadable")
    elif suffix == ".conf":
        yield from (replace(line, is_used=False) for line in _matching(file.path, name, _LOGGING, "logging"))
    elif not file.may_change and (suffix in WEIGHTS_ENDINGS or _head(file.path).startswith(_PICKLE_STARTS)):
        content = inspect_weights(file.path)
        if content.kind == "program":
            yield CodeLine(name, 0, "", "program")
        for call in content.calls:
            yield CodeLine(name, 0, one_line(call, _MAX_TEXT), "pickle")


def _of_module(path: Path, name: str) -> Iterator[CodeLine]:
    count = len(_read_lines(path))
    if count:
        more = "more than " * (path.stat().st_size > _MAX_SOURCE_BYTES)
        yield CodeLine(name, 0, f"all lines run ({more}{count})", "module")
    yield from _matching(path, name, _NOTABLE, "notable")


def _matching(path: Path, name: str, pattern: re.Pattern[str], cause: Cause) -> Iterator[CodeLine]:
    found = ((n, line) for n, line in enumerate(_read_lines(path), 1) if pattern.search(line[:_MAX_CHUNK]))
    for _, (number, line) in zip(range(_MAX_LINES_OF_FILE), found, strict=False):
        yield CodeLine(name, number, one_line(line, _MAX_CHUNK), cause)


def _read_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        return file.read(_MAX_SOURCE_BYTES).decode("utf-8", errors="replace").splitlines()


def _of_config(path: Path, name: str) -> Iterator[CodeLine]:
    try:
        max_bytes = MAX_METADATA_BYTES if path.parts[-2:] == METADATA.parts else None
        config = read_config(path) if max_bytes is None else read_config(path, max_bytes)
        code = list(islice(_code_in(config), MAX_LINES))
    except Exception as error:  # a damaged file can raise anything
        yield CodeLine(name, 0, one_line(f"{type(error).__name__}: {error}", _MAX_TEXT), "unreadable")
        return
    content = "\n".join(_read_lines(path))
    last = 0
    for text, cause in code:
        needle = re.split(r"[\"'\\\n]", text, maxsplit=1)[0] or text[:1]
        found = content.find(needle, last)
        found = content.find(needle) if found < 0 else found
        line = content.count("\n", 0, found) + 1 if found >= 0 else 0
        for start in range(0, min(len(text), _MAX_CODE), _MAX_CHUNK):  # whole, because the end can hold what matters
            yield CodeLine(name, line, one_line(text[start : start + _MAX_CHUNK], _MAX_CHUNK), cause)
        last = max(found, 0)


def _code_in(value: Any) -> Iterator[tuple[str, Cause]]:
    """Yield the expressions and the targets in plain data that are not MONAI's, in the order of the file."""
    waiting: list[Any] = [value]
    seen: set[int] = set()
    harmless: set[str] = set()
    while waiting:
        entry = waiting.pop()
        if len(harmless) > _MAX_EXPRESSIONS:
            yield f"$ (more than {_MAX_EXPRESSIONS} expressions)", "expression"
            return
        if isinstance(entry, str):
            if entry.startswith("$") and entry not in harmless:
                if _is_harmless(entry):
                    harmless.add(entry)
                else:
                    yield entry, "expression"
            continue
        if not isinstance(entry, dict | list) or id(entry) in seen:
            continue
        seen.add(id(entry))  # aliases in YAML can repeat one entry any number of times
        if isinstance(entry, dict):
            target = entry.get("_target_")
            if target is not None and not _is_known_target(str(target)):
                yield str(target), "target"
            waiting += [part for key, part in reversed(entry.items()) if key != "_target_"]
        else:
            waiting += reversed(entry)


def _is_harmless(text: str) -> bool:
    """Return whether an expression only imports a common module, or passes the check of `expression.py`."""
    if (imported := import_of(text)) is not None:
        return imported[1] in _HARMLESS_IMPORTS
    try:
        return not problems(parse(text), is_listed)
    except ExpressionError:
        return False


def _is_known_target(target: str) -> bool:
    """Return whether a target is a class of MONAI's or torch's that does what a config usually needs."""
    module, _, name = target.rpartition(".")
    if len(target) > _MAX_TEXT or not name[:1].isupper():
        return target_name(target) != ""
    return not module or _KNOWN_ROOMS.fullmatch(module) is not None or target_name(target) != ""
