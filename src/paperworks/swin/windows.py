"""Window attention over 1 to 4 spatial axes: windows, shifts, masks, relative position bias (Swin, arXiv 2103.14030).

Maps are channels-last, (B, *space, C). A window of size M_1 x ... x M_n holds N = M_1 ... M_n tokens; attention inside
one is softmax(q k^T / sqrt(d) + bias + mask) v, with one bias a head for each offset between two tokens (Eq. 4).
Blocks alternate between windows in place and windows shifted by half their size; a shifted grid is rolled, so that the
windows stay full, and a mask keeps tokens apart that the roll brought together (section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.swin.geometry import (
    Sizes,
    cyclic_shift,
    fit_window,
    index_inside,
    index_of,
    pad_to_window,
    padded,
    relative_position_index,
    shift_mask,
    shift_regions,
    sizes,
    window_partition,
    window_reverse,
)
from paperworks.swin.windows_cpu import Layout, attend, usable

__all__ = [
    "RelativePositionBias",
    "Sizes",
    "WindowAttention",
    "cyclic_shift",
    "fit_window",
    "pad_to_window",
    "padded",
    "relative_position_index",
    "shift_mask",
    "shift_regions",
    "sizes",
    "window_partition",
    "window_reverse",
]


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
            index = index_inside(exact, self.window)
        else:
            index = index_of(self.window)
            if n is not None:
                if not 1 <= n <= len(index):
                    raise ValueError(f"n: got {n}, wanted 1 to {len(index)}")
                index = index[:n, :n]
        table = self.relative_position_bias_table
        if torch.compiler.is_compiling() or table.is_meta or (torch.is_grad_enabled() and table.requires_grad):
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
        backend: ``"sdpa"``, PyTorch's fused attention, or in blocks on a CPU our own loops; ``"eager"``, its steps one
            by one; ``"flex"``, FlexAttention.

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

    def fits_loops(self, x: Tensor) -> bool:
        """Whether `on_map` can take `x`: the fused loops of `paperworks.swin.windows_cpu` work, and are wanted."""
        table = None if self.bias is None else self.bias.relative_position_bias_table
        dropped = self.attn_drop > 0 and self.training
        return self.backend == "sdpa" and not dropped and usable(x, self.qkv.weight, self.qkv.bias, table)

    def on_map(self, x: Tensor, at: Layout, window: Sequence[int] | None = None) -> Tensor:
        """As `forward` on the windows of a whole map (B, *space, C), in fused loops; `window` as there."""
        tokens = x.reshape(x.shape[0], prod(x.shape[1:-1]), self.dim)
        bias = None if self.bias is None else self.bias(at.rows.shape[1] if window is None else None, window)
        found = attend(F.linear(tokens, self.qkv.weight), self.qkv.bias, bias, at, self.num_heads)
        return self.proj_drop(self.proj(found).view(x.shape))

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
