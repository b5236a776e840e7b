"""Phantoms of bones in soft tissue, with a label a bone: CT volumes for a projector, made offline and seeded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["KINDS", "BonePhantoms", "simulate_bones"]

AIR, TISSUE, CANCELLOUS, CORTICAL = -1000.0, 40.0, 300.0, 900.0
"""Hounsfield units."""
NOISE = 20.0
HEIGHT = 320.0
"""Length of the z axis, mm, at any number of voxels."""
VERTEBRAE, RIBS = 5, 3

KINDS: Mapping[str, tuple[str, ...]] = {
    "spine": tuple(f"vertebra {i + 1}" for i in range(VERTEBRAE)),
    "hip": ("hip right", "hip left", "femur right", "femur left"),
    "rib": tuple(f"rib {side} {i + 1}" for i in range(RIBS) for side in ("right", "left")),
}
"""What the labels 1, 2, ... of each kind are."""


class BonePhantoms(NamedTuple):
    """CT volumes and what is in them. x points to the right, y to the front, z upwards.

    Attributes:
        ct: float32 (n, 1, X, Y, Z), Hounsfield units.
        labels: int64 (n, 1, X, Y, Z), 0 for what is no bone.
    """

    ct: Tensor
    labels: Tensor

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of the voxels, mm, the same on all axes."""
        return (HEIGHT / self.ct.shape[-1],) * 3


Draw = Callable[[float, float], float]
Bone = tuple[Tensor, ...]
"""Parts of one bone: each a field that is below 1 inside of it, and about 1 + distance / radius near its surface."""


def simulate_bones(
    n: int, size: int | Sequence[int], kind: str = "spine", generator: torch.Generator | None = None
) -> BonePhantoms:
    """Bones made of superellipsoids and tubes, each phantom bent by a smooth field of its own.

    ``"spine"`` is a chain of vertebrae with spinous processes along a curve, ``"hip"`` two hip bones and two femurs,
    ``"rib"`` pairs of arcs. Bones have a cortical shell (900 HU) around cancellous bone (300), stand in an ellipse of
    soft tissue (40) in air (-1000), and have noise of deviation 20.

    Args:
        n: number of phantoms.
        size: (X, Y, Z), or one number for all, from 16.
        kind: see `KINDS`.
        generator: of all that is random.

    Raises ValueError for another kind, or sizes that are too small.
    """
    shape = (int(size),) * 3 if isinstance(size, int) else tuple(int(length) for length in size)
    if len(shape) != 3 or min(shape) < 16:
        raise ValueError(f"size: got {size}, wanted three numbers from 16, or one")
    if n < 1:
        raise ValueError(f"n: got {n}, wanted at least 1")
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, wanted one of {', '.join(KINDS)}")
    made = [_phantom(shape, kind, generator) for _ in range(n)]
    return BonePhantoms(torch.stack([ct for ct, _ in made]), torch.stack([labels for _, labels in made]))


def _phantom(shape: Sequence[int], kind: str, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    spacing = HEIGHT / shape[2]
    axes = [(torch.arange(length, dtype=torch.float32) - (length - 1) / 2) * spacing for length in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    width, depth = draw(0.42, 0.47) * shape[0] * spacing, draw(0.36, 0.43) * shape[1] * spacing
    ct = torch.where((grid[0] / width) ** 2 + (grid[1] / depth) ** 2 <= 1, TISSUE, AIR)
    labels = torch.zeros(tuple(shape), dtype=torch.int64)
    # bones are laid out for a body 160 mm wide and deep, and bent by up to some 8 mm
    scale = torch.tensor([shape[0] * spacing / 160, shape[1] * spacing / 160, 1.0]).view(3, 1, 1, 1)
    coarse = 2 * torch.rand(1, 3, 4, 4, 4, generator=generator) - 1
    bent = grid / scale + 8 * F.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=True)[0]
    shell = max(4.0, 1.2 * spacing)
    for label, bone in enumerate({"spine": _spine, "hip": _hip, "rib": _ribs}[kind](bent, draw), 1):
        inside = torch.stack([part <= 1 for part in bone]).any(0) & (labels == 0)
        radius = 14.0 if kind != "rib" else 5.0
        core = torch.stack([part <= 1 - shell / radius for part in bone]).any(0)
        ct = torch.where(inside, torch.where(core, CANCELLOUS, CORTICAL), ct)
        labels[inside] = label
    ct = ct + NOISE * torch.randn(ct.shape, generator=generator)
    return ct.unsqueeze(0), labels.unsqueeze(0)


def _ellipsoid(
    grid: Tensor, at: Sequence[float], radii: Sequence[float], tilt: float = 0.0, power: float = 2.0
) -> Tensor:
    """(sum |x_i / r_i|^p)^(1/p) around a place, turned by `tilt` radians about the x axis."""
    x, y, z = (axis - place for axis, place in zip(grid, at, strict=True))
    c, s = math.cos(tilt), math.sin(tilt)
    turned = (x, c * y + s * z, c * z - s * y)
    parts = [(axis / radius).abs().pow(power) for axis, radius in zip(turned, radii, strict=True)]
    return torch.stack(parts).sum(0).pow(1 / power)


def _tube(grid: Tensor, points: Sequence[Sequence[float]], radius: float) -> Tensor:
    """Distance over the radius from a line through points."""
    found: Tensor | None = None
    for a, b in pairwise(points):
        begin, way = torch.tensor(a), torch.tensor(b) - torch.tensor(a)
        off = grid - begin.view(3, 1, 1, 1)
        along = (torch.einsum("c,cxyz->xyz", way, off) / way.square().sum()).clamp(0, 1)
        distance = (off - along * way.view(3, 1, 1, 1)).square().sum(0)
        found = distance if found is None else torch.minimum(found, distance)
    assert found is not None
    return found.sqrt() / radius


def _spine(grid: Tensor, draw: Draw) -> list[Bone]:
    side, bow, off, phase = draw(-14, 14), draw(-18, 18), draw(-16, 16), draw(0, 2 * math.pi)
    pitch = draw(46, 54)
    bones: list[Bone] = []
    for i in range(VERTEBRAE):
        z = (i - (VERTEBRAE - 1) / 2) * pitch
        x = side * math.sin(z / 75 + phase)
        y = off + bow * math.cos(z / 70)
        tilt = -bow / 70 * math.sin(z / 70)
        broad = draw(22, 27)
        body = _ellipsoid(grid, (x, y, z), (broad, draw(17, 21), 0.42 * pitch), tilt, 4.0)
        back = y - 36
        process = _ellipsoid(grid, (x, back, z - 6), (8, 24, 9), tilt + 0.25)
        bones.append((body, process))
    return bones


def _hip(grid: Tensor, draw: Draw) -> list[Bone]:
    apart, forward, height = draw(34, 42), draw(-14, 14), draw(10, 40)
    hips: list[Bone] = []
    femurs: list[Bone] = []
    for sign in (1, -1):
        x, y, z = sign * apart, forward + draw(-5, 5), height + draw(-5, 5)
        wing = _ellipsoid(grid, (x + 6 * sign, y - 12, z + 50), (12, 34, 44), draw(-0.3, 0.3))
        seat = _ellipsoid(grid, (x - 8 * sign, y - 8, z - 14), (14, 22, 26), 0.3)
        hips.append((wing, seat))
        bow = draw(-14, 14)
        head = _ellipsoid(grid, (x + 12 * sign, y + 6, z - 6), (15, 15, 15))
        shaft = _tube(
            grid, ((x + 14 * sign, y + 6, z - 8), (x + 26 * sign, y + bow, z - 50), (x + 16 * sign, y + bow, -150)), 12
        )
        femurs.append((head, shaft))
    return [*hips, *femurs]


def _ribs(grid: Tensor, draw: Draw) -> list[Bone]:
    wide, deep, drop, spread = draw(54, 62), draw(44, 54), draw(20, 45), draw(62, 74)
    bones: list[Bone] = []
    for i in range(RIBS):
        z = ((RIBS - 1) / 2 - i) * spread + 15
        for sign in (1, -1):
            turns = [math.pi * (0.05 + 0.8 * k / 9) for k in range(10)]
            points = [(sign * wide * math.sin(t), -deep * math.cos(t), z - drop * t / math.pi) for t in turns]
            bones.append((_tube(grid, points, draw(6.5, 8)),))
    return bones
