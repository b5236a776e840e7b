"""What an annotator or a promptable segmenter does with seeds: masks, boxes and points from localisation maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paperworks.swin.swtformer.maps import check_labels

__all__ = ["SeedPrompt", "seed_mask", "seeds_to_points"]


def seed_mask(maps: Tensor, labels: Tensor, threshold: float | None = None) -> Tensor:
    """The class with the largest value at each pixel, (H, W) int64: 0 for the background, k + 1 for class k.

    Args:
        maps: (K + 1, H, W), the background first, as `localize` gives them.
        labels: (K,) of 0 and 1; a class without a label is nowhere.
        threshold: stands in place of the background's map; by default that map counts.

    A pixel whose background is as large as every class is background. Raises ValueError for shapes that do not fit.
    """
    if maps.dim() != 3 or len(maps) < 2:
        raise ValueError(f"maps: got the shape {tuple(maps.shape)}, wanted (K + 1, H, W) with the background first")
    given = check_labels(labels[None], 1, len(maps) - 1)[0].to(maps.device).bool()
    background = maps[:1] if threshold is None else torch.full_like(maps[:1], threshold)
    absent = maps.new_full((), -torch.inf)
    return torch.cat([background, torch.where(given[:, None, None], maps[1:], absent)]).argmax(0)


@dataclass(frozen=True, eq=False)
class SeedPrompt:
    """One object of the seeds, in the form in which Segment Anything and its relatives are asked.

    Attributes:
        label: its class, 0 to K - 1.
        box: (4,) left, top, right, bottom in pixels, the ends not included.
        points: (n, 2) x and y, pixel centres.
        point_labels: (n,) 1 for a point of the object, 0 for one beside it.
        area: pixels of the seed.
    """

    label: int
    box: Tensor
    points: Tensor
    point_labels: Tensor
    area: int


def seeds_to_points(
    maps: Tensor,
    labels: Tensor,
    *,
    threshold: float | None = None,
    points: int = 1,
    negatives: int = 0,
    least: float = 0.005,
) -> list[SeedPrompt]:
    """Boxes and points for a promptable segmenter, one prompt for each connected seed.

    The first point is the pixel of the seed that is farthest from its edge, each other one is farthest from edge and
    points there are; points beside the object are found in the same way in what its box, a quarter larger, has besides.

    Args:
        maps, labels, threshold: see `seed_mask`.
        points, negatives: how many points in each object, and beside it; fewer where there are fewer pixels.
        least: smaller parts, as a share of the image, are left out unless they are the largest of their class.

    Returns the prompts by class, the largest first; none for a class without seeds. Raises ValueError for shapes or
    numbers that make no sense.
    """
    from scipy import ndimage

    if points < 1 or negatives < 0 or not 0 <= least <= 1:
        got = f"{points}, {negatives} and {least}"
        raise ValueError(f"points, negatives, least: got {got}, wanted 1 or more, 0 or more, and 0 to 1")
    mask = seed_mask(maps.detach().float().cpu(), labels.detach().cpu(), threshold).numpy()
    found = []
    for label in range(1, len(maps)):
        parts, number = ndimage.label(mask == label, [[1] * 3] * 3)
        areas = ndimage.sum_labels(parts > 0, parts, range(1, number + 1)).astype(int) if number else []
        order = sorted(range(number), key=lambda i: -areas[i])
        for place, i in enumerate(order):
            if place and areas[i] < least * mask.size:
                break
            inside = parts == i + 1
            (ys, xs) = ndimage.find_objects(parts)[i]
            near = torch.zeros(mask.shape, dtype=torch.bool)
            room = [max(1, (axis.stop - axis.start) // 4) for axis in (ys, xs)]
            near[max(0, ys.start - room[0]) : ys.stop + room[0], max(0, xs.start - room[1]) : xs.stop + room[1]] = True
            object_ = _spread(torch.from_numpy(inside), points)
            beside = _spread(near & torch.from_numpy(mask != label), negatives)
            found.append(
                SeedPrompt(
                    label - 1,
                    torch.tensor([xs.start, ys.start, xs.stop, ys.stop]),
                    torch.cat([object_, beside]),
                    torch.tensor([1] * len(object_) + [0] * len(beside)),
                    int(areas[i]),
                )
            )
    return found


def _spread(region: Tensor, n: int) -> Tensor:
    """(n, 2) x and y of pixels of a region (H, W) that are far from its edge and from one another."""
    from scipy import ndimage

    # outside of the image is outside of the region
    padded = torch.nn.functional.pad(region, (1, 1, 1, 1)).numpy()
    room = torch.from_numpy(ndimage.distance_transform_edt(padded)[1:-1, 1:-1].copy())
    rows, columns = (torch.arange(size) for size in region.shape)
    chosen: list[tuple[int, int]] = []
    for _ in range(n):
        at = int(room.argmax())
        y, x = divmod(at, region.shape[1])
        if not float(room[y, x]) > 0:
            break
        chosen.append((x, y))
        room = room.minimum(((rows[:, None] - y) ** 2 + (columns - x) ** 2).double().sqrt())
    return torch.tensor(chosen, dtype=torch.long).view(-1, 2)
