"""From attributions of clips to maps of a group: confident clips, subjects, bootstrap bounds, clusters by region.

The published maps are squared integrated gradients with noise on clips whose prediction is right and confident, every
100 frames of a run; how they are averaged is not said. Here a subject's map is the mean over its clips and their
frames, and a group's the mean over subjects, who are also what the bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from paperworks.swin.swift.attribution import integrated_gradients

__all__ = ["BootstrapMap", "Cluster", "bootstrap_map", "cluster_report", "subject_maps"]


class Clips(Protocol):
    """A data set with items as those of `FMRIClips`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


def subject_maps(
    model: nn.Module,
    clips: Clips,
    *,
    least: float = 0.75,
    every: int = 100,
    steps: int = 50,
    smooth: int = 5,
    sigma: float = 1.0,
    target: int = 0,
    internal_batch: int = 1,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """The mean attribution (H, W, D) of each subject with a clip that is classified rightly and with confidence.

    Args:
        model: clips (B, 1, H, W, D, T) -> logits of a binary target; on any device.
        clips: of one group of test subjects; targets 0 or 1.
        least: a clip counts with a probability of its own class of at least this (0.75 in the published code).
        every: and where its first frame is a multiple of this (100 there).
        steps, smooth, sigma, target, internal_batch, generator: of `integrated_gradients`; with noise squares are
            averaged, without it the squares of the attribution are.
        progress: called with the number of clips seen and of all.

    Raises ValueError for a `least` below 1/2 or above 1, `every` below 1, or a target that is not 0 or 1.
    """
    if not 0.5 <= least <= 1:
        raise ValueError(f"least: got {least}, wanted 0.5 to 1")
    if every < 1:
        raise ValueError(f"every: got {every}, wanted 1 or more")
    like = next(model.parameters())
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for i in range(len(clips)):
        item = clips[i]
        if item["target"] not in (0, 1):
            raise ValueError(f"clips: got the target {item['target']} of {item['subject']}, wanted 0 or 1")
        if item["start"] % every == 0:
            image, subject = item["image"].unsqueeze(0).to(like), item["subject"]
            if _probability(model, image, target, item["target"]) >= least:
                found = integrated_gradients(
                    model, image, steps=steps, smooth=smooth, sigma=sigma, squared=smooth > 0, target=target,
                    internal_batch=internal_batch, generator=generator,
                )  # fmt: skip
                map = (found if smooth else found.square())[0].mean((0, -1)).cpu()
                sums[subject] = sums.get(subject, torch.zeros_like(map)) + map
                counts[subject] = counts.get(subject, 0) + 1
        if progress is not None:
            progress(i + 1, len(clips))
    return {subject: total / counts[subject] for subject, total in sums.items()}


@torch.no_grad()
def _probability(model: nn.Module, image: Tensor, target: int, label: float) -> float:
    """Of the clip's own class."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    output = model(image)
    for module in training:
        module.training = True
    logit = float(output.view(1, -1)[0, target])
    return float(torch.sigmoid(torch.tensor(logit if label == 1 else -logit)))


class BootstrapMap(NamedTuple):
    """A group's map.

    Attributes:
        mean: (H, W, D), over subjects.
        low, high: (H, W, D), bounds of the mean, by drawing subjects with replacement.
    """

    mean: Tensor
    low: Tensor
    high: Tensor


def bootstrap_map(
    maps: Mapping[str, Tensor] | Sequence[Tensor],
    draws: int = 1000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> BootstrapMap:
    """Mean over subjects with bounds for each voxel by itself: percentiles of the means of redrawn groups.

    Args:
        maps: of at least two subjects, all of one shape, as `subject_maps` gives them.
        draws: redrawn groups.
        level: part of them between the bounds.
        generator: of the draws.
    """
    listed = list(maps.values()) if isinstance(maps, Mapping) else list(maps)
    if len(listed) < 2 or len({map.shape for map in listed}) > 1:
        raise ValueError(f"maps: got {len(listed)} of the shapes {sorted({tuple(m.shape) for m in listed})}, wanted "
                         "two or more of one shape")  # fmt: skip
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws, level: got {draws} and {level}, wanted draws > 0 and 0 < level < 1")
    values = torch.stack(listed).double().flatten(1)
    index = torch.randint(len(listed), (draws, len(listed)), generator=generator)
    shares = torch.zeros(draws, len(listed), dtype=values.dtype)
    shares.scatter_add_(1, index, torch.full(index.shape, 1 / len(listed), dtype=values.dtype))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)
    # a part of the volume at a time: all redrawn means of 96^3 voxels would be 7 GB
    bounds = torch.cat([torch.quantile(shares @ part, ends, 0) for part in values.split(4096, 1)], 1)
    shape = listed[0].shape
    return BootstrapMap(*(v.float().view(shape) for v in (values.mean(0), bounds[0], bounds[1])))


class Cluster(NamedTuple):
    """Neighbouring voxels above a threshold.

    Attributes:
        voxels: how many.
        volume: cubic millimetres, by the affine.
        peak: the largest value.
        at: the voxel of the peak.
        millimetres: the peak's place in the world.
        mean: of the values.
        regions: part of the voxels by region of the atlas, the largest first.
    """

    voxels: int
    volume: float
    peak: float
    at: tuple[int, int, int]
    millimetres: tuple[float, float, float]
    mean: float
    regions: dict[str, float]


def cluster_report(
    map: Tensor,
    threshold: float,
    atlas: Tensor | npt.NDArray[Any],
    names: Mapping[int, str] | None = None,
    affine: npt.ArrayLike | None = None,
    least: int = 1,
) -> list[Cluster]:
    """Clusters of voxels whose value is at least `threshold`, the largest peak first, and where in an atlas they lie.

    Args:
        map: (H, W, D).
        threshold: as a percentile of the map, or `BootstrapMap.low` in place of the map with one of the null.
        atlas: (H, W, D), whole numbers; 0 is no region. In the map's space (`to_grid` brings both to one grid).
        names: of the numbers; a number without a name is called by it.
        affine: (4, 4), voxels to millimetres; the identity if None.
        least: voxels of a cluster that is told of.

    Voxels are neighbours by face, edge or corner. Raises ValueError for other shapes.
    """
    from scipy import ndimage

    values, labels = map.detach().cpu().double().numpy(), np.asarray(atlas)
    if values.ndim != 3 or labels.shape != values.shape:
        raise ValueError(f"atlas: got the shape {labels.shape} for a map {values.shape}, wanted the same, (H, W, D)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"atlas: got {labels.dtype}, wanted whole numbers")
    placed = np.eye(4) if affine is None else np.asarray(affine, np.float64)
    if placed.shape != (4, 4):
        raise ValueError(f"affine: got the shape {placed.shape}, wanted (4, 4)")
    parts, count = ndimage.label(values >= threshold, np.ones((3, 3, 3)))
    boxes = ndimage.find_objects(parts)
    voxel = abs(float(np.linalg.det(placed[:3, :3])))
    found = []
    for number, box in zip(range(1, count + 1), boxes, strict=True):
        inside = parts[box] == number
        size = int(inside.sum())
        if size < least:
            continue
        corner = [part.start for part in box]
        top = np.unravel_index(np.where(inside, values[box], -np.inf).argmax(), inside.shape)
        x, y, z = (int(a + b) for a, b in zip(corner, top, strict=True))
        numbers, sizes = np.unique(labels[box][inside], return_counts=True)
        shares = sorted(zip(sizes.tolist(), numbers.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))
        regions = {(names or {}).get(n, str(n) if n else "outside"): share / size for share, n in shares}
        millimetres = (placed @ (x, y, z, 1.0))[:3].tolist()
        found.append(
            Cluster(
                size, size * voxel, float(values[x, y, z]), (x, y, z), tuple(millimetres),
                float(values[box][inside].mean()), regions,
            )
        )  # fmt: skip
    return sorted(found, key=lambda cluster: -cluster.peak)
