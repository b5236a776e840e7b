"""Windows over 1 to 4 spatial axes: cutting maps, shifting, padding, masks, and the index of relative positions.

Maps are channels-last, (B, *space, C). A window of size M_1 x ... x M_n holds N = M_1 ... M_n tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from itertools import product
from math import prod
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Sizes",
    "cyclic_shift",
    "fit_window",
    "kept",
    "pad_to_window",
    "padded",
    "relative_position_index",
    "shift_mask",
    "shift_regions",
    "sizes",
    "window_partition",
    "window_reverse",
]

Sizes = tuple[int, ...]
P = ParamSpec("P")
T = TypeVar("T")
AXES = range(1, 5)


def kept(make: Callable[P, T]) -> Callable[P, T]:
    """`make` with its results kept by its arguments; not those made under a tracer, whose tensors are no real ones."""
    keeping = lru_cache(maxsize=64)(make)

    @wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
        return make(*args, **kwargs) if traced else keeping(*args, **kwargs)  # type: ignore[arg-type]

    return call


def sizes(name: str, value: Sequence[int], axes: int | None = None, least: int = 1) -> Sizes:
    """`value` as a tuple of whole numbers; ValueError where it is none, or not one number an axis."""
    found = tuple(int(v) for v in value)
    if found != tuple(value) or len(found) not in AXES or min(found) < least:
        raise ValueError(f"{name}: got {tuple(value)}, wanted 1 to 4 whole numbers from {least}")
    if axes is not None and len(found) != axes:
        raise ValueError(f"{name}: got {found}, wanted {axes} numbers, one an axis")
    return found


def window_partition(x: Tensor, window: Sequence[int]) -> Tensor:
    """Cut maps into windows: (B, *space, C) -> (B * windows, prod(window), C).

    The batch is outermost; windows run row by row over their grid, tokens row by row inside a window. Raises
    ValueError where the window does not divide the map.
    """
    window = sizes("window", window, x.dim() - 2)
    space = x.shape[1:-1]
    if any(size % w for size, w in zip(space, window, strict=True)):
        raise ValueError(f"window: got {window}, wanted sizes that divide the map {tuple(space)}")
    n = len(window)
    batch, channels = x.shape[0], x.shape[-1]
    split = x.reshape(batch, *(part for s, w in zip(space, window, strict=True) for part in (s // w, w)), channels)
    order = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return split.permute(order).reshape(batch * prod(space) // prod(window), prod(window), channels)


def window_reverse(windows: Tensor, window: Sequence[int], space: Sequence[int]) -> Tensor:
    """The inverse of `window_partition`: (B * windows, prod(window), C) -> (B, *space, C)."""
    space = sizes("space", space)
    window = sizes("window", window, len(space))
    if any(size % w for size, w in zip(space, window, strict=True)):
        raise ValueError(f"window: got {window}, wanted sizes that divide the map {space}")
    grid = tuple(size // w for size, w in zip(space, window, strict=True))
    if windows.dim() != 3 or windows.shape[1] != prod(window) or windows.shape[0] % prod(grid):
        wanted = f"(B * {prod(grid)}, {prod(window)}, C)"
        raise ValueError(f"windows: got the shape {tuple(windows.shape)}, wanted {wanted} for the map {space}")
    n, batch, channels = len(space), windows.shape[0] // prod(grid), windows.shape[-1]
    split = windows.reshape(batch, *grid, *window, channels)
    order = (0, *(axis for i in range(1, n + 1) for axis in (i, i + n)), 2 * n + 1)
    return split.permute(order).reshape(batch, *space, channels)


def fit_window(
    space: Sequence[int], window: Sequence[int], shift: Sequence[int], clamp: str = "axis"
) -> tuple[Sizes, Sizes]:
    """The window and shift that a map of this size gets.

    ``"axis"`` (MONAI, SwiFT, timm): on each axis that is not larger than its window the window is the whole axis, and
    nothing is shifted. ``"joint"`` (the official 2-D Swin, transformers): once the smallest axis is not larger than
    the smallest window, windows have that size on every axis, and nothing is shifted.
    """
    space = sizes("space", space)
    window, shift = sizes("window", window, len(space)), sizes("shift", shift, len(space), least=0)
    if clamp == "joint":
        if min(space) <= min(window):
            return (min(space),) * len(space), (0,) * len(space)
        return window, shift
    if clamp != "axis":
        raise ValueError(f"clamp: got {clamp!r}, wanted 'axis' or 'joint'")
    fits = [size <= w for size, w in zip(space, window, strict=True)]
    return (
        tuple(size if fit else w for size, w, fit in zip(space, window, fits, strict=True)),
        tuple(0 if fit else s for s, fit in zip(shift, fits, strict=True)),
    )


def padded(space: Sequence[int], window: Sequence[int]) -> Sizes:
    """`space` rounded up to whole windows."""
    return tuple(-(-size // w) * w for size, w in zip(space, window, strict=True))


def pad_to_window(x: Tensor, window: Sequence[int]) -> tuple[Tensor, Sizes]:
    """The map with zeros at the end of each axis up to whole windows, and its size before."""
    window = sizes("window", window, x.dim() - 2)
    space = tuple(x.shape[1:-1])
    by = [wanted - size for wanted, size in zip(padded(space, window), space, strict=True)]
    if any(by):
        x = F.pad(x, (0, 0, *(n for amount in reversed(by) for n in (0, amount))))
    return x, space


def cyclic_shift(x: Tensor, shift: Sequence[int], undo: bool = False) -> Tensor:
    """Roll the spatial axes of (B, *space, C) by -`shift`; with `undo` by +`shift`."""
    shift = sizes("shift", shift, x.dim() - 2, least=0)
    if not any(shift):
        return x
    return torch.roll(x, [s if undo else -s for s in shift], tuple(range(1, x.dim() - 1)))


def _check_shift(space: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> tuple[Sizes, Sizes, Sizes]:
    space = sizes("space_padded", space)
    window, shift = sizes("window", window, len(space)), sizes("shift", shift, len(space), least=0)
    if any(size % w for size, w in zip(space, window, strict=True)):
        raise ValueError(f"space_padded: got {space}, wanted multiples of the window {window}")
    if any(s >= w for s, w in zip(shift, window, strict=True)):
        raise ValueError(f"shift: got {shift}, wanted less than the window {window} on every axis")
    return space, window, shift


def shift_regions(space_padded: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Which region each token of each window of a rolled map comes from: labels, int64 (windows, N).

    On each axis the regions are what lies before the last window, the last window up to the shift, and the rest; an
    axis without shift is one region. Tokens attend to one another inside a region.
    """
    space, window, shift = _check_shift(space_padded, window, shift)
    labels = torch.zeros(1, *space, 1, dtype=torch.long, device="cpu")
    for axis, (size, w, s) in enumerate(zip(space, window, shift, strict=True)):
        place = torch.arange(size, device="cpu")
        region = ((place >= size - w).long() + (place >= size - s).long()) * bool(s)
        labels = labels * 3 + region.view(-1, *(1,) * (len(space) - axis))
    return window_partition(labels, window).squeeze(-1)


def shift_mask(
    space_padded: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    device: torch.device | str | None = None,
) -> Tensor | None:
    """Who may attend to whom in the windows of a rolled map: bool (windows, N, N), or None where nothing is shifted.

    The result is cached and shared: do not change it.
    """
    space, window, shift = _check_shift(space_padded, window, shift)
    return _shift_mask(space, window, shift, torch.device(device or "cpu")) if any(shift) else None


@kept
def _shift_mask(space: Sizes, window: Sizes, shift: Sizes, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        labels = shift_regions(space, window, shift)
        return (labels.unsqueeze(1) == labels.unsqueeze(2)).to(device)


@kept
def index_of(window: Sizes) -> Tensor:
    with torch.inference_mode(False):
        places = torch.tensor(list(product(*map(range, window))), device="cpu")
        offsets = places.unsqueeze(1) - places.unsqueeze(0) + torch.tensor([w - 1 for w in window], device="cpu")
        index = torch.zeros(offsets.shape[:2], dtype=torch.long, device="cpu")
        for axis, w in enumerate(window):
            index = index * (2 * w - 1) + offsets[..., axis]
        return index


def relative_position_index(window: Sequence[int]) -> Tensor:
    """The row of the bias table for each pair of tokens of a window: int64 (N, N)."""
    return index_of(sizes("window", window)).clone()


@kept
def index_inside(smaller: Sizes, window: Sizes) -> Tensor:
    """As `index_of`, of the smaller window, with rows of the larger window's table."""
    with torch.inference_mode(False):
        inside = [place for place, at in enumerate(product(*map(range, window))) if all(map(int.__lt__, at, smaller))]
        return index_of(window)[inside][:, inside]
