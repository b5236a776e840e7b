"""Blocks of Gated-SwinRMT and of RMT: position, retention, and a feed-forward network, each added to its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperworks.swin.blocks import DropPath
from paperworks.swin.gated_swinrmt.attention import GatedRetention, ManhattanRetention, Variant
from paperworks.swin.gated_swinrmt.depthwise import add_depthwise, gelu_depthwise
from paperworks.swin.gated_swinrmt.windows import MapWindows

__all__ = ["FeedForward", "RMTBlock", "SwinRMTBlock"]


class FeedForward(nn.Module):
    """fc2(u + DWConv(u)) with u = GELU(fc1(x)), the convolution 3 x 3 and depthwise (RMT's FFN with `subconv`)."""

    def __init__(self, dim: int, hidden: int, **factory: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, **factory)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, **factory)
        self.fc2 = nn.Linear(hidden, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> the same shape."""
        return self.fc2(gelu_depthwise(self.fc1, self.dwconv, x))


class _RetentiveBlock(nn.Module):
    """x + pos(x), then x + attention(LN(x)), then x + FFN(LN(x))."""

    def __init__(
        self, dim: int, attention: nn.Module, mlp_ratio: float, drop_path: float, factory: dict[str, Any]
    ) -> None:
        super().__init__()
        if int(dim * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio: got {mlp_ratio}, wanted at least one hidden channel of {dim}")
        self.dim = dim
        self.pos = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **factory)
        self.norm1 = nn.LayerNorm(dim, 1e-6, **factory)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, 1e-6, **factory)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), **factory)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same shape. Raises ValueError for another number of axes or of channels."""
        if x.dim() != 4 or x.shape[-1] != self.dim or min(x.shape[1:3]) < 1:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B, H, W, {self.dim})")
        x = add_depthwise(self.pos, x)
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        return self.attn(x)


class SwinRMTBlock(_RetentiveBlock):
    """A block of Gated-SwinRMT: `GatedRetention` in windows that adapt to the map, shifted or in place.

    Args:
        dim, num_heads: channels and heads.
        window_size: nominal side of the windows; see `adaptive_window`.
        shift: roll the map by half a window, on every axis that has more than one.
        variant: ``"retention"`` or ``"swat"``.
        mlp_ratio: hidden channels of the feed-forward network over `dim`.
        drop_path: probability with which a sample loses a branch in training.
        attn: further options of `GatedRetention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift: bool = False,
        variant: Variant = "retention",
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **attn: Any,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        attention = GatedRetention(dim, num_heads, (window_size, window_size), variant, **factory, **attn)
        super().__init__(dim, attention, mlp_ratio, drop_path, factory)
        self.window_size, self.shift = window_size, shift

    def extra_repr(self) -> str:
        """Window and shift."""
        return f"window_size={self.window_size}, shift={self.shift}"

    def _attend(self, x: Tensor) -> Tensor:
        windows = MapWindows.adapted((x.shape[1], x.shape[2]), (self.window_size,) * 2, self.shift)
        return windows.join(self.attn(windows.cut(x), windows.masks(x.device)))


class RMTBlock(_RetentiveBlock):
    """A block of RMT: `ManhattanRetention` over the whole map.

    Args:
        dim, num_heads: channels and heads.
        decomposed: two passes along the axes, else full attention.
        mlp_ratio, drop_path: as in `SwinRMTBlock`.
        attn: further options of `ManhattanRetention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        decomposed: bool = True,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **attn: Any,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            dim, ManhattanRetention(dim, num_heads, decomposed, **factory, **attn), mlp_ratio, drop_path, factory
        )
