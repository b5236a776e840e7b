"""Simulated functional MRI with a planted difference between two groups of subjects, whole runs in memory.

A run is a head of smooth networks, each a fixed map times a subject's own time course, AR(1) noise blurred by the
double-gamma haemodynamic response, plus smooth noise. The brain is cut into parcels, cubes of voxels; some carry the
group:

- ``"antiphase"``: inside two whole parcels two halves move in antiphase, so that the mean over either parcel stays as
  it is. In group 1 the halves of the first parcel lie along the first axis and those of the second along the second
  axis; in group 0 it is the other way round. Means over parcels, hence their correlations, hold nothing of it.
- ``"correlation"``: two systems, each a fifth of the parcels, move as a whole, in group 1 both together, in group 0
  each by itself.
- ``"none"``: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["EFFECTS", "SimulatedFMRI", "haemodynamic_response", "simulate_fmri"]

EFFECTS = ("antiphase", "correlation", "none")


class SimulatedFMRI(NamedTuple):
    """Runs and what was planted.

    Attributes:
        images: float32 (n, 1, H, W, D, T), normalised over each run's brain; the background has its smallest value.
        labels: int64 (n,), 0 or 1, as many of each as can be.
        mask: bool (H, W, D), the brain.
        region: bool (H, W, D), the parcels that carry the group.
        parcels: int64 (H, W, D), numbers from 1; 0 outside the brain.
    """

    images: Tensor
    labels: Tensor
    mask: Tensor
    region: Tensor
    parcels: Tensor


def haemodynamic_response(tr: float, seconds: float = 24.0) -> Tensor:
    """The double-gamma response sampled every `tr` seconds, of sum 1: peak at 5 s, undershoot a sixth at 15 s."""
    t = torch.arange(0.0, seconds, tr, dtype=torch.float64)
    peak, under = (t.pow(a - 1) * torch.exp(-t) / math.gamma(a) for a in (6.0, 16.0))
    found = peak - under / 6
    return (found / found.sum()).float()


def _courses(n: int, frames: int, tr: float, generator: torch.Generator | None, memory: float = 0.7) -> Tensor:
    """n time courses (n, frames) of mean about 0 and deviation 1 over the ensemble."""
    kernel = haemodynamic_response(tr)
    noise = torch.randn(n, frames + len(kernel) - 1 + 20, generator=generator)
    for i in range(1, noise.shape[1]):
        noise[:, i] += memory * noise[:, i - 1]
    blurred = F.conv1d(noise[:, 20:].unsqueeze(1), kernel.flip(0).view(1, 1, -1)).squeeze(1)
    power = torch.tensor([memory ** abs(i - j) for i in range(len(kernel)) for j in range(len(kernel))])
    variance = kernel @ power.view(len(kernel), -1) @ kernel / (1 - memory**2)
    return blurred / variance.sqrt()


def _smooth(x: Tensor, times: int = 1) -> Tensor:
    """Volumes (n, H, W, D, ...) averaged over neighbours, with weights 1/4, 1/2, 1/4 along each axis, periodically."""
    for axis in (1, 2, 3) * times:
        x = (x.roll(1, axis) + x.roll(-1, axis)).mul_(0.25).add_(x, alpha=0.5)
    return x


def _head(space: Sequence[int]) -> Tensor:
    axes = [(torch.arange(size) - (size - 1) / 2) / (0.47 * size) for size in space]
    return (axes[0].view(-1, 1, 1) ** 2 + axes[1].view(1, -1, 1) ** 2 + axes[2] ** 2) <= 1


def _parcels(mask: Tensor, edge: int) -> Tensor:
    """Cubes of `edge` voxels, numbered from 1 inside the brain."""
    cubes = [torch.arange(size) // edge for size in mask.shape]
    sizes = [int(c[-1]) + 1 for c in cubes]
    number = (cubes[0].view(-1, 1, 1) * sizes[1] + cubes[1].view(1, -1, 1)) * sizes[2] + cubes[2]
    found = torch.zeros_like(number)
    inside = number[mask].unique()
    for i, cube in enumerate(inside.tolist(), start=1):
        found[(number == cube) & mask] = i
    return found


def _regions(parcels: Tensor, edge: int, generator: torch.Generator | None) -> list[Tensor]:
    """Two whole parcels, drawn."""
    whole = [i for i in range(1, int(parcels.max()) + 1) if int((parcels == i).sum()) == edge**3]
    if len(whole) < 2:
        raise ValueError(f"shape: got {tuple(parcels.shape)}, wanted at least two cubes of {edge} voxels in the brain")
    order = torch.randperm(len(whole), generator=generator)[:2]
    return [parcels == whole[i] for i in order.tolist()]


def _systems(parcels: Tensor, edge: int, generator: torch.Generator | None) -> list[Tensor]:
    """Two sets of parcels, drawn, each a fifth of them."""
    order = 1 + torch.randperm(int(parcels.max()), generator=generator)
    size = max(1, len(order) // 5)
    return [torch.isin(parcels, order[at : at + size]) for at in (0, size)]


def _halves(region: Tensor, axis: int) -> Tensor:
    """1 in one half of a cube along an axis, -1 in the other, 0 outside."""
    at = torch.nonzero(region)[:, axis]
    middle = (int(at.min()) + int(at.max()) + 1) / 2
    place = torch.arange(region.shape[axis]).view([-1 if a == axis else 1 for a in range(3)])
    return region * torch.where(place < middle, 1.0, -1.0)


def simulate_fmri(
    n: int,
    shape: Sequence[int] = (16, 16, 16, 24),
    generator: torch.Generator | None = None,
    *,
    effect: str = "antiphase",
    strength: float = 1.0,
    networks: int = 6,
    noise: float = 0.5,
    parcel: int = 4,
    tr: float = 0.72,
) -> SimulatedFMRI:
    """Runs of `n` subjects; brain, networks and regions are drawn once for all of them.

    Args:
        n: number of subjects.
        shape: H, W, D, T.
        generator: of everything that is drawn.
        effect: see the module.
        strength: deviation of the planted signal; that of the networks' sum is about 1.
        networks: number of them.
        noise: deviation of the smooth noise.
        parcel: edge of the parcels in voxels, even.
        tr: seconds a frame.
    """
    if effect not in EFFECTS:
        raise ValueError(f"effect: got {effect!r}, wanted one of {', '.join(EFFECTS)}")
    if n < 1 or len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"shape: got {tuple(shape)} for n={n}, wanted (H, W, D, T) and n > 0")
    if parcel < 2 or parcel % 2:
        raise ValueError(f"parcel: got {parcel}, wanted an even edge")
    *space, frames = shape
    mask = _head(space)
    parcels = _parcels(mask, parcel)
    first, second = (_systems if effect == "correlation" else _regions)(parcels, parcel, generator)
    labels = torch.arange(n)[torch.randperm(n, generator=generator)] % 2
    maps = _smooth(torch.randn(networks, *space, generator=generator), 3)
    maps = maps / maps[:, mask].std(1).view(-1, 1, 1, 1) / math.sqrt(networks)
    weights = 1 + 0.3 * torch.randn(n, networks, 1, generator=generator)
    courses = _courses(n * networks, frames, tr, generator).view(n, networks, frames) * weights
    own = _courses(2 * n, frames, tr, generator).view(n, 2, frames)
    images = torch.einsum("nkt,kxyz->nxyzt", courses, maps)
    rough = _smooth(torch.randn(n, *space, frames, generator=generator))
    images.add_(rough, alpha=noise * 8 / 6**1.5)  # of deviation 1: the sum of squares of the weights is (3 / 8)^3
    for signal, region in _planted(effect, labels, own, first, second):
        images[:, region] += strength * signal
    return SimulatedFMRI(_normalised(images, mask).unsqueeze(1), labels, mask, first | second, parcels)


def _planted(effect: str, labels: Tensor, own: Tensor, first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The signal (n, voxels, T) in each region, from two time courses a subject (n, 2, T)."""
    if effect == "none":
        return []
    group = labels.view(-1, 1)
    if effect == "correlation":
        own = torch.stack([own[:, 0], torch.where(group == 1, own[:, 0], own[:, 1])], 1)
    found = []
    for i, region in enumerate((first, second)):
        along = [_halves(region, axis)[region] for axis in (i, 1 - i)]
        shape = torch.where(group == 1, along[0], along[1]) if effect == "antiphase" else torch.ones_like(along[0])
        found.append((shape.unsqueeze(-1) * own[:, i].unsqueeze(1), region))
    return found


def _normalised(images: Tensor, mask: Tensor) -> Tensor:
    """In place: mean 0 and deviation 1 over each run's brain, its smallest value outside."""
    brain = images[:, mask].flatten(1)
    mean, deviation = brain.mean(1), brain.std(1)
    images.sub_(mean.view(-1, 1, 1, 1, 1)).div_(deviation.view(-1, 1, 1, 1, 1))
    images[:, ~mask] = ((brain.min(1).values - mean) / deviation).view(-1, 1, 1)
    return images
