"""Points of the selective classification protocol: images or embeddings, divided, and shifted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paperworks.data.images import ImageData, load_images, stratified_sample
from paperworks.data.reexpress import OUT_OF_DISTRIBUTION, UNLABELLED, read_reexpress_jsonl
from paperworks.data.sources import data_signature
from paperworks.lab.trial import Trial

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
NOISE = 0.35


@dataclass(frozen=True)
class Points:
    """x (N, ...) float32, images (N, C, H, W) or embeddings (N, D), and y (N,), -99 where no class is right."""

    x: Floats
    y: Integers

    def __len__(self) -> int:
        return len(self.y)

    @property
    def rows(self) -> Floats:
        """x as (N, D)."""
        return self.x.reshape(len(self.x), -1)

    def at(self, index: Integers) -> Points:
        """The points of an index array."""
        return Points(self.x[index], self.y[index])


@dataclass(frozen=True)
class Selection:
    """What an arm is fitted on, what it is judged on by suffix of the metrics, and the number of classes."""

    fit: Points
    tests: dict[str, Points]
    classes: int


def points_signature(spec: str) -> str:
    """Digest of what a spec names; empty for no spec."""
    if not spec:
        return ""
    scheme, _, path = spec.partition(":")
    if scheme != "jsonl":
        return data_signature(spec)
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{spec!r}: found no file; wanted jsonl:PATH, a file of JSON lines")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def select_points(trial: Trial) -> Selection:
    """The points of a trial's settings; the seed divides them and draws the noise."""
    settings = trial.settings
    given, classes = _load(settings["data"])
    seed = trial.derived_seed("split") % 2**31
    if isinstance(given, ImageData):
        fit, test = _divide_images(given, settings["fit_size"], bool(settings["test"]), seed)
    else:
        fit, test = _divide(given, settings["fit_size"], bool(settings["test"]), seed)
    parts = {"fit": fit, "test": _other(settings["test"], fit, classes) or test}
    parts["shifted"] = _other(settings["shifted"], fit, classes) or parts["test"]
    if settings["task"] == "halves":
        parts = {name: _halves(points, classes) for name, points in parts.items()}
        classes = 2
    shifts: dict[str, Callable[[Points], Points]] = {
        "_rotate25": lambda p: rotated(p, 25, trial, parts["fit"]),
        "_rotate45": lambda p: rotated(p, 45, trial, parts["fit"]),
        "_noise0.35": lambda p: noisy(p, trial, parts["fit"]),
    }
    tests = {"": parts["test"], **{suffix: shift(parts["test"]) for suffix, shift in shifts.items()}}
    return Selection(parts["fit"], tests | {"_shifted": parts["shifted"]}, classes)


def _load(spec: str) -> tuple[ImageData | Points, int]:
    """Images, or embeddings with all their labels, and the number of classes."""
    scheme, _, path = spec.partition(":")
    if scheme != "jsonl":
        images = load_images(spec)
        return images, images.num_classes
    table = read_reexpress_jsonl(Path(path).expanduser())
    kept = table.y != UNLABELLED
    if not table.labelled.any():
        raise ValueError(f"{spec!r}: found no label of a class; wanted labels 0, 1, ...")
    return Points(table.X[kept], table.y[kept]), int(table.y.max()) + 1


def _from_images(images: ImageData) -> Points:
    return Points(images.images.numpy(), images.labels.numpy())


def _other(spec: str, like: Points, classes: int) -> Points | None:
    """The points of another spec, which have to fit those that are fitted on; None for no spec."""
    if not spec:
        return None
    given, found = _load(spec)
    points = _from_images(given) if isinstance(given, ImageData) else given
    if points.x.shape[1:] != like.x.shape[1:] or found > classes:
        raise ValueError(
            f"{spec!r}: found points of shape {points.x.shape[1:]} and {found} classes; "
            f"wanted those of the data, {like.x.shape[1:]} and at most {classes}"
        )
    return points


def _most(n: int, fit_size: int) -> int:
    return min(fit_size or n, 3 * n // 4)


def _divide_images(images: ImageData, fit_size: int, test_given: bool, seed: int) -> tuple[Points, Points]:
    if test_given:
        everything = _from_images(images)
        return everything, everything
    if images.held_out is None:
        n = _most(len(images), fit_size)
        sizes = (n, len(images) - n)
    else:
        train = int((~images.held_out).sum())
        sizes = (min(fit_size or train, train), len(images) - train)
    fit, test = images.split(seed, sizes=sizes)
    return _from_images(fit), _from_images(test)


def _divide(points: Points, fit_size: int, test_given: bool, seed: int) -> tuple[Points, Points]:
    """Embeddings divided at random; those out of distribution are tested on only."""
    known = np.flatnonzero(points.y != OUT_OF_DISTRIBUTION)
    if test_given:
        return points.at(known), points.at(known)
    labels = torch.from_numpy(points.y[known])
    generator = torch.Generator().manual_seed(seed)
    fitted = known[stratified_sample(labels, _most(len(known), fit_size), generator).numpy()]
    return points.at(fitted), points.at(np.setdiff1d(np.arange(len(points)), fitted))


def _halves(points: Points, classes: int) -> Points:
    upper = (points.y >= classes / 2).astype(np.int64)
    return Points(points.x, np.where(points.y == OUT_OF_DISTRIBUTION, OUT_OF_DISTRIBUTION, upper))


def rotated(points: Points, degrees: float, trial: Trial, reference: Points) -> Points:
    """Images turned about their centre; embeddings turned about the mean of `reference`, in random planes."""
    if points.x.ndim == 4:
        from scipy import ndimage

        turned = ndimage.rotate(points.x, degrees, axes=(2, 3), reshape=False, order=1)
        return Points(turned.astype(np.float32), points.y)
    angle = np.radians(degrees)
    mean = reference.x.mean(0)
    order = trial.numpy_generator("planes").permutation(points.x.shape[1])
    first, second = order[: len(order) // 2], order[len(order) // 2 : len(order) // 2 * 2]
    centred = points.x - mean
    turned = centred.copy()
    turned[:, first] = np.cos(angle) * centred[:, first] - np.sin(angle) * centred[:, second]
    turned[:, second] = np.sin(angle) * centred[:, first] + np.cos(angle) * centred[:, second]
    return Points((turned + mean).astype(np.float32), points.y)


def noisy(points: Points, trial: Trial, reference: Points) -> Points:
    """Normal noise of standard deviation 0.35: of pixel values in [0, 1], of an embedding's standard deviation."""
    scale: Any = NOISE if points.x.ndim == 4 else NOISE * reference.x.std()
    noise = trial.numpy_generator("noise").standard_normal(points.x.shape, dtype=np.float32)
    return Points((points.x + scale * noise).astype(np.float32), points.y)
