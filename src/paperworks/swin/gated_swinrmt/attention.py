"""Retention in two passes along the axes: of windows, gated (`GatedRetention`), and of whole maps (RMT's)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.swin.gated_swinrmt.decay import distance_tables, manhattan_table, rotary_tables, rotate
from paperworks.swin.gated_swinrmt.depthwise import add_depthwise, by_tensors
from paperworks.swin.gated_swinrmt.masks import AxisMasks
from paperworks.swin.gated_swinrmt.passes import Passes, fused_passes
from paperworks.swin.gated_swinrmt.projected import projected_passes

__all__ = ["GatedRetention", "ManhattanRetention"]

Variant = Literal["retention", "swat"]
VARIANTS = ("retention", "swat")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that softmax and sums are computed in: float32 for half precision, else the same."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_dtype(x: Tensor, weight: Tensor) -> None:
    """Raises TypeError for an input of another dtype than the weights', unless autocast makes them one."""
    if x.dtype != weight.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
        raise TypeError(f"x: got {x.dtype}, wanted {weight.dtype}, the dtype of the weights")


class _Retention(nn.Module):
    """Projections, rotary angles, local enhancement, and the two passes."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        variant: str,
        rotary: bool,
        lce_kernel: int,
        initial_value: float,
        heads_range: float,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim: got {dim}, wanted a multiple of num_heads={num_heads}")
        if variant not in VARIANTS:
            raise ValueError(f"variant: got {variant!r}, wanted 'retention' or 'swat'")
        if lce_kernel < 1 or lce_kernel % 2 == 0:
            raise ValueError(f"lce_kernel: got {lce_kernel}, wanted an odd number from 1")
        width = dim // num_heads
        if rotary and (width % 2 or width < 4):
            raise ValueError(f"dim: got {width} channels a head, wanted an even number from 4 (or rotary=False)")
        self.dim, self.num_heads, self.variant, self.rotary = dim, num_heads, variant, rotary
        self.initial_value, self.heads_range = initial_value, heads_range
        # a decay that is none is refused here, not at the first forward pass
        distance_tables(1, num_heads, initial_value, heads_range, torch.float32, torch.device("cpu"))
        self.q_proj = nn.Linear(dim, dim, **factory)
        self.k_proj = nn.Linear(dim, dim, **factory)
        self.v_proj = nn.Linear(dim, dim, **factory)
        self.out_proj = nn.Linear(dim, dim, **factory)
        self.lce = nn.Conv2d(dim, dim, lce_kernel, padding=lce_kernel // 2, groups=dim, **factory)
        self.gate: nn.Linear | None = None
        self.v_gate: nn.Linear | None = None

    def reset_parameters(self) -> None:
        """Xavier-normal, of gain 2^-2.5 for queries, keys, values and gates and 1 for the projection; zero biases."""
        for linear, gain in (
            *((layer, 2**-2.5) for layer in (self.q_proj, self.k_proj, self.v_proj, self.gate, self.v_gate) if layer),
            (self.out_proj, 1.0),
        ):
            nn.init.xavier_normal_(linear.weight, gain)
            nn.init.zeros_(linear.bias)
        self.lce.reset_parameters()

    def extra_repr(self) -> str:
        """Sizes and variant."""
        return f"dim={self.dim}, num_heads={self.num_heads}, variant={self.variant!r}, rotary={self.rotary}"

    def _raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and k of (B, h, w, C) as projected: each (B, h, w, H, D)."""
        heads = (self.num_heads, self.dim // self.num_heads)
        return self.q_proj(x).unflatten(-1, heads), self.k_proj(x).unflatten(-1, heads)

    def _angles(self, q: Tensor) -> tuple[Tensor, Tensor] | None:
        _, h, w, _, width = q.shape
        return rotary_tables(h, w, width, q.dtype, q.device) if self.rotary else None

    def _turned(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q rotated, k rotated and scaled."""
        k, angles = k * q.shape[-1] ** -0.5, self._angles(q)
        return (q, k) if angles is None else (rotate(q, angles), rotate(k, angles))

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._turned(*self._raw(x))

    def _values(self, x: Tensor) -> Tensor:
        v = self.v_proj(x)
        return v if self.v_gate is None else F.silu(self.v_gate(x)) * v

    def _tables(
        self, like: Tensor, length: int, allowed: Tensor | None, added: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What is added to the scores of a pass, and the factors of the sigmoid: (H, L, L), or with a mask (nW, lines
        or 1, H, L, L). `allowed` and `added` are (nW, lines or 1, L, L)."""
        dtype = wide(like.dtype)
        decay, alibi = distance_tables(length, self.num_heads, self.initial_value, self.heads_range, dtype, like.device)
        if allowed is not None:
            allowed = allowed.unsqueeze(2)
            added = None if added is None else added.unsqueeze(2).to(dtype)
        if self.variant == "swat":
            factor = decay.exp() if allowed is None else decay.exp() * allowed
            return (-alibi if added is None else added - alibi).expand_as(factor), factor
        bias = decay if added is None else decay + added
        if allowed is not None:
            # a token that may attend to none attends to itself
            alone = ~allowed.any(-1, keepdim=True) & torch.eye(length, dtype=torch.bool, device=like.device)
            bias = bias.masked_fill(~allowed, -torch.inf).masked_fill(alone, 0)
        return bias, None

    def _both_tables(
        self, q: Tensor, h: int, w: int, masks: AxisMasks | None
    ) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """Tables of the width pass and of the height pass."""
        if masks is None:
            return self._tables(q, w, None, None), self._tables(q, h, None, None)
        return (
            self._tables(q, w, masks.rows, masks.row_scores),
            self._tables(q, h, masks.columns, masks.column_scores),
        )

    @staticmethod
    def _weights(scores: Tensor, tables: tuple[Tensor, Tensor | None]) -> Tensor:
        """P from the scores (B, lines, H, L, L) of one pass."""
        (bias, factor), shape = tables, scores.shape
        wider = scores.to(bias.dtype)
        if bias.dim() == 5:
            wider = wider.unflatten(0, (shape[0] // bias.shape[0], bias.shape[0]))
        if factor is None:
            return (wider + bias).softmax(-1).view(shape)
        weights = torch.sigmoid(wider + bias) * factor
        return (weights / weights.sum(-1, keepdim=True).clamp(min=1)).view(shape)

    def _row_and_column_weights(self, q: Tensor, k: Tensor, masks: AxisMasks | None) -> tuple[Tensor, Tensor]:
        """P of the width pass (B, h, H, w, w), and of the height pass (B, w, H, h, h)."""
        rows, columns = self._both_tables(q, q.shape[1], q.shape[2], masks)
        return (
            self._weights(q.transpose(2, 3) @ k.permute(0, 1, 3, 4, 2), rows),
            self._weights(q.permute(0, 2, 3, 1, 4) @ k.permute(0, 2, 3, 4, 1), columns),
        )

    def _passes(self, q: Tensor, k: Tensor, v: Tensor, masks: AxisMasks | None) -> Tensor:
        """v (B, h, w, H, D) after the width pass and then the height pass, (B, h, w, H, D)."""
        rows, columns = self._row_and_column_weights(q, k, masks)
        v = rows.to(v.dtype) @ v.transpose(2, 3)
        v = columns.to(v.dtype) @ v.permute(0, 3, 2, 1, 4)
        return v.permute(0, 3, 1, 2, 4)

    def _tables_of(self, like: Tensor, h: int, w: int, masks: AxisMasks | None) -> Passes:
        """What the loops and the kernel need for q like `like`, of windows of h x w."""
        width = self.dim // self.num_heads
        return Passes(
            rotary_tables(h, w, width, like.dtype, like.device) if self.rotary else None,
            width**-0.5,
            self._tables(like, w, None, None),
            self._tables(like, h, None, None),
            masks,
            lambda: self._both_tables(like, h, w, masks),
        )

    def _both_passes(self, q: Tensor, k: Tensor, v: Tensor, masks: AxisMasks | None) -> Tensor:
        """`_passes` of q and k as projected: in one go where that can be done."""

        def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self._passes(*self._turned(q, k), v, masks)

        found = fused_passes(q, k, v, self._tables_of(q, q.shape[1], q.shape[2], masks), eager)
        return eager(q, k, v) if found is None else found

    def _gated(self, x: Tensor, masks: AxisMasks | None) -> Tensor:
        """O of (B, h, w, C), the passes, and LCE, the depthwise convolution of the values inside each window; gated."""
        (q, k), v = self._raw(x), self._values(x)
        found = self._both_passes(q, k, v.unflatten(-1, q.shape[-2:]), masks)
        found = add_depthwise(self.lce, v, found.flatten(-2))
        return found if self.gate is None else found * torch.sigmoid(self.gate(x))

    def _gated_by_tensors(self, masks: AxisMasks | None, x: Tensor, *parameters: Tensor) -> Tensor:
        """`_gated` of weights and biases given in the order of `projected_passes`, in tensor operations."""
        pairs = zip(parameters[:-2:2], parameters[1:-2:2], strict=True)
        q, k, v, *gates = (F.linear(x, weight, bias) for weight, bias in pairs)
        if self.v_gate is not None:
            v = F.silu(gates[0]) * v
        q, k, values = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        lce = by_tensors(v, parameters[-2], parameters[-1])
        found = self._passes(*self._turned(q, k), values, masks).flatten(-2) + lce
        return found if self.gate is None else found * torch.sigmoid(gates[0])

    def _attended(self, x: Tensor, masks: AxisMasks | None) -> Tensor:
        found = projected_passes(
            self, x, lambda: self._tables_of(x, x.shape[1], x.shape[2], masks), partial(self._gated_by_tensors, masks)
        )
        return self.out_proj(self._gated(x, masks) if found is None else found)


class GatedRetention(_Retention):
    """Attention of Gated-SwinRMT inside windows: two passes with Manhattan decay, and a gate.

    It takes the place of Swin's and timm's `WindowAttention`: called as ``attn(windows, mask)``.

    Args:
        dim: channels C, a multiple of `num_heads`.
        num_heads: H.
        window_size: (h, w) of windows that come as (B', h w, C).
        variant: ``"retention"``, softmax and a sigmoid gate of the output; or ``"swat"``, a sigmoid with balanced
            slopes, rows normalised where they sum to more than 1, and a SiLU gate of the values.
        gate: the output gate of ``"retention"``; ``"swat"`` has its value gate always, and no other.
        rotary: turn queries and keys by their place in the window.
        lce_kernel: side of the depthwise convolution of the values, odd.
        initial_value, heads_range: a and r of `manhattan_log_decay`.

    Parameters: `q_proj`, `k_proj`, `v_proj`, `out_proj`, `lce`, and `gate` or `v_gate`. Raises ValueError for sizes
    that do not go together or a variant that is not known.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: Sequence[int] = (7, 7),
        variant: Variant = "retention",
        *,
        gate: bool = True,
        rotary: bool = True,
        lce_kernel: int = 5,
        initial_value: float = 2.0,
        heads_range: float = 4.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(dim, num_heads, variant, rotary, lce_kernel, initial_value, heads_range, factory)
        self.set_window_size(window_size)
        if variant == "swat":
            self.v_gate = nn.Linear(dim, dim, **factory)
        elif gate:
            self.gate = nn.Linear(dim, dim, **factory)
        self.reset_parameters()

    def set_window_size(self, window_size: Sequence[int]) -> None:
        """The (h, w) of windows that come as (B', h w, C); nothing learned depends on it (timm calls this)."""
        found = tuple(int(size) for size in window_size)
        if len(found) != 2 or min(found) < 1 or found != tuple(window_size):
            raise ValueError(f"window_size: got {tuple(window_size)}, wanted two whole numbers from 1")
        self.window_size = found

    def extra_repr(self) -> str:
        """Sizes and variant."""
        return f"{super().extra_repr()}, window_size={self.window_size}"

    def _window(self, x: Tensor) -> tuple[int, int]:
        if x.dim() == 4 and x.shape[-1] == self.dim and min(x.shape[1:3]) > 0:
            return x.shape[1], x.shape[2]
        if x.dim() == 3 and x.shape[1:] == (prod(self.window_size), self.dim):
            return self.window_size
        wanted = f"(B', h, w, {self.dim}) or (B', {prod(self.window_size)}, {self.dim}), windows of {self.window_size}"
        raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted {wanted}")

    def _masks(self, mask: Tensor | AxisMasks | None, windows: int, h: int, w: int) -> AxisMasks | None:
        if mask is None:
            return None
        if isinstance(mask, Tensor) and not (mask.dtype == torch.bool or mask.is_floating_point()):
            raise TypeError(f"mask: got {mask.dtype}, wanted bool, or floating numbers that are added")
        if isinstance(mask, Tensor) and mask.shape[1:] != (h * w, h * w):
            raise ValueError(f"mask: got the shape {tuple(mask.shape)}, wanted (nW, {h * w}, {h * w})")
        masks = AxisMasks.of(mask, h, w) if isinstance(mask, Tensor) else mask
        if masks.rows.shape[2:] != (w, w) or masks.columns.shape[2:] != (h, h):
            got = f"{tuple(masks.rows.shape)} and {tuple(masks.columns.shape)}"
            raise ValueError(f"mask: got rows and columns of {got}, wanted (nW, h, {w}, {w}) and (nW, w, {h}, {h})")
        if masks.windows == 0 or windows % masks.windows:
            raise ValueError(f"mask: got {masks.windows} windows, wanted a divisor of the {windows} of x")
        return masks

    def forward(self, x: Tensor, mask: Tensor | AxisMasks | None = None) -> Tensor:
        """Attention inside each window.

        Args:
            x: (B', h, w, C), or (B', h w, C) with h, w = `window_size`; B' is batch x windows, the batch outermost.
            mask: (nW, h w, h w), bool with True where attention is allowed, or additive: at most -50 means not allowed,
                other numbers are added to the scores. B' is a multiple of nW. Each pass looks at the pairs on its axis;
                `AxisMasks` gives those alone. A token that may attend to none takes itself in "retention" and nothing
                in "swat".

        Returns the shape of `x`. Raises ValueError for shapes that do not fit, TypeError for another dtype.
        """
        check_dtype(x, self.lce.weight)
        h, w = self._window(x)
        masks = self._masks(mask, x.shape[0], h, w)
        windows = x.view(x.shape[0], h, w, self.dim) if x.dim() == 4 else x.unflatten(1, (h, w))
        return self._attended(windows, masks).view(x.shape)

    def attention_map(self, x: Tensor, mask: Tensor | AxisMasks | None = None) -> Tensor:
        """How much every token takes of every other by both passes together, without LCE and gates.

        Args:
            x, mask: as in `forward`.

        Returns (B', H, h w, h w): entry [(r, c), (r', c')] = P_height[c][r, r'] P_width[r'][c, c'].
        """
        h, w = self._window(x)
        masks = self._masks(mask, x.shape[0], h, w)
        return _outer(*self._row_and_column_weights(*self._queries_and_keys(x.reshape(-1, h, w, self.dim)), masks))


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    return torch.einsum("bchrs,bshcd->bhrcsd", columns, rows).flatten(2, 3).flatten(3)


class ManhattanRetention(_Retention):
    """RMT's retention over a whole map: the two passes of "retention" without gate, or full attention.

    Args:
        dim, num_heads: channels and heads.
        decomposed: two passes along the axes; else softmax(q k^T + (|dr| + |dc|) ln gamma) over all pairs.
        rotary, lce_kernel, initial_value, heads_range: as in `GatedRetention`.

    Parameters as `GatedRetention` with ``gate=False``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        decomposed: bool = True,
        *,
        rotary: bool = True,
        lce_kernel: int = 5,
        initial_value: float = 2.0,
        heads_range: float = 4.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(dim, num_heads, "retention", rotary, lce_kernel, initial_value, heads_range, factory)
        self.decomposed = decomposed
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Sizes and kind."""
        return f"dim={self.dim}, num_heads={self.num_heads}, decomposed={self.decomposed}, rotary={self.rotary}"

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[-1] != self.dim or min(x.shape[1:3]) < 1:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B, H, W, {self.dim})")

    def _full_weights(self, q: Tensor, k: Tensor) -> Tensor:
        """softmax over all pairs, (B, H, h w, h w)."""
        _, h, w, heads, _ = q.shape
        scores = q.flatten(1, 2).transpose(1, 2) @ k.flatten(1, 2).permute(0, 2, 3, 1)
        dtype = wide(scores.dtype)
        table = manhattan_table(h, w, heads, self.initial_value, self.heads_range, dtype, scores.device)
        return (scores.to(dtype) + table).softmax(-1)

    def _both_passes(self, q: Tensor, k: Tensor, v: Tensor, masks: AxisMasks | None) -> Tensor:
        if self.decomposed:
            return super()._both_passes(q, k, v, masks)
        found = self._full_weights(*self._turned(q, k)).to(v.dtype) @ v.flatten(1, 2).transpose(1, 2)
        return found.transpose(1, 2).view(v.shape)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same shape. Raises ValueError for another shape, TypeError for another dtype."""
        check_dtype(x, self.lce.weight)
        self._check(x)
        return self._attended(x, None) if self.decomposed else self.out_proj(self._gated(x, None))

    def attention_map(self, x: Tensor) -> Tensor:
        """How much every token takes of every other, without LCE: (B, heads, H W, H W)."""
        self._check(x)
        q, k = self._queries_and_keys(x)
        return _outer(*self._row_and_column_weights(q, k, None)) if self.decomposed else self._full_weights(q, k)
