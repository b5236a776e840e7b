"""Small picture classification without downloads, and mini-ImageNet split inside its classes.

`picture_crops` cuts grey squares out of the photographs and textures that scikit-image carries: which picture is a
square from? Every square is standardised, so that brightness and contrast tell nothing; training squares come from the
left 60 % of each picture and test squares from its right 35 %, so that none overlap.

`read_mini_imagenet` lists the pictures of mini-ImageNet in either of its layouts. Its usual split (64 / 16 / 20
classes) is one for few-shot learning, in which no class is in two parts; for plain classification the parts are pooled
and every class is divided.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from paperworks.data.image_folders import SUFFIXES
from paperworks.data.sources import walk_files

__all__ = [
    "PICTURES",
    "Crops",
    "ListedPictures",
    "grey_picture",
    "listing_signature",
    "picture_crops",
    "read_mini_imagenet",
]

PICTURES = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
    "immunohistochemistry", "moon", "page", "retina", "rocket",
)  # fmt: skip
"""The classes: pictures that come with scikit-image."""
LEFT, RIGHT = 0.60, 0.65
"""Training squares end before the one, test squares begin at the other, as shares of the width."""
LEAST_DEVIATION = 0.02
"""Squares that are flatter than this (grey in [0, 1]) are drawn again: empty sky has nothing to be told by."""


@dataclass(frozen=True, eq=False)
class Crops:
    """Labelled squares.

    Attributes:
        images: float32 (N, 1, size, size), each of mean 0 and deviation 1.
        labels: int64 (N,), each an index into `classes`.
        classes: names of the pictures.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = PICTURES


@cache
def grey_picture(name: str) -> Tensor:
    """A picture of scikit-image as float32 (H, W) in [0, 1]. Raises ImportError that says what to install."""
    try:
        from skimage import color, data
    except ImportError as error:
        raise ImportError("the pictures are scikit-image's: pip install scikit-image") from error
    pixels = getattr(data, name)()
    grey = color.rgb2gray(pixels[..., :3]) if pixels.ndim == 3 else pixels / 255.0
    return torch.from_numpy(grey.copy()).float()


def picture_crops(n: int, size: int, generator: torch.Generator, *, held_out: bool = False) -> Crops:
    """`n` squares of `size` pixels, each class equally often to less than one, in random order.

    Args:
        n: how many.
        size: side in pixels, at most the narrowest part (135 of the page's right side, 181 of its left).
        generator: draws places and order.
        held_out: from the right part of the pictures instead of the left one.

    Raises:
        ValueError: no square is asked for, or one larger than a part of a picture.
        ImportError: scikit-image is not installed.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, wanted a positive number")
    images, labels = torch.empty(n, 1, size, size), torch.arange(n) % len(PICTURES)
    for i, label in enumerate(labels.tolist()):
        picture = grey_picture(PICTURES[label])
        width = picture.shape[1]
        part = picture[:, int(width * RIGHT) :] if held_out else picture[:, : int(width * LEFT)]
        if size < 1 or size > min(part.shape):
            raise ValueError(f"size: got {size}, wanted 1 to {min(part.shape)} pixels, of {PICTURES[label]}")
        images[i, 0] = _square(part, size, generator)
    order = torch.randperm(n, generator=generator)
    return Crops(images[order], labels[order])


def _square(part: Tensor, size: int, generator: torch.Generator) -> Tensor:
    for _ in range(100):
        top, left = (int(torch.randint(0, room - size + 1, (), generator=generator)) for room in part.shape)
        square = part[top : top + size, left : left + size]
        deviation = float(square.std(correction=0))
        if deviation > LEAST_DEVIATION:
            break
    return (square - square.mean()) / max(deviation, 1e-6)


@dataclass(frozen=True)
class ListedPictures:
    """Files and labels of a training and a test part, with the names of the classes."""

    classes: tuple[str, ...]
    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...]


def read_mini_imagenet(root: str | Path, test_share: float = 1 / 6, seed: int = 0) -> ListedPictures:
    """The pictures of mini-ImageNet, each class divided: of the 600 of a class 500 for training and 100 for the test.

    Args:
        root: a folder with `train`, `val` and `test` (some of them) that hold one folder a class; or with `train.csv`,
            `val.csv`, `test.csv` of columns `filename,label` and a folder `images`. Where `train` and `test` have the
            same classes that split is kept (`val` counts as training); else the parts are pooled.
        test_share: share of a class that is held out where the parts are pooled, rounded, at least one picture.
        seed: makes the division.

    Raises:
        ValueError: the folder has neither layout, a named picture is not there, or a class has a single picture.
    """
    root = Path(root).expanduser()
    if not 0 < test_share < 1:
        raise ValueError(f"test_share: got {test_share}, wanted a number between 0 and 1")
    parts = {part: _listed(root, part) for part in ("train", "val", "test")}
    if not any(parts.values()):
        wanted = "train, val, test with class folders, or train.csv, val.csv, test.csv and images"
        raise ValueError(f"root: got {root}, without pictures in either layout; wanted {wanted}")
    names = {part: {label for _, label in pictures} for part, pictures in parts.items()}
    classes = tuple(sorted(set().union(*names.values())))
    number = {label: i for i, label in enumerate(classes)}
    if names["test"] and names["test"] == names["train"]:
        train, test = parts["train"] + parts["val"], parts["test"]
    else:
        train, test = _divided([item for pictures in parts.values() for item in pictures], test_share, seed)
    return ListedPictures(
        classes,
        tuple((path, number[label]) for path, label in train),
        tuple((path, number[label]) for path, label in test),
    )


def _listed(root: Path, part: str) -> list[tuple[Path, str]]:
    table = root / f"{part}.csv"
    if table.is_file():
        return _from_table(root, table)
    folder = root / part
    if not folder.is_dir():
        return []
    files, _ = walk_files(folder)
    named = [(path, path.relative_to(folder).parts) for path in files if path.suffix.lower() in SUFFIXES]
    return [(path, parts[0]) for path, parts in named if len(parts) > 1]


def _from_table(root: Path, table: Path) -> list[tuple[Path, str]]:
    images = root / "images"
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    if rows and not {"filename", "label"} <= set(rows[0]):
        raise ValueError(f"root: {table} has the columns {', '.join(rows[0])}, wanted filename,label")
    found = []
    for row in rows:
        path = images / row["filename"]
        # a table from elsewhere must not reach files outside of its folder
        if not path.resolve().is_relative_to(images.resolve()) or not path.is_file():
            raise ValueError(f"root: {table} names {row['filename']!r}, wanted a picture in {images}")
        found.append((path, row["label"]))
    return found


def _divided(
    pictures: Sequence[tuple[Path, str]], test_share: float, seed: int
) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    by_class: defaultdict[str, list[tuple[Path, str]]] = defaultdict(list)
    for path, label in sorted(pictures):
        by_class[label].append((path, label))
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in sorted(by_class):
        items = by_class[label]
        if len(items) < 2:
            raise ValueError(f"root: got one picture of the class {label!r}, wanted two or more to divide")
        order = torch.randperm(len(items), generator=generator).tolist()
        held_out = min(len(items) - 1, max(1, round(len(items) * test_share)))
        test += [items[i] for i in order[:held_out]]
        train += [items[i] for i in order[held_out:]]
    return train, test


def listing_signature(root: str | Path) -> str:
    """A digest of the names, sizes and modification times below a folder, for keys of caches."""
    root = Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(f"root: got {root}, wanted a folder")
    digest = hashlib.sha256()
    for path in walk_files(root)[0]:
        stat = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
