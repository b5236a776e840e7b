"""CIFAR-10 and CIFAR-100 in their Python form: a folder of pickled batches, or the archive it came in.

A batch is a pickled dict (Python 2, so with bytes for keys): b"data" uint8 (N, 3072), a row being the red, the green
and the blue plane of a 32x32 image, each row by row, and b"labels" (CIFAR-100: b"fine_labels" of 100 classes and
b"coarse_labels" of 20), a list of N numbers. CIFAR-10 has `data_batch_1` to `_5`, `test_batch` and `batches.meta` with
the names of the classes; CIFAR-100 has `train`, `test` and `meta`.
"""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from paperworks.data import pickles
from paperworks.data.image_arrays import Part, assemble
from paperworks.data.images import ImageData
from paperworks.data.sources import Source

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FILES = {10: [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], 100: ["train", "test"]}
META = {10: "batches.meta", 100: "meta"}
NAMES = {name for number in (10, 100) for name in (*FILES[number], META[number])}
FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
FILE_BYTES, ARCHIVE_BYTES = 2**28, 2**29
"""Most bytes of one file (the largest, CIFAR-100's `train`, has 155 million) and of an archive once inflated."""

Files = Mapping[str, Callable[[], bytes]]
"""What is there, by file name, each read when called."""


def read_cifar(source: Source) -> ImageData:
    """`cifar:PATH`: the folder with the batches, the folder above it, or the `.tar.gz` (read in place, never unpacked).

    `?labels=coarse` takes the 20 superclasses of CIFAR-100. The test batch is the published split. Batches that are not
    there are named in one warning.
    """
    path = source.location
    files = _in_folder(source) if path.is_dir() else _in_archive(source)
    present = {number: [name for name in FILES[number] if name in files] for number in FILES}
    if not any(present.values()) or all(present.values()):
        found = f"files of both CIFAR-10 and CIFAR-100 in {path}" if all(present.values()) else f"no batch in {path}"
        raise source.error(found, "data_batch_1 to _5 and test_batch, or train and test")
    number = 10 if present[10] else 100
    kind = source.choice("labels", ("fine", "coarse"))
    if number == 10 and kind is not None:
        raise source.error(f"labels={kind} for CIFAR-10", "no such option: only CIFAR-100 has two sets of labels")
    missing = [name for name in FILES[number] if name not in files]
    if missing:
        warnings.warn(f"{source.spec!r}: CIFAR-{number} without {', '.join(missing)}", UserWarning, stacklevel=4)
    key = "labels" if number == 10 else f"{kind or 'fine'}_labels"
    parts = [_batch(source, name, files[name](), key) for name in present[number]]
    return assemble(source, f"CIFAR-{number}", parts, _class_names(source, files, number, kind or "fine"))


def _in_folder(source: Source) -> Files:
    found: dict[str, Callable[[], bytes]] = {}
    for folder in (source.location, *(source.location / name for name in FOLDERS)):
        for name in NAMES:
            if name not in found and (folder / name).is_file():
                found[name] = partial(source.read, folder / name, limit=FILE_BYTES)
    return found


def _in_archive(source: Source) -> Files:
    """The batches in a tar archive: regular members of known names, in memory; nothing reaches the disk."""
    content = io.BytesIO(source.read(source.location, limit=ARCHIVE_BYTES))
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=content, mode="r:") as archive:
            for member in archive:
                name = Path(member.name).name
                if name not in NAMES or not member.isreg():
                    continue
                if member.size > FILE_BYTES or name in found:
                    problem = "twice" if name in found else f"of {member.size:,} bytes"
                    raise source.error(
                        f"{name} {problem} in the archive", f"each once, of at most {FILE_BYTES:,} bytes"
                    )
                stream = archive.extractfile(member)
                assert stream is not None  # a regular member has content
                found[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise source.error(f"no readable archive ({error})", "the folder of batches or the .tar.gz") from error
    return {name: partial(bytes, data) for name, data in found.items()}


def _batch(source: Source, name: str, content: bytes, key: str) -> Part:
    batch = _unpickle(source, name, content)
    data, labels = batch.get("data"), batch.get(key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise source.error(f"data {found} in {name}", "an array uint8 (N, 3072)")
    if not isinstance(labels, list | np.ndarray) or len(labels) != len(data):
        found = f"no {key}" if labels is None else f"{len(labels)} {key}"
        raise source.error(
            f"{found} in {name} with {len(data)} images and the keys {sorted(batch)}", "as many as images"
        )
    return data.reshape(-1, 3, 32, 32), np.asarray(labels), name in ("test_batch", "test")


def _class_names(source: Source, files: Files, number: int, kind: str) -> list[str]:
    classes = 20 if kind == "coarse" else number
    if META[number] not in files:
        return CLASSES if number == 10 else [str(i) for i in range(classes)]
    names = _unpickle(source, META[number], files[META[number]]()).get(
        "label_names" if number == 10 else f"{kind}_label_names"
    )
    if not isinstance(names, list) or len(names) != classes:
        found = "none" if names is None else f"{len(names)}"
        raise source.error(f"{found} names of classes in {META[number]}", f"a list of {classes}")
    return [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names]


def _unpickle(source: Source, name: str, content: bytes) -> dict[str, Any]:
    """The dict in a batch, its keys as text whichever Python wrote it."""
    value = pickles.loads(content, name=f"{source.spec!r}: {name}")
    if not isinstance(value, dict):
        raise source.error(f"a {type(value).__name__} in {name}", "a dict")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): item for key, item in value.items()}
