"""Blocks and backbones of shifted-window transformers over 1 to 4 spatial axes, channels-last (Swin, 2103.14030).

Where reference implementations disagree the choice is an option: how a window is clamped on a small map, whether a map
is rolled before or after it is padded, which bias a clamped window gets, and the order of the patches that merge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.swin.windows import (
    Sizes,
    WindowAttention,
    cyclic_shift,
    fit_window,
    pad_to_window,
    padded,
    shift_mask,
    sizes,
    window_partition,
    window_reverse,
)
from paperworks.swin.windows_cpu import layout, mlp, usable

__all__ = ["MERGE_ORDERS", "DropPath", "Mlp", "PatchEmbed", "PatchMerging", "WindowBlock"]

MONAI_ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
LEGACY_ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
MERGE_ORDERS = ("product", "swin2d", "monai", "monai-legacy")


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is dropped with probability `p`, and scaled by 1 / (1 - p)."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p: got {p}, wanted 0 <= p < 1")
        self.p = p

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """The branch (B, ...), with some of its samples zero."""
        if not self.training or self.p == 0:
            return x
        kept = torch.empty(x.shape[0], *(1,) * (x.dim() - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * kept.div_(1 - self.p)


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))) with dropout after each layer."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, **factory: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, **factory)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim, **factory)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        if not (self.drop.p and self.training) and usable(x, *self.parameters()):
            return mlp(x, self.fc1, self.fc2)
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


Attention = Callable[[Tensor, Tensor | None], Tensor]


class WindowBlock(nn.Module):
    """x + attention in windows of LN(x), then x + MLP(LN(x)) (Eq. 3).

    Args:
        dim, num_heads: channels and heads.
        window, shift: sizes on each axis; a shift of 0 on every axis gives windows in place.
        mlp_ratio: width of the MLP over `dim`.
        drop, attn_drop, drop_path: dropout after projections, of the attention, and of whole branches.
        norm_eps: of both layer norms.
        attention: a module called as ``attention(windows, mask)`` in place of `WindowAttention`.
        qkv_bias, bias: of `WindowAttention`.
        clamp: see `fit_window`.
        order: ``"pad-roll"`` (MONAI, SwiFT, transformers) pads the map and rolls it; ``"roll-pad"`` (timm) rolls the
            map as it is. They differ where a map is no multiple of its window and the block shifts.
        mask_padding: keep tokens from attending to padding; no reference does.
        clamped_bias: which bias a clamped window gets: ``"cut"``, the first tokens' (MONAI, SwiFT), or ``"exact"``,
            that of the true offsets.

    Raises ValueError for sizes that do not go together, or an option that is not known.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Sequence[int],
        shift: Sequence[int],
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        attention: nn.Module | None = None,
        *,
        qkv_bias: bool = True,
        bias: str | None = "relative",
        clamp: str = "axis",
        order: str = "pad-roll",
        mask_padding: bool = False,
        clamped_bias: str = "cut",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("clamp", clamp, ("axis", "joint")),
            ("order", order, ("pad-roll", "roll-pad")),
            ("clamped_bias", clamped_bias, ("cut", "exact")),
        ):
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, wanted {known[0]!r} or {known[1]!r}")
        self.window = sizes("window", window)
        self.shift = sizes("shift", shift, len(self.window), least=0)
        if any(s >= w for s, w in zip(self.shift, self.window, strict=True)):
            raise ValueError(f"shift: got {self.shift}, wanted less than the window {self.window} on every axis")
        self.clamp, self.order, self.mask_padding, self.clamped_bias = clamp, order, mask_padding, clamped_bias
        factory = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, norm_eps, **factory)  # type: ignore[arg-type]
        if attention is None:
            attention = WindowAttention(
                dim, num_heads, self.window, qkv_bias, bias, attn_drop, drop, device=device, dtype=dtype
            )
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, norm_eps, **factory)  # type: ignore[arg-type]
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop, **factory)
        self.drop_path = DropPath(drop_path)

    def extra_repr(self) -> str:
        """Window, shift and the choices."""
        return f"window={self.window}, shift={self.shift}, clamp={self.clamp!r}, order={self.order!r}"

    def forward(self, x: Tensor) -> Tensor:
        """(B, *space, C) -> the same shape."""
        if x.dim() != len(self.window) + 2:
            wanted = f"{len(self.window)} spatial axes, channels last"
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted {wanted}")
        x = x + self.drop_path(self._attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attention(self, x: Tensor) -> Tensor:
        space = tuple(x.shape[1:-1])
        window, shift = fit_window(space, self.window, self.shift, self.clamp)
        exact = window if self.clamped_bias == "exact" and window != self.window else None
        if isinstance(self.attn, WindowAttention) and self.attn.fits_loops(x):
            at = layout(space, window, shift, self.order, self.mask_padding)
            return self.attn.on_map(x, at, exact)
        grid = padded(space, window)
        if self.order == "roll-pad":
            x = cyclic_shift(x, shift)
        x, _ = pad_to_window(x, window)
        if self.order == "pad-roll":
            x = cyclic_shift(x, shift)
        mask = shift_mask(grid, window, shift, x.device)
        if self.mask_padding and grid != space:
            real = self._real(space, window, shift, x.device)
            mask = real if mask is None else mask & real
        given = {} if exact is None or not isinstance(self.attn, WindowAttention) else {"window": exact}
        x = window_reverse(self.attn(window_partition(x, window), mask, **given), window, grid)
        if self.order == "pad-roll":
            x = cyclic_shift(x, shift, undo=True)
        x = x[(slice(None), *(slice(size) for size in space))]
        return cyclic_shift(x, shift, undo=True) if self.order == "roll-pad" else x

    def _real(self, space: Sizes, window: Sizes, shift: Sizes, device: torch.device) -> Tensor:
        """Keys that are no padding, (windows, N, N); padding attends to all, so that no row is empty."""
        real = torch.ones(1, *space, 1, device=device)
        real = cyclic_shift(real, shift) if self.order == "roll-pad" else real
        real = pad_to_window(real, window)[0]
        real = cyclic_shift(real, shift) if self.order == "pad-roll" else real
        keys = window_partition(real, window).squeeze(-1).bool()
        return keys.unsqueeze(1) | ~keys.unsqueeze(2)


class PatchEmbed(nn.Module):
    """Cut an input (B, C, *S) into patches and project each: (B, *S / patch, dim), channels last.

    On 1 to 3 axes a convolution `proj` with the patch as kernel and stride, on 4 a linear layer over the flattened
    patch, channels fastest.

    Args:
        ndim: number of spatial axes.
        patch: size of a patch, one number or one an axis.
        in_chans, dim: channels in and out.
        norm: a layer norm after the projection.

    An input that is no multiple of the patch is padded with zeros at the end of each axis.
    """

    def __init__(
        self,
        ndim: int,
        patch: int | Sequence[int],
        in_chans: int,
        dim: int,
        norm: bool = False,
        *,
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patch = sizes("patch", (patch,) * ndim if isinstance(patch, int) else patch, ndim)
        self.in_chans = in_chans
        factory: Any = {"device": device, "dtype": dtype}
        if ndim == 4:
            self.proj: nn.Module = nn.Linear(in_chans * prod(self.patch), dim, **factory)
        else:
            convolution: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[ndim]
            self.proj = convolution(in_chans, dim, self.patch, self.patch, **factory)
        self.norm = nn.LayerNorm(dim, norm_eps, **factory) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, *S) -> (B, *s, dim)."""
        n = len(self.patch)
        if x.dim() != n + 2 or x.shape[1] != self.in_chans:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B, {self.in_chans}, and {n} axes)")
        if any(size % p for size, p in zip(x.shape[2:], self.patch, strict=True)):
            by = [-size % p for size, p in zip(x.shape[2:], self.patch, strict=True)]
            x = F.pad(x, [amount for size in reversed(by) for amount in (0, size)])
        if n == 4:
            return self.norm(self.proj(self._patches(x)))
        return self.norm(self.proj(x).movedim(1, -1))

    def _patches(self, x: Tensor) -> Tensor:
        n, batch = len(self.patch), x.shape[0]
        grid = [size // p for size, p in zip(x.shape[2:], self.patch, strict=True)]
        split = x.movedim(1, -1).reshape(
            batch, *(part for g, p in zip(grid, self.patch, strict=True) for part in (g, p)), self.in_chans
        )
        order = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
        return split.permute(order).reshape(batch, *grid, self.in_chans * prod(self.patch))


def merge_offsets(ndim: int, axes: Sequence[int], order: str) -> tuple[Sizes, ...]:
    """Offsets of the patches that merge, in the order in which their channels are joined.

    ``"product"``: the last axis fastest; ``"swin2d"``: 00, 10, 01, 11 (official Swin, timm, transformers); ``"monai"``:
    000, 100, 010, 001, 110, 101, 011, 111; ``"monai-legacy"``: MONAI's first, which takes two patches twice and two
    never.
    """
    if order in ("monai", "monai-legacy"):
        if ndim != 3 or len(axes) != 3:
            raise ValueError(f"order: got {order!r} on {len(axes)} of {ndim} axes, wanted it on 3 of 3")
        return MONAI_ORDER if order == "monai" else LEGACY_ORDER
    if order not in MERGE_ORDERS:
        raise ValueError(f"order: got {order!r}, wanted one of {', '.join(MERGE_ORDERS)}")
    if order == "swin2d" and len(axes) != 2:
        raise ValueError(f"order: got 'swin2d' with {len(axes)} axes that merge, wanted 2")
    found = list(product(range(2), repeat=len(axes)))
    if order == "swin2d":
        found = [(i, j) for j in range(2) for i in range(2)]
    place = {axis: number for number, axis in enumerate(axes)}
    return tuple(tuple(at[place[a]] if a in place else 0 for a in range(ndim)) for at in found)


class PatchMerging(nn.Module):
    """Join neighbouring tokens along their channels, normalise, and project: half the size on each merged axis.

    Args:
        ndim: number of spatial axes.
        dim: channels in.
        axes: the axes that merge; all of them by default.
        order: see `merge_offsets`.
        out_mult: channels out over `dim`.
        bias: of the projection.
        pad: pad odd sizes with zeros at the end; without it they are an error.
    """

    def __init__(
        self,
        ndim: int,
        dim: int,
        axes: Sequence[int] | None = None,
        order: str = "product",
        out_mult: int = 2,
        bias: bool = False,
        pad: bool = True,
        *,
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.axes = tuple(range(ndim)) if axes is None else tuple(axes)
        if len(set(self.axes)) != len(self.axes) or not self.axes or not set(self.axes) <= set(range(ndim)):
            raise ValueError(f"axes: got {self.axes}, wanted some of 0 to {ndim - 1}")
        self.ndim, self.order, self.pad = ndim, order, pad
        self.offsets = merge_offsets(ndim, self.axes, order)
        factory: Any = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(len(self.offsets) * dim, norm_eps, **factory)
        self.reduction = nn.Linear(len(self.offsets) * dim, out_mult * dim, bias=bias, **factory)

    def extra_repr(self) -> str:
        """Axes and order."""
        return f"axes={self.axes}, order={self.order!r}"

    def forward(self, x: Tensor) -> Tensor:
        """(B, *space, C) -> (B, *merged, out_mult C)."""
        if x.dim() != self.ndim + 2:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted {self.ndim} spatial axes, channels last")
        steps = [2 if axis in self.axes else 1 for axis in range(self.ndim)]
        if any(size % step for size, step in zip(x.shape[1:-1], steps, strict=True)):
            if not self.pad:
                raise ValueError(f"x: got the sizes {tuple(x.shape[1:-1])}, wanted even ones on the axes {self.axes}")
            x, _ = pad_to_window(x, steps)
        taken = [(slice(None), *(slice(a, None, s) for a, s in zip(at, steps, strict=True))) for at in self.offsets]
        return self.reduction(self.norm(torch.cat([x[at] for at in taken], -1)))
