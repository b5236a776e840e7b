"""Window attention over 1 to 4 spatial axes: windows, shifts, masks, relative position bias (Swin, arXiv 2103.14030).

Maps are channels-last, (B, *space, C). A window of size M_1 x ... x M_n holds N = M_1 ... M_n tokens; attention inside
one is softmax(q k^T / sqrt(d) + bias + mask) v, with one bias a head for each offset between two tokens (Eq. 4).
Blocks alternate between windows in place and windows shifted by half their size; a shifted grid is rolled, so that the
windows stay full, and a mask keeps tokens apart that the roll brought together (section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "RelativePositionBias",
    "WindowAttention",
    "cyclic_shift",
    "fit_window",
    "pad_to_window",
    "relative_position_index",
    "shift_mask",
    "shift_regions",
    "window_partition",
    "window_reverse",
]

Sizes = tuple[int, ...]
AXES = range(1, 5)


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
    labels = torch.zeros(1, *space, 1, dtype=torch.long)
    for axis, (size, w, s) in enumerate(zip(space, window, shift, strict=True)):
        place = torch.arange(size)
        region = (place >= size - w).long() + (place >= size - s).long() if s else torch.zeros(size, dtype=torch.long)
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


@lru_cache(maxsize=64)
def _shift_mask(space: Sizes, window: Sizes, shift: Sizes, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        labels = shift_regions(space, window, shift)
        return (labels.unsqueeze(1) == labels.unsqueeze(2)).to(device)


@lru_cache(maxsize=64)
def _index(window: Sizes) -> Tensor:
    with torch.inference_mode(False):
        places = torch.tensor(list(product(*map(range, window))))
        offsets = places.unsqueeze(1) - places.unsqueeze(0) + torch.tensor([w - 1 for w in window])
        index = torch.zeros(offsets.shape[:2], dtype=torch.long)
        for axis, w in enumerate(window):
            index = index * (2 * w - 1) + offsets[..., axis]
        return index


def relative_position_index(window: Sequence[int]) -> Tensor:
    """The row of the bias table for each pair of tokens of a window: int64 (N, N)."""
    return _index(sizes("window", window)).clone()


@lru_cache(maxsize=64)
def _index_in(smaller: Sizes, window: Sizes) -> Tensor:
    """As `_index` of the smaller window, with rows of the larger window's table."""
    with torch.inference_mode(False):
        inside = [place for place, at in enumerate(product(*map(range, window))) if all(map(int.__lt__, at, smaller))]
        return _index(window)[inside][:, inside]


class RelativePositionBias(nn.Module):
    """One learned number a head and offset: a table (prod(2 M - 1), heads), looked up as (heads, N, N).

    Without gradients the looked-up bias is kept until the table changes, in place or by ``load_state_dict``.

    Args:
        window: size of the window on each axis.
        num_heads: number of heads.
    """

    def __init__(
        self,
        window: Sequence[int],
        num_heads: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.window, self.num_heads = sizes("window", window), num_heads
        rows = prod(2 * w - 1 for w in self.window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, num_heads, device=device, dtype=dtype))
        self._kept: dict[Any, tuple[Tensor, Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of standard deviation 0.02."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def extra_repr(self) -> str:
        """Window and heads."""
        return f"window={self.window}, num_heads={self.num_heads}"

    def forward(self, n: int | None = None, exact: Sequence[int] | None = None) -> Tensor:
        """The bias (heads, N, N).

        Args:
            n: of the first `n` tokens of the index: what MONAI and SwiFT give a window that was clamped to `n` tokens.
                Their offsets are those of other tokens unless only the first axis was clamped.
            exact: a smaller window, whose tokens get the bias of their true offsets.
        """
        if n is not None and exact is not None:
            raise ValueError("exact: got both n and exact, wanted one")
        if exact is not None:
            exact = sizes("exact", exact, len(self.window))
            if any(e > w for e, w in zip(exact, self.window, strict=True)):
                raise ValueError(f"exact: got {exact}, wanted no more than the window {self.window}")
            index = _index_in(exact, self.window)
        else:
            index = _index(self.window)
            if n is not None:
                if not 1 <= n <= len(index):
                    raise ValueError(f"n: got {n}, wanted 1 to {len(index)}")
                index = index[:n, :n]
        table = self.relative_position_bias_table
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and table.requires_grad):
            return self._look_up(index)
        key = (tuple(index.shape), exact, table.dtype, table.device)
        kept = self._kept.get(key)
        if kept is None or not torch.equal(kept[0], table):
            if kept is not None:
                self._kept.clear()
            kept = self._kept[key] = (table.detach().clone(), self._look_up(index).detach())
        return kept[1]

    def _look_up(self, index: Tensor) -> Tensor:
        table = self.relative_position_bias_table
        rows = index.reshape(-1).to(table.device)
        return table.t().index_select(1, rows).view(self.num_heads, *index.shape)


Backend = Literal["sdpa", "eager", "flex"]


class WindowAttention(nn.Module):
    """Multi-head attention inside windows: softmax(q k^T / sqrt(d) + bias + mask) v, then a projection (Eq. 4).

    Args:
        dim: channels C, a multiple of `num_heads`.
        num_heads: number of heads.
        window: size of the window, for the bias.
        qkv_bias: biases of the projections to queries, keys and values.
        bias: ``"relative"`` for a relative position bias, which wants `window`, or None for none.
        attn_drop, proj_drop: dropout of the attention and of what comes out.
        backend: ``"sdpa"``, PyTorch's fused attention; ``"eager"``, its steps one by one; ``"flex"``, FlexAttention.

    Raises ValueError for sizes that do not go together or a backend that is not known.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Sequence[int] | None = None,
        qkv_bias: bool = True,
        bias: str | None = "relative",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: Backend = "sdpa",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim: got {dim}, wanted a multiple of num_heads={num_heads}")
        if backend not in ("sdpa", "eager", "flex"):
            raise ValueError(f"backend: got {backend!r}, wanted 'sdpa', 'eager' or 'flex'")
        if bias not in ("relative", None):
            raise ValueError(f"bias: got {bias!r}, wanted 'relative' or None")
        if bias == "relative" and window is None:
            raise ValueError("window: got None, wanted its sizes for the relative position bias")
        self.dim, self.num_heads, self.backend = dim, num_heads, backend
        self.window = None if window is None else sizes("window", window)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.attn_drop, self.proj_drop = attn_drop, nn.Dropout(proj_drop)
        self.bias: RelativePositionBias | None = None
        if bias == "relative" and self.window is not None:
            self.bias = RelativePositionBias(self.window, num_heads, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        """Sizes and backend."""
        return f"dim={self.dim}, num_heads={self.num_heads}, window={self.window}, backend={self.backend!r}"

    def forward(self, x: Tensor, mask: Tensor | None = None, window: Sequence[int] | None = None) -> Tensor:
        """Attention inside each window.

        Args:
            x: (B * windows, N, C), the batch outermost.
            mask: (windows, N, N), bool with True where attention is allowed, or additive.
            window: the sizes of a clamped window, whose tokens then get the bias of their true offsets; without it
                the first N tokens' (see `RelativePositionBias`).

        Returns (B * windows, N, C).
        """
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B * windows, N, {self.dim})")
        n = x.shape[1]
        if mask is not None and (mask.dim() != 3 or mask.shape[1:] != (n, n) or x.shape[0] % mask.shape[0]):
            wanted = f"(windows, {n}, {n}) with {x.shape[0]} a multiple of windows"
            raise ValueError(f"mask: got the shape {tuple(mask.shape)}, wanted {wanted}")
        if self.bias is not None and window is None and n > prod(self.bias.window):
            raise ValueError(f"x: got {n} tokens a window, wanted at most {prod(self.bias.window)}")
        heads = (3, self.num_heads, self.dim // self.num_heads)
        q, k, v = self.qkv(x).view(x.shape[0], n, *heads).permute(2, 0, 3, 1, 4)
        bias = None if self.bias is None else self.bias(exact=window) if window is not None else self.bias(n)
        attend = {"sdpa": self._fused, "eager": self._eager, "flex": self._flex}[self.backend]
        found = attend(q, k, v, None if bias is None else bias.to(q.dtype), mask)
        return self.proj_drop(self.proj(found.transpose(1, 2).reshape(x.shape)))

    def _added(self, q: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """What is added to the scores: (1 or windows, heads or 1, N, N)."""
        if mask is None:
            return None if bias is None else bias.unsqueeze(0)
        if mask.dtype == torch.bool:
            mask = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)
        mask = mask.to(q.dtype).unsqueeze(1)
        return mask if bias is None else mask + bias

    def _eager(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        added = self._added(q, bias, mask)
        if added is not None:
            scores = (scores.unflatten(0, (scores.shape[0] // added.shape[0], added.shape[0])) + added).view(
                scores.shape
            )
        return F.dropout(scores.softmax(-1), self.attn_drop, self.training) @ v

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        added, dropout = self._added(q, bias, mask), self.attn_drop if self.training else 0.0
        if added is not None and 1 < added.shape[0] < q.shape[0]:
            # one call an image: the mask of its windows is not repeated over the batch
            parts = zip(*(t.split(added.shape[0]) for t in (q, k, v)), strict=True)
            return torch.cat([F.scaled_dot_product_attention(a, b, c, added, dropout) for a, b, c in parts])
        return F.scaled_dot_product_attention(q, k, v, added, dropout)

    def _flex(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        if self.training and self.attn_drop:
            raise ValueError("attn_drop: got a dropout of the attention in training, which FlexAttention does not have")
        added = self._added(q, bias, mask)
        if added is None:
            return flex_attention(q, k, v)
        windows, heads = added.shape[:2]

        def score(found: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return found + added[b % windows, h if heads > 1 else 0, i, j]

        return flex_attention(q, k, v, score_mod=score)
