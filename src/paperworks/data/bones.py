"""Pairs of X-rays with the labelled bones they show: prepared pairs, or CT volumes that are projected when read.

In all volumes x points to the right, y to the front and z upwards; view a is coronal (x, z), view b sagittal (y, z).
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from paperworks.data.bones_simulation import KINDS, BonePhantoms, simulate_bones
from paperworks.data.radiographs import drr, to_radiograph
from paperworks.data.volumes import SUFFIXES, Volume, read_nifti

__all__ = [
    "KINDS",
    "TOTAL_SEGMENTATOR",
    "BonePhantoms",
    "XrayToShape",
    "mirrored",
    "read_total_segmentator",
    "shifted",
    "simulate_bones",
    "to_ras",
]

_VERTEBRAE = [f"vertebrae_{part}{i + 1}" for part, n in (("C", 7), ("T", 12), ("L", 6)) for i in range(n)]
_RIBS = [f"rib_{side}_{i + 1}" for side in ("left", "right") for i in range(12)]
TOTAL_SEGMENTATOR: Mapping[str, int] = {
    **{name: i + 1 for i, name in enumerate([*_VERTEBRAE, *_RIBS])},
    "vertebrae_S1": 50, "sacrum": 50, "hip_right": 51, "hip_left": 52, "femur_left": 53, "femur_right": 54,
}  # fmt: skip
"""The paper's 54 labels by TotalSegmentator's file names."""
SPLITS = ("training", "validation", "test", "all")
EVERY = 5
LABELS = ("_seg", "_label")


def to_ras(volume: Volume) -> Volume:
    """The same volume with its axes turned and flipped so that they point right, to the front and up."""
    turn = np.abs(volume.affine[:3, :3]) / np.linalg.norm(volume.affine[:3, :3], axis=0)
    order = max(permutations(range(3)), key=lambda axes: sum(turn[i, axis] for i, axis in enumerate(axes)))
    data, affine = np.transpose(volume.data, order), volume.affine[:, [*order, 3]].copy()
    for i in range(3):
        if affine[i, i] < 0:
            data = np.flip(data, i)
            affine[:3, 3] += affine[:3, i] * (data.shape[i] - 1)
            affine[:3, i] *= -1
    spacing = tuple(volume.spacing[axis] for axis in order)
    return Volume(np.ascontiguousarray(data), affine, spacing)


def read_total_segmentator(
    folder: str | Path, classes: Mapping[str, int] = TOTAL_SEGMENTATOR
) -> tuple[Volume, np.ndarray[Any, np.dtype[np.int16]]]:
    """One case, ``ct.nii.gz`` and ``segmentations/NAME.nii.gz``: the CT, and one map of the labels that are there.

    Raises FileNotFoundError without a CT or any of the classes, ValueError for a mask of another shape.
    """
    folder = Path(folder)
    ct = read_nifti(folder / "ct.nii.gz")
    labels: np.ndarray[Any, np.dtype[np.int16]] = np.zeros(ct.data.shape, np.int16)
    found = 0
    for name, value in classes.items():
        path = folder / "segmentations" / f"{name}.nii.gz"
        if not path.is_file():
            continue
        mask = read_nifti(path).data > 0.5
        if mask.shape != labels.shape:
            raise ValueError(f"folder: {path} has the shape {mask.shape}, wanted that of the CT, {labels.shape}")
        labels[mask] = value
        found += 1
    if not found:
        raise FileNotFoundError(f"folder: {folder / 'segmentations'} has none of {len(classes)} classes")
    return ct, labels


def mirrored(a: Tensor, b: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A half turn about the z axis: x of view a, y of view b, x and y of the volume. Left stays left.

    Args:
        a, b: (..., X, Z) and (..., Y, Z).
        label: (..., X, Y, Z).
    """
    return a.flip(-2), b.flip(-2), label.flip(-3, -2)


def shifted(x: Tensor, by: Sequence[int], size: Sequence[int]) -> Tensor:
    """The middle `size` of the last axes of `x`, moved by whole steps; what lies outside is 0."""
    for axis, (step, wanted) in enumerate(zip(by, size, strict=True), -len(size)):
        length = x.shape[axis]
        begin = length // 2 + step - wanted // 2
        low, high = min(max(begin, 0), length), min(max(begin + wanted, 0), length)
        x = x.narrow(axis, low, high - low)
        pad = [0, 0] * (-axis - 1) + [min(max(low - begin, 0), wanted), 0]
        pad[-1] = wanted - (high - low) - pad[-2]
        x = F.pad(x, pad)
    return x


class _Case(NamedTuple):
    name: str
    kind: str
    files: tuple[Path, ...]


class _Record(NamedTuple):
    """X-rays (2, C, S, S) and labels (S, S, S) of a cube, and the length of a voxel, mm."""

    images: Tensor
    labels: Tensor
    spacing: tuple[float, float, float]


class XrayToShape(Dataset[dict[str, Any]]):
    """Two X-rays and the labels of the volume they show.

    Args:
        root: a ``data_list.json``, or a folder with one, as the paper's code writes it:
            ``{"training": [{"img": PATH.npy, "seg": PATH.nii.gz}, ...], "test": ...}``, images (2, n, h, w) in [0, 1],
            coronal and sagittal, n views each. Else a folder of TotalSegmentator cases (a folder each, see
            `read_total_segmentator`) or of pairs ``NAME.nii.gz``, ``NAME_seg.nii.gz`` (or ``_label``), which are turned
            to right, front and up, and projected when they are read.
        split: ``"training"``, ``"validation"``, ``"test"``, or ``"all"``. Without a list those of ``meta.csv``; without
            that every fifth case, in the order of names, is for test and validation.
        img_size: (X, Y, Z) of the labels; the longest is that of the cube that X-rays and labels are sampled in.
        in_channels: views in one image: more of them are turned by 90 / in_channels degrees each.
        augment: shift by normal numbers of deviation X / 20, Y / 20 and Z / 50 voxels; scale and shift the intensities
            by up to 10 %, each with a probability drawn from 0 to 1/4; `mirrored` with probability 1/2.
        generator: of the augmentation.
        classes: label of each class of TotalSegmentator.
        cache: folder for what was projected; without it a volume is projected each time it is read.

    Each item: ``"a"`` float32 (C, X, Z), ``"b"`` (C, Y, Z), ``"label"`` int64 (1, X, Y, Z), ``"name"``, and
    ``"spacing"``, mm. A projected image is stretched to [0, 1].

    Raises FileNotFoundError for a missing file, ValueError for a split without cases or arrays of another form.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "training",
        img_size: Sequence[int] = (128, 128, 160),
        in_channels: int = 1,
        augment: bool = False,
        generator: torch.Generator | None = None,
        *,
        classes: Mapping[str, int] = TOTAL_SEGMENTATOR,
        cache: str | Path | None = None,
    ) -> None:
        root = Path(root)
        if split not in SPLITS:
            raise ValueError(f"split: got {split!r}, wanted one of {', '.join(SPLITS)}")
        if not root.exists():
            raise FileNotFoundError(f"root: {root} does not exist")
        x, y, z = (int(n) for n in img_size)
        if min(x, y, z) < 1:
            raise ValueError(f"img_size: got {tuple(img_size)}, wanted three positive numbers")
        if in_channels < 1:
            raise ValueError(f"in_channels: got {in_channels}, wanted at least 1")
        self.img_size, self.in_channels, self.augment, self.generator = (x, y, z), in_channels, augment, generator
        self.classes, self.cache = dict(classes), None if cache is None else Path(cache)
        listed = root if root.suffix == ".json" else root / "data_list.json"
        self.cases = _from_list(listed, split) if listed.is_file() else _from_folder(root, split)
        if not self.cases:
            raise ValueError(f"split: got {split!r}, of which {root} has no case")

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        record = self._prepared(case) if case.kind == "pair" else self._projected(case)
        (x, y, z), images = self.img_size, record.images
        shift = [0, 0, 0]
        if self.augment:
            for change in (1, 0):
                if self._draw() < self._draw() / 4:
                    amount = 0.2 * self._draw() - 0.1
                    images = images * (1 + amount) if change else images + amount
            normal = torch.randn(3, generator=self.generator)
            shift = [int(v) for v in normal * torch.tensor([x / 20, y / 20, z / 50])]
        views = []
        for view, width in enumerate((x, y)):
            turns = torch.deg2rad(torch.arange(self.in_channels) * 90 / self.in_channels + 90 * view).tolist()
            along = [int(np.rint(np.cos(t) * shift[0] + np.sin(t) * shift[1])) for t in turns]
            views.append(
                torch.stack([shifted(images[view, c], (s, shift[2]), (width, z)) for c, s in enumerate(along)])
            )
        a, b = views
        label = shifted(record.labels, shift, (x, y, z)).unsqueeze(0).long()
        if self.augment and self._draw() < 0.5:
            a, b, label = mirrored(a, b, label)
        return {"a": a, "b": b, "label": label, "name": case.name, "spacing": record.spacing}

    def _draw(self) -> float:
        return float(torch.rand((), generator=self.generator))

    def _prepared(self, case: _Case) -> _Record:
        image, seg = case.files
        images = torch.from_numpy(np.array(np.load(image, allow_pickle=False), np.float32))
        if images.dim() != 4 or len(images) != 2 or images.shape[1] < self.in_channels:
            wanted = f"(2, n, h, w) with n from {self.in_channels}"
            raise ValueError(f"img: {image.name} has the shape {tuple(images.shape)}, wanted {wanted}")
        side = max(self.img_size)
        images = images[:, :: images.shape[1] // self.in_channels][:, : self.in_channels]
        if images.shape[2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        volume = read_nifti(seg)
        if volume.data.ndim != 3:
            raise ValueError(f"seg: {seg.name} has {volume.data.ndim} axes, wanted 3")
        labels = torch.from_numpy(np.rint(volume.data).astype(np.int16))
        x, y, z = (s * n / side for s, n in zip(volume.spacing, labels.shape, strict=True))
        if tuple(labels.shape) != (side,) * 3:
            places = [torch.arange(side) * n // side for n in labels.shape]
            labels = labels[places[0][:, None, None], places[1][:, None], places[2]]
        return _Record(images, labels, (x, y, z))

    def _projected(self, case: _Case) -> _Record:
        if self.cache is None:
            return self._project(case)
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _touched(case)]
        key = repr((stamps, self.classes, max(self.img_size), self.in_channels))
        path = self.cache / f"{case.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        if not path.is_file():
            made = self._project(case)
            self.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.cache, suffix=".part", delete=False) as file:
                np.savez(file, images=made.images.numpy(), labels=made.labels.numpy(), spacing=made.spacing)
            os.replace(file.name, path)
        with np.load(path, allow_pickle=False) as kept:
            x, y, z = (float(s) for s in kept["spacing"])
            return _Record(torch.from_numpy(kept["images"]), torch.from_numpy(kept["labels"]), (x, y, z))

    def _project(self, case: _Case) -> _Record:
        if case.kind == "segmentator":
            given, labelled = read_total_segmentator(case.files[0], self.classes)
        else:
            given, labelled = read_nifti(case.files[0]), np.rint(read_nifti(case.files[1]).data).astype(np.int16)
            if given.data.ndim != 3 or labelled.shape != given.data.shape:
                wanted = "three axes and the same"
                raise ValueError(f"root: {case.name} has {given.data.shape} and {labelled.shape}, wanted {wanted}")
        ct = to_ras(given)
        labels = to_ras(Volume(labelled, given.affine, given.spacing)).data
        side, sizes = max(self.img_size), ct.data.shape
        unit = max(n * s for n, s in zip(sizes, ct.spacing, strict=True)) / side
        absorbed = torch.from_numpy(ct.data.astype(np.float32)).clamp(min=0)[None, None]
        turns = torch.arange(self.in_channels) * 90.0 / self.in_channels
        images = [
            to_radiograph(drr(absorbed, ct.spacing, turns + view, detector_shape=(side, side), pixel_size=unit))
            for view in (0.0, 90.0)
        ]
        cube = _resampled(torch.from_numpy(labels), ct.spacing, side, unit)
        return _Record(torch.stack(images).squeeze(2), cube, (unit, unit, unit))


def _resampled(labels: Tensor, spacing: Sequence[float], side: int, unit: float) -> Tensor:
    """The nearest labels on a cube of `side` voxels of `unit` mm around the middle; 0 outside of the volume."""
    places, inside = [], []
    for n, s in zip(labels.shape, spacing, strict=True):
        at = (torch.arange(side).double() - (side - 1) / 2) * unit / s + (n - 1) / 2
        inside.append((at > -0.5) & (at < n - 0.5))
        places.append(at.round().long().clamp(0, n - 1))
    x, y, z = places
    mask = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    return torch.where(mask, labels[x[:, None, None], y[:, None], z], torch.zeros((), dtype=labels.dtype))


def _from_list(path: Path, split: str) -> list[_Case]:
    given = json.loads(path.read_text())
    parts = [split] if split != "all" else [part for part in SPLITS if part in given]
    found = []
    for entry in (entry for part in parts for entry in given.get(part, [])):
        files = tuple((path.parent / str(entry[key])).resolve() for key in ("img", "seg"))
        for file in files:
            if not file.is_relative_to(path.parent.resolve()) or not file.is_file():
                raise FileNotFoundError(f"root: {file.name} of {path.name} is not below {path.parent}")
        found.append(_Case(files[0].stem, "pair", files))
    return found


def _touched(case: _Case) -> list[Path]:
    if case.kind != "segmentator":
        return list(case.files)
    folder = case.files[0]
    return [folder / "ct.nii.gz", *sorted((folder / "segmentations").glob("*.nii.gz"))]


def _from_folder(root: Path, split: str) -> list[_Case]:
    cases = [
        _Case(folder.name, "segmentator", (folder,))
        for folder in sorted(f for f in root.iterdir() if (f / "ct.nii.gz").is_file())
    ]
    for ct in sorted(path for path in root.iterdir() if path.name.endswith(SUFFIXES)):
        suffix = next(s for s in reversed(SUFFIXES) if ct.name.endswith(s))
        name = ct.name.removesuffix(suffix)
        if not name.endswith(LABELS):
            seg = next((p for part in LABELS if (p := root / f"{name}{part}{suffix}").is_file()), None)
            if seg is None:
                raise FileNotFoundError(f"root: {ct.name} has no {name}_seg{suffix} or {name}_label{suffix}")
            cases.append(_Case(name, "ct", (ct, seg)))
    if split == "all":
        return cases
    meta = root / "meta.csv"
    if meta.is_file():
        with meta.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        own = {"training": "train", "validation": "val", "test": "test"}[split]
        named = {row["image_id"] for row in rows if row["split"] == own}
        return [case for case in cases if case.name in named]
    return [case for i, case in enumerate(cases) if (i % EVERY == EVERY - 1) != (split == "training")]
