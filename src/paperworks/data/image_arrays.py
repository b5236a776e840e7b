"""Images kept as arrays: `.npz` archives and MNIST's IDX files. Nothing is written to disk or unpickled."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from paperworks.data.images import ImageData, published_split, require_memory
from paperworks.data.sources import MAX_BYTES, Source

MOST_CLASSES = 2**16
"""Whole labels below this are taken for class indices, larger ones for identifiers."""

UNREADABLE = (
    *(ValueError, KeyError, OSError, EOFError, RuntimeError, NotImplementedError),  # RuntimeError: it wants a password
    *(zlib.error, zipfile.BadZipFile),
)

Part = tuple[np.ndarray, np.ndarray, bool]
"""Images (N, C, H, W) in [0, 1] or uint8, raw labels (N,), and whether it is a published test part."""


def assemble(source: Source, name: str, parts: Sequence[Part], classes: list[str] | None = None) -> ImageData:
    """The parts as one `ImageData`, with the split they publish where there are both kinds."""
    shapes = {images.shape[1:] for images, _, _ in parts}
    if len(shapes) > 1:
        raise source.error(f"parts with images of shapes {sorted(shapes)}", "one shape in all parts")
    require_memory(source, (sum(len(images) for images, _, _ in parts), *shapes.pop()))
    for images, labels, _ in parts:
        if len(images) != len(labels) or not len(images):
            raise source.error(f"{len(images)} images with {len(labels)} labels", "as many labels, at least one")
    tensors = []
    for images, _, _ in parts:
        made = torch.from_numpy(np.array(images, order="C")).to(torch.float32)
        tensors.append(made.div_(255) if images.dtype == np.uint8 else made)
    labels, names = _labels(source, np.concatenate([labels for _, labels, _ in parts]), classes)
    held = torch.cat([torch.full((len(images),), test) for images, _, test in parts])
    return ImageData(name, torch.cat(tensors), torch.from_numpy(labels), names, published_split(held))


def _labels(source: Source, raw: np.ndarray, classes: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """Labels as int64 indices into class names.

    Whole numbers from 0 stay as they are (so a missing class does not shift the others); text, negative and very large
    numbers are numbered in sorted order, their own text naming the class.
    """
    if raw.dtype.kind == "f" and np.array_equal(raw, np.floor(raw)):
        raw = raw.astype(np.int64)
    if raw.dtype.kind not in "biuSU":
        raise source.error(f"labels of dtype {raw.dtype} that are not whole", "whole numbers or text")
    if raw.dtype.kind in "SU" or int(raw.min()) < 0 or int(raw.max()) >= MOST_CLASSES:
        distinct, labels = np.unique(raw, return_inverse=True)
        if raw.dtype.kind in "SU" or classes is None:
            return labels.reshape(-1).astype(np.int64), [_text(v) for v in distinct.tolist()]
        raise source.error(f"labels from {raw.min()} to {raw.max()}", f"an index into {len(classes)} classes")
    labels = raw.astype(np.int64)
    names = [str(i) for i in range(int(labels.max()) + 1)] if classes is None else classes
    if int(labels.max()) >= len(names):
        raise source.error(f"labels up to {labels.max()}", f"an index into {len(names)} classes")
    return labels, names


NPZ_KEYS: tuple[tuple[tuple[str, str, bool], ...], ...] = (
    (("x_train", "y_train", False), ("x_val", "y_val", False), ("x_test", "y_test", True)),
    (
        ("train_images", "train_labels", False),
        ("val_images", "val_labels", False),
        ("test_images", "test_labels", True),
    ),
    (("x", "y", False),),
    (("images", "labels", False),),
)


def read_npz(source: Source) -> ImageData:
    """`npz:PATH`: arrays `x`/`y`, `images`/`labels`, or `x_train`/`y_train` with `x_val`/`y_val` and `x_test`/`y_test`
    (also as `train_images`/`train_labels`, ...), names in any case; a test part is the published split. An array
    `classes` of text names the classes.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels; `?layout=nhwc` or `nchw` decides where
    both fit, and admits other numbers of channels. uint8 and uint16 are divided by their maximum, floats must lie in
    [0, 1]; `?scale=255` divides by a number of your own. Labels are (N,), (N, 1) or one-hot (N, K).
    """
    layout, scale = source.choice("layout", ("nhwc", "nchw")), source.number("scale")
    path = source.location
    try:
        opened = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise source.error(f"no zip archive ({error})", "a .npz file") from error
    with opened as archive:
        members = {m.filename.removesuffix(".npy").lower(): m for m in archive.infolist()}
        rows = ([(x, y, test) for x, y, test in row if x in members and y in members] for row in NPZ_KEYS)
        named = next(filter(None, rows), None)
        if named is None:
            wanted = "x/y, images/labels, x_train/y_train or train_images/train_labels"
            raise source.error(f"the arrays {', '.join(sorted(members)) or 'none'}", wanted)
        keys = [key for x, y, _ in named for key in (x, y)] + ["classes"] * ("classes" in members)
        total = sum(members[key].file_size for key in keys)
        if total > MAX_BYTES:
            raise source.error(f"{total:,} bytes once inflated", f"at most {MAX_BYTES:,}")
        arrays = {key: _read_npy(source, archive, members[key]) for key in keys}
    parts = [
        (_npz_images(source, x, arrays[x], layout, scale), _npz_labels(source, y, arrays[y]), test)
        for x, y, test in named
    ]
    classes = [_text(c) for c in arrays["classes"].tolist()] if "classes" in arrays else None
    return assemble(source, path.stem, parts, classes)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _read_npy(source: Source, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array: what its header says is checked against the bytes before an array of that size is made."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with archive.open(member) as stream:
            shape, fortran, dtype = readers[np.lib.format.read_magic(stream)](stream)
            content = stream.read(MAX_BYTES)
    except UNREADABLE as error:
        found = f"an unreadable array {member.filename} ({error})"
        raise source.error(found, "an array saved by numpy.savez") from error
    if dtype.hasobject or dtype.fields is not None or not dtype.itemsize:
        raise source.error(f"the array {member.filename} of dtype {dtype}", "numbers or fixed-length text, no objects")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise source.error(f"{len(content)} bytes in {member.filename} for {dtype} {shape}", "as many as that takes")
    if not content:
        raise source.error(f"no value in {member.filename} of shape {shape}", "at least one image")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _npz_images(source: Source, key: str, x: np.ndarray, layout: str | None, scale: float | None) -> np.ndarray:
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4:
        last, first = layout == "nhwc" or x.shape[3] in (1, 3, 4), layout == "nchw" or x.shape[1] in (1, 3, 4)
        if layout is None and last == first:
            found = f"{key} of shape {x.shape}, channels " + ("in either place" if last else "in no place")
            raise source.error(found, "1, 3 or 4 channels in one place, or ?layout=nhwc or ?layout=nchw")
        if layout == "nhwc" or (layout is None and last):
            x = x.transpose(0, 3, 1, 2)
    else:
        raise source.error(f"{key} of shape {x.shape}", "(N, H, W), (N, H, W, C) or (N, C, H, W)")
    if x.dtype.kind not in "buif":
        raise source.error(f"{key} of dtype {x.dtype}", "uint8, uint16 or floats in [0, 1]")
    if scale is None and x.dtype == np.uint8:
        return x
    if scale is None and x.dtype.kind in "ui" and x.dtype != np.uint16:
        raise source.error(f"{key} of dtype {x.dtype}, values up to {x.max(initial=0)}", "uint8 or uint16, or ?scale=")
    divisor = scale if scale is not None else 65535 if x.dtype == np.uint16 else 1
    made = x.astype(np.float64) / divisor
    if not (np.isfinite(made).all() and made.min(initial=0) >= 0 and made.max(initial=0) <= 1):
        found = f"{key} with values from {x.min()} to {x.max()}, divided by {divisor:g}"
        raise source.error(found, "[0, 1]; ?scale=255 for values up to 255")
    return made.astype(np.float32)


def _npz_labels(source: Source, key: str, y: np.ndarray) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.dtype.kind in "buif" and ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all():
        y = y.argmax(1)
    if y.ndim != 1:
        raise source.error(f"{key} of shape {y.shape}", "(N,), (N, 1) or one-hot (N, K)")
    return y


IDX_NAME = re.compile(r"(?P<set>.*?)(?P<part>train|t10k|test)-images[-.]idx3-ubyte(\.gz)?")


def read_idx(source: Source) -> ImageData:
    """`idx:PATH`: MNIST's files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`, plain or gzip.

    PATH is a folder with either part or both (then `t10k` is the published split), or one file of images whose labels
    lie beside it. Magic numbers and counts are checked.
    """
    path = source.location
    if path.is_dir():
        matches = [m for p in sorted(path.iterdir()) if (m := IDX_NAME.fullmatch(p.name))]
        sets = sorted({m["set"] for m in matches})
        if len(sets) > 1:
            raise source.error(
                f"the data sets {', '.join(repr(s) for s in sets)}", "one, or the path of one images file"
            )
        # sorted: a plain file stands before its .gz, and is taken
        files = {m["part"]: path / m.string for m in reversed(matches)}
    else:
        match = IDX_NAME.fullmatch(path.name)
        files = {} if match is None else {match["part"]: path}
    if not files:
        raise source.error(f"no such file at {path}", "train-images-idx3-ubyte or t10k-images-idx3-ubyte (or .gz)")
    parts: list[Part] = []
    for part, images in sorted(files.items(), reverse=True):
        labels = _idx_labels_beside(source, images)
        parts.append((_read_idx_file(source, images, 3)[:, None], _read_idx_file(source, labels, 1), part != "train"))
        if len(parts[-1][0]) != len(parts[-1][1]):
            found = f"{len(parts[-1][0])} images in {images.name} and {len(parts[-1][1])} labels in {labels.name}"
            raise source.error(found, "as many labels as images")
    return assemble(source, path.name if path.is_dir() else path.parent.name, parts)


def _idx_labels_beside(source: Source, images: Path) -> Path:
    plain = images.name.removesuffix(".gz").replace("-images", "-labels").replace("idx3", "idx1")
    for name in (plain, f"{plain}.gz"):
        if (images.parent / name).exists():
            return images.parent / name
    raise source.error(f"{images.name} without labels", f"{plain} or {plain}.gz beside it")


def _read_idx_file(source: Source, path: Path, dims: int) -> np.ndarray:
    """The uint8 array of an IDX file: 0, 0, 8 (uint8), `dims`, then the sizes as big-endian int32, then the values."""
    content = source.read(path)
    if content[:4] != bytes((0, 0, 8, dims)):
        raise source.error(f"{path.name} starting with {content[:4].hex(' ')}", bytes((0, 0, 8, dims)).hex(" "))
    shape = np.frombuffer(content[4 : 4 + 4 * dims].ljust(4 * dims, b"\0"), ">i4").tolist()
    values = len(content) - 4 - 4 * dims
    if min(shape) < 1 or math.prod(shape) != values:
        raise source.error(
            f"{max(values, 0)} values in {path.name} for the shape {tuple(shape)}", "as many as that takes"
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)
