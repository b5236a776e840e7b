"""What a voxel of each map depends on: followed back through windows, shifts, merging, patches and convolutions.

Windows are cut axis by axis and regions of a shifted grid are too, so that what a token depends on is a box of the
input, the product of one span an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch

from paperworks.swin.blocks import WindowBlock
from paperworks.swin.swin_unetr.network import SwinEncoder, SwinUNETR
from paperworks.swin.windows import fit_window, padded

__all__ = ["Reach", "explain_receptive_field"]

Span = tuple[int, int]
Box = tuple[Span, ...]
REACH = 2
"""Of two convolutions of three voxels, on each side."""


class Reach(NamedTuple):
    """A voxel of a map and the box of input voxels that it depends on.

    Attributes:
        name: ``"h0"`` to ``"h4"``, the maps of the encoder, or ``"logits"``.
        at: the voxel of that map.
        first, last: corners of the box, both inside.
        voxels: in the box.
        share: of the input.
    """

    name: str
    at: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    voxels: int
    share: float


def explain_receptive_field(
    model: SwinUNETR | SwinEncoder, size: Sequence[int], at: Sequence[int] | None = None
) -> list[Reach]:
    """Which voxels of the input can influence a voxel, map by map from h0 to h4, and then the logits.

    Instance norms take means over the whole map: through them each voxel of a decoded map, and of the encoder's with
    `use_v2`, depends on all others. What is told here is what windows and convolutions bring together, those means held
    fixed; for h0 to h4 of an encoder without `use_v2` that is all there is.

    Args:
        model: a `SwinUNETR` or `SwinEncoder`.
        size: spatial size of the input, as the network takes it.
        at: the voxel of the input whose place in each map is followed back; the middle by default.

    Raises ValueError for another number of axes or a voxel outside of the input.
    """
    encoder = model if isinstance(model, SwinEncoder) else model.encoder
    size = tuple(int(s) for s in size)
    if len(size) != encoder.ndim or min(size) < 1:
        raise ValueError(f"size: got {size}, wanted {encoder.ndim} positive numbers, one an axis")
    at = tuple(s // 2 for s in size) if at is None else tuple(int(a) for a in at)
    if len(at) != len(size) or any(not 0 <= a < s for a, s in zip(at, size, strict=True)):
        raise ValueError(f"at: got {at}, wanted a voxel of an input of the size {size}")
    sizes = [size]
    for steps in encoder.strides[: len(encoder.stages) + 1]:
        sizes.append(tuple(-(-s // step) for s, step in zip(sizes[-1], steps, strict=True)))
    found, place = [], at
    for i, steps in enumerate(encoder.strides[: len(sizes) - 1]):
        place = tuple(p // step for p, step in zip(place, steps, strict=True))
        found.append(_reach(f"h{i}", place, _encoded(encoder, i, _point(place), sizes), size))
    if isinstance(model, SwinUNETR):
        found.append(_reach("logits", at, _decoded(encoder, _point(at), sizes), size))
    return found


def _point(at: Sequence[int]) -> Box:
    return tuple((a, a + 1) for a in at)


def _reach(name: str, at: Sequence[int], box: Box, size: Sequence[int]) -> Reach:
    voxels = prod(stop - start for start, stop in box)
    first, last = tuple(start for start, _ in box), tuple(stop - 1 for _, stop in box)
    return Reach(name, tuple(at), first, last, voxels, voxels / prod(size))


def _finer(box: Box, steps: Sequence[int], size: Sequence[int]) -> Box:
    """The box of a map that was divided by `steps` in the map before, of this size."""
    return tuple((a * step, min(b * step, s)) for (a, b), step, s in zip(box, steps, size, strict=True))


def _coarser(box: Box, steps: Sequence[int]) -> Box:
    return tuple((a // step, -(-b // step)) for (a, b), step in zip(box, steps, strict=True))


def _wider(box: Box, size: Sequence[int]) -> Box:
    return tuple((max(0, a - REACH), min(b + REACH, s)) for (a, b), s in zip(box, size, strict=True))


def _hull(one: Box, other: Box) -> Box:
    return tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))


def _attended(box: Box, block: WindowBlock, size: Sequence[int]) -> Box:
    """The tokens that those of the box attend to: whole windows, cut where a shifted grid meets its ends."""
    window, shift = fit_window(size, block.window, block.shift, block.clamp)
    found = []
    for (start, stop), w, by, s, grid in zip(box, window, shift, size, padded(size, window), strict=True):
        place = (torch.arange(s) - by) % grid
        region = place // w * 3 + ((place >= grid - w).long() + (place >= grid - by).long()) * bool(by)
        seen = torch.isin(region, region[start:stop]).nonzero()
        found.append((int(seen.min()), int(seen.max()) + 1))
    return tuple(found)


def _encoded(encoder: SwinEncoder, map: int, box: Box, sizes: Sequence[Sequence[int]]) -> Box:
    """Input voxels that a box of tokens of a map depends on; `sizes` are of the input and of h0, h1, ..."""
    for i in reversed(range(map)):
        size = sizes[i + 1]
        box = _finer(box, encoder.strides[i + 1], size)
        stage = encoder.stages[i]
        for block in reversed(list(stage.get_submodule("blocks").children())):
            assert isinstance(block, WindowBlock)
            box = _attended(box, block, size)
        if encoder.convs:
            box = _wider(box, size)
    return _finer(box, encoder.strides[0], sizes[0])


def _decoded(encoder: SwinEncoder, box: Box, sizes: Sequence[Sequence[int]]) -> Box:
    """Input voxels that a box of logits depends on, through every skip."""
    box = _wider(box, sizes[0])
    found = _wider(box, sizes[0])
    deepest = len(sizes) - 2
    for i in range(deepest):
        box = _wider(_coarser(box, encoder.strides[i]), sizes[i + 1])
        # h3 is joined as it is, the maps before through a block of convolutions
        skip = box if i + 1 == deepest else _wider(box, sizes[i + 1])
        found = _hull(found, _encoded(encoder, i, skip, sizes))
    box = _wider(_coarser(box, encoder.strides[deepest]), sizes[deepest + 1])
    return _hull(found, _encoded(encoder, deepest, box, sizes))
