"""Tables of Gated-SwinRMT: decay and slopes by head and distance, rotary angles, and the window of an axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["adaptive_window", "balanced_alibi_slopes", "manhattan_log_decay"]


def kept(make: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what `make` computes by its arguments; compilers trace through it, so that none of their tensors is kept."""
    cached = lru_cache(maxsize=256)(make)

    @wraps(make)
    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
            return make(*args)
        # tables made in inference mode could not take part in training later
        with torch.inference_mode(False):
            return cached(*args)

    return call


def _heads(num_heads: int) -> None:
    if not isinstance(num_heads, int) or num_heads < 1:
        raise ValueError(f"num_heads: got {num_heads!r}, wanted a whole number from 1")


def _log_decay(num_heads: int, initial_value: float, heads_range: float, dtype: torch.dtype) -> Tensor:
    _heads(num_heads)
    exponents = initial_value + heads_range * torch.arange(num_heads, dtype=torch.float64, device="cpu") / num_heads
    if not min(initial_value, initial_value + heads_range * (num_heads - 1) / num_heads) > 0:
        got = f"initial_value={initial_value}, heads_range={heads_range}"
        raise ValueError(f"initial_value: got {got}, wanted initial_value + heads_range k / num_heads > 0 for every k")
    return torch.log1p(-torch.exp2(-exponents)).to(dtype)


def manhattan_log_decay(num_heads: int, initial_value: float = 2.0, heads_range: float = 4.0) -> Tensor:
    """ln gamma_k with gamma_k = 1 - 2^-(a + r k / H), k = 0 .. H - 1 (RMT, Eq. of its decay mask).

    Args:
        num_heads: H.
        initial_value: a.
        heads_range: r.

    Returns:
        (H,) float32, below zero and rising: the last heads see farthest.

    Raises:
        ValueError: no head, or an exponent that is not positive, for which gamma would not lie in (0, 1).
    """
    return _log_decay(num_heads, initial_value, heads_range, torch.float32)


def _slopes(num_heads: int, dtype: torch.dtype) -> Tensor:
    _heads(num_heads)
    half = num_heads // 2
    rates = torch.exp2(-8 * torch.arange(1, half + 1, dtype=torch.float64, device="cpu") / max(1, half))
    return torch.cat([rates, rates.new_zeros(num_heads % 2), -rates]).to(dtype)


def balanced_alibi_slopes(num_heads: int) -> Tensor:
    """Slopes s_k of -s_k |i - j|: 2^(-8 m / n), m = 1 .. n = floor(H / 2), then their negatives in the same order.

    The first half of the heads counts distance against a token, the last half for it; an odd number of heads has a
    slope of zero between. They sum to zero. (H,) float32. Raises ValueError for no head.
    """
    return _slopes(num_heads, torch.float32)


def adaptive_window(size: int, window: int) -> tuple[int, int]:
    """The window and the padding that an axis of a map gets: (window, padding at the end).

    An axis that is not longer than the window is one window. Else the window is the divisor of the axis nearest to the
    nominal one (the larger of two), so that nothing is padded, unless it is below half the nominal one: then the window
    stays and the axis is padded. Raises ValueError for sizes below 1.
    """
    for name, value in (("size", size), ("window", window)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, wanted a whole number from 1")
    if size <= window:
        return size, 0
    nearest = 1
    for divisor in range(2, size + 1):
        if size % divisor == 0 and abs(divisor - window) <= abs(nearest - window):
            nearest = divisor
    return (nearest, 0) if nearest >= -(-window // 2) else (window, -size % window)


@kept
def distance_tables(
    length: int, num_heads: int, initial_value: float, heads_range: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """|i - j| ln gamma_k and s_k |i - j|, each (H, length, length)."""
    place = torch.arange(length, dtype=torch.float64, device="cpu")
    distance = (place[:, None] - place).abs()
    decay = _log_decay(num_heads, initial_value, heads_range, torch.float64)[:, None, None] * distance
    alibi = _slopes(num_heads, torch.float64)[:, None, None] * distance
    return decay.to(device, dtype), alibi.to(device, dtype)


@kept
def manhattan_table(
    h: int, w: int, num_heads: int, initial_value: float, heads_range: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(|dr| + |dc|) ln gamma_k for all pairs of a map: (H, h w, h w)."""
    rows = torch.arange(h * w, dtype=torch.float64, device="cpu")
    row, column = rows.div(w, rounding_mode="floor"), rows.remainder(w)
    distance = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    decay = _log_decay(num_heads, initial_value, heads_range, torch.float64)
    return (decay[:, None, None] * distance).to(device, dtype)


@kept
def rotary_tables(h: int, w: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of n theta_m for the tokens n = row w + column: each (h, w, 1, head_dim / 2).

    theta_m = 10000^(-m / (D / 2 - 1)), m = 0 .. D / 2 - 1.
    """
    half = head_dim // 2
    theta = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device="cpu") / (half - 1))
    angles = (torch.arange(h * w, dtype=torch.float64, device="cpu")[:, None] * theta).view(h, w, 1, half)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (2 m, 2 m + 1) of the last axis: (e, o) -> (e cos - o sin, o cos + e sin). x: (B, h, w, H, D)."""
    cos, sin = tables
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
