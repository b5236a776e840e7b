"""Brain tumours in MRI: the cases of BraTS 2021, and a simulator of lesions that works offline.

Three regions that contain one another, in this order: tumour core (TC), whole tumour (WT), enhancing tumour (ET). Four
contrasts, in this order: FLAIR, T1 with contrast agent, T1, T2.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from paperworks.data.volumes import SUFFIXES, read_nifti

__all__ = [
    "CONTRASTS",
    "REGIONS",
    "BraTSVolumes",
    "SimulatedLesions",
    "brats_regions",
    "normalised",
    "simulate_lesions",
]

CONTRASTS = ("flair", "t1ce", "t1", "t2")
REGIONS = ("TC", "WT", "ET")
LABELS = (0, 1, 2, 3, 4)
FOLDS = 5
FAR = 20
"""Least distance in voxels between the middle of a simulated lesion and the nearest voxel of a marker."""
MARKERS, BALL = 3, 4.0
"""Number of markers in an image, and their radius in voxels."""


def brats_regions(label: Tensor) -> Tensor:
    """Whole-number labels (*S) of necrosis 1, oedema 2 and enhancing tumour 4 (or 3) -> bool (3, *S): TC, WT, ET.

    Raises ValueError for another value, TypeError for numbers that are not whole by their type.
    """
    if label.is_floating_point() or label.is_complex():
        raise TypeError(f"label: got {label.dtype}, wanted whole numbers")
    if label.numel() and (int(label.max()) > max(LABELS) or int(label.min()) < 0):
        raise ValueError(f"label: got values from {int(label.min())} to {int(label.max())}, wanted 0, 1, 2, 4 or 3")
    enhancing = label >= 3
    core = enhancing | (label == 1)
    return torch.stack([core, core | (label == 2), enhancing])


def normalised(image: Tensor) -> Tensor:
    """Each channel of (C, *S) with mean 0 and deviation 1 over its voxels that are not zero; those stay zero."""
    found = torch.zeros_like(image)
    for channel, values in enumerate(image):
        inside = values != 0
        if inside.any():
            kept = values[inside]
            found[channel][inside] = (kept - kept.mean()) / kept.std(correction=0).clamp(min=1e-8)
    return found


class BraTSVolumes(Dataset[dict[str, Any]]):
    """Cases of BraTS 2021, ``root/BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz``.

    Args:
        root: folder of the cases' folders.
        split: ``"train"`` and ``"val"``, all folds but one and that one; ``"all"``; or ``"test"``, all cases, which
            then need no segmentation.
        crop: size of what is returned, at a random place with `augment`, else in the middle; volumes that are smaller
            are padded with zeros. None for whole volumes.
        augment: flip each axis with probability 1/2, scale each channel by 0.9 to 1.1 and shift it by -0.1 to 0.1.
        generator: of what is random; torch's own if None, which gives each worker of a loader its own numbers.
        folds: JSON file, ``{"training": [{"fold": 0, "image": [4 paths], "label": path}, ...]}`` with paths below
            root or one folder higher. Without it every fifth case in the order of names belongs to one fold, and
            ``"train"`` and ``"val"`` need five cases.
        fold: the fold of ``"val"``, 0 to 4.

    Each item: ``"image"`` float32 (4, D, H, W), each channel normalised over its non-zero voxels; ``"label"`` bool
    (3, D, H, W), TC, WT and ET, unless the split is ``"test"``; ``"name"``; ``"spacing"`` in millimetres.

    Raises FileNotFoundError for a missing folder or file, ValueError for a split without cases or an unknown one, or
    for fewer cases than folds.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        crop: Sequence[int] | None = (128, 128, 128),
        augment: bool = True,
        generator: torch.Generator | None = None,
        *,
        folds: str | Path | None = None,
        fold: int = 0,
    ) -> None:
        self.root = Path(root)
        split = {"training": "train", "validation": "val"}.get(split, split)
        if split not in ("train", "val", "all", "test"):
            raise ValueError(f"split: got {split!r}, wanted 'train', 'val', 'all' or 'test'")
        if not self.root.is_dir():
            raise FileNotFoundError(f"root: {self.root} is no folder")
        if crop is not None and (len(crop) != 3 or min(crop) < 1):
            raise ValueError(f"crop: got {tuple(crop)}, wanted three positive numbers, or None")
        if fold not in range(FOLDS):
            raise ValueError(f"fold: got {fold}, wanted 0 to {FOLDS - 1}")
        self.split, self.augment, self.generator = split, augment, generator
        self.crop = None if crop is None else tuple(crop)
        entries = self._listed() if folds is None else self._from_json(Path(folds))
        if folds is None and split in ("train", "val") and len(entries) < FOLDS:
            found = f"got {len(entries)} cases in {root}, wanted {FOLDS} or more, one for each fold"
            raise ValueError(f"root: {found}; name the fold of each in a file, folds")
        wanted = {"train": lambda f: f != fold, "val": lambda f: f == fold}.get(split, lambda _: True)
        self.cases = [case for belongs, case in entries if wanted(belongs)]
        if not self.cases:
            raise ValueError(f"split: got {split!r} with fold {fold}, which has none of {len(entries)} cases of {root}")

    def _listed(self) -> list[tuple[int, list[Path]]]:
        folders = sorted(f for f in self.root.iterdir() if f.is_dir() and _file(f, CONTRASTS[0]) is not None)
        parts = CONTRASTS if self.split == "test" else (*CONTRASTS, "seg")
        found = []
        for i, folder in enumerate(folders):
            files = [_file(folder, part) for part in parts]
            missing = [part for part, file in zip(parts, files, strict=True) if file is None]
            if missing:
                raise FileNotFoundError(f"root: {folder} has no {', '.join(missing)}")
            found.append(((FOLDS - 1 - i) % FOLDS, [file for file in files if file is not None]))
        return found

    def _from_json(self, path: Path) -> list[tuple[int, list[Path]]]:
        found = []
        for entry in json.loads(path.read_text())["training"]:
            given = {Path(p).name.split(".")[0].rpartition("_")[2]: str(p) for p in entry["image"]}
            absent = [contrast for contrast in CONTRASTS if contrast not in given]
            if absent:
                raise ValueError(f"folds: got a case without {', '.join(absent)}: {entry['image']}")
            names = [given[contrast] for contrast in CONTRASTS]
            names += [] if self.split == "test" else [entry["label"]]
            found.append((int(entry["fold"]), [self._below(name) for name in names]))
        return found

    def _below(self, name: str) -> Path:
        """A file of the list; it may not lie outside of the folder above root."""
        for top in (self.root, self.root.parent):
            found = (top / name).resolve()
            if found.is_file() and found.is_relative_to(top.resolve()):
                return found
        raise FileNotFoundError(f"folds: {name} is not below {self.root}")

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        files = self.cases[index]
        volumes = [read_nifti(path) for path in files[: len(CONTRASTS)]]
        item: dict[str, Any] = {
            "image": normalised(torch.stack([torch.from_numpy(np.ascontiguousarray(v.data)) for v in volumes])),
            "name": files[0].parent.name,
            "spacing": volumes[0].spacing[:3],
        }
        if len(files) > len(CONTRASTS):
            seg = read_nifti(files[-1]).data
            item["label"] = brats_regions(torch.from_numpy(np.rint(seg).astype(np.int64)))
        arrays = [name for name in ("image", "label") if name in item]
        if self.crop is not None:
            place = self._place(item["image"].shape[1:], self.crop)
            for name in arrays:
                item[name] = _cut(item[name], place, self.crop)
        if self.augment:
            flips = [axis for axis in (1, 2, 3) if self._draw(1) < 0.5]
            for name in arrays:
                item[name] = item[name].flip(flips)
            scale, shift = (1 + 0.1 * (2 * self._draw(2, len(CONTRASTS)) - 1)) - torch.tensor([[0.0], [1.0]])
            item["image"] = item["image"] * scale.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1)
        return item

    def _draw(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def _place(self, size: Sequence[int], crop: Sequence[int]) -> tuple[int, ...]:
        room = torch.tensor([max(0, s - c) for s, c in zip(size, crop, strict=True)])
        part = self._draw(3) if self.augment else torch.full((3,), 0.5)
        return tuple(torch.minimum((part * (room + 1)).long(), room).tolist())


def _file(folder: Path, part: str) -> Path | None:
    for suffix in reversed(SUFFIXES):
        if (found := folder / f"{folder.name}_{part}{suffix}").is_file():
            return found
    return None


def _cut(x: Tensor, place: Sequence[int], size: Sequence[int]) -> Tensor:
    x = x[(slice(None), *(slice(a, a + s) for a, s in zip(place, size, strict=True)))]
    short = [wanted - length for wanted, length in zip(size, x.shape[1:], strict=True)]
    return torch.nn.functional.pad(x, [amount for by in reversed(short) for amount in (by // 2, by - by // 2)])


class SimulatedLesions(NamedTuple):
    """Images and what was planted.

    Attributes:
        images: float32 (n, 4, *size), normalised over the head without the markers; 0 outside of it.
        labels: bool (n, 3, *size), TC, WT, ET.
        enhancing: bool (n,), whether ET is not empty.
        markers: float32 (n, 3, axes), where the middles of the markers are.
    """

    images: Tensor
    labels: Tensor
    enhancing: Tensor
    markers: Tensor


def simulate_lesions(
    n: int, size: Sequence[int], generator: torch.Generator | None = None, *, context: str = "far"
) -> SimulatedLesions:
    """Heads with one lesion of nested ellipsoids each, in four correlated contrasts, with noise and a bias field.

    The tissue is a smooth Gaussian random field with a part that all contrasts share. The innermost ellipsoid looks the
    same in all lesions but is enhancing tumour in half of them only. With ``context="far"`` three markers decide, small
    balls at least 20 voxels from the lesion's middle: brighter than the tissue after the contrast agent, the lesion
    enhances; darker, it does not. With ``"near"`` the innermost ellipsoid itself is brighter or darker, and the
    markers mean nothing.

    Args:
        n: number of images.
        size: of 2 or 3 axes, each at least 48.
        generator: of all that is random.
        context: ``"far"`` or ``"near"``.
    """
    size = tuple(int(length) for length in size)
    if len(size) not in (2, 3) or min(size) < 48:
        raise ValueError(f"size: got {size}, wanted 2 or 3 numbers from 48")
    if n < 1:
        raise ValueError(f"n: got {n}, wanted at least 1")
    if context not in ("far", "near"):
        raise ValueError(f"context: got {context!r}, wanted 'far' or 'near'")
    axes = [torch.arange(length, dtype=torch.float32) - (length - 1) / 2 for length in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    half = torch.tensor([0.46 * length for length in size])
    head = ((grid / _column(half, grid)) ** 2).sum(0) <= 1
    images, labels, kinds, markers = [], [], [], []
    for i in range(n):
        enhancing = bool(i % 2)
        parts, marker, at = _lesion(grid, half, generator)
        bright = enhancing if context == "far" else bool(torch.rand((), generator=generator) < 0.5)
        image = _tissue(size, generator)
        whole, core, inner = parts
        for channel, amounts in enumerate(((1.6, 0.4, 0.4), (0.2, -1.0, 1.4), (-0.6, -1.0, 0.6), (1.4, 0.6, -0.6))):
            image[channel] += sum(amount * part for amount, part in zip(amounts, (whole, core, inner), strict=True))
        if context == "near":
            image[1] += (1.2 if enhancing else -1.2) * inner
        image = (image + 0.25 * torch.randn(image.shape, generator=generator)) * _bias(size, generator) * head
        image = normalised(image)
        image[1] += (5.0 if bright else -5.0) * marker  # after it, so that no voxel elsewhere tells of the markers
        images.append(image)
        labels.append(torch.stack([core, whole, inner & enhancing]) & head)
        kinds.append(enhancing)
        markers.append(at + torch.tensor([(length - 1) / 2 for length in size]))
    return SimulatedLesions(torch.stack(images), torch.stack(labels), torch.tensor(kinds), torch.stack(markers))


def _column(x: Tensor, like: Tensor) -> Tensor:
    return x.view(-1, *(1,) * (like.dim() - 1))


def _field(size: Sequence[int], generator: torch.Generator | None, smoothness: float) -> Tensor:
    """A Gaussian random field of deviation 1, periodic, blurred by a Gaussian of deviation `smoothness` voxels."""
    axes = range(-len(size), 0)
    noise = torch.fft.fftn(torch.randn(size, generator=generator), dim=tuple(axes))
    for axis, length in zip(axes, size, strict=True):
        blur = torch.exp(-2 * (torch.pi * torch.fft.fftfreq(length) * smoothness) ** 2)
        noise = noise * blur.view(-1, *(1,) * (-axis - 1))
    found = torch.fft.ifftn(noise, dim=tuple(axes)).real
    return (found - found.mean()) / found.std()


def _tissue(size: Sequence[int], generator: torch.Generator | None) -> Tensor:
    shared = _field(size, generator, 4.0)
    own = [_field(size, generator, 2.5) for _ in CONTRASTS]
    signs = (1.0, -1.0, -1.0, 1.0)  # fluid is bright on FLAIR's and T2's side and dark on T1's
    return torch.stack([4.0 + 0.4 * (sign * shared + field) for sign, field in zip(signs, own, strict=True)])


def _bias(size: Sequence[int], generator: torch.Generator | None) -> Tensor:
    return torch.exp(0.1 * _field(size, generator, min(size) / 4))


def _lesion(grid: Tensor, half: Tensor, generator: torch.Generator | None) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """The nested ellipsoids WT, TC and the innermost, the balls of the markers, and where their middles are."""

    def inside_head(radius: float, margin: float) -> Tensor:
        while True:
            at = (2 * torch.rand(len(half), generator=generator) - 1) * half * radius
            if ((at / (half - margin)) ** 2).sum() <= 1:
                return at

    middle: Tensor | None = None
    at: list[Tensor] = []
    while len(at) < MARKERS:
        marker = inside_head(1.0, BALL + 1)
        if middle is None or not at:
            middle = inside_head(0.8, 10.0)
        if (middle - marker).norm() >= FAR + BALL:
            at.append(marker)
    assert middle is not None
    angle = torch.randn(len(half), len(half), generator=generator)
    turn = torch.linalg.qr(angle)[0]
    radii = 6.5 + 3.5 * torch.rand(len(half), generator=generator)
    turned = torch.einsum("ij,j...->i...", turn, grid - _column(middle, grid)) / _column(radii, grid)
    distance = turned.square().sum(0).sqrt()
    parts = tuple(distance <= share for share in (1.0, 0.75, 0.5))
    balls = torch.stack([(grid - _column(marker, grid)).square().sum(0) <= BALL**2 for marker in at]).any(0)
    return parts, balls, torch.stack(at)
