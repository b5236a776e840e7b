"""Networks for the bone protocol: Swin-X2S without a part of it, and what stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.swin.swin_unetr.residual_cpu import FusedResidualBlock, FusedUpBlock
from paperworks.swin.swin_x2s.network import SwinX2S

__all__ = ["RepeatedViews", "one_view", "repeated_views"]


def _doubled(x: Tensor) -> Tensor:
    """A single volume twice: alone and narrow, PyTorch convolves it on a CPU by a path four times as slow."""
    return torch.cat([x, x]) if len(x) == 1 and x.device.type == "cpu" else x


class _OneView(SwinX2S):
    """View a alone: its encoder, no exchange, its decoder."""

    def forward(self, xa: Tensor, xb: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of view a, for both."""
        *skips, deep = self.encode(_doubled(xa), "a")
        deep, _ = self.cross_atte6(deep, deep)
        logits = self._decoded(deep, skips)[: len(xa)]
        return logits, logits


def one_view(**options: Any) -> SwinX2S:
    """Swin-X2S that sees view a alone, and is not asked for more than one prediction of it."""
    return _OneView(**{**options, "fusion_depth": 0})


class _Encoder(nn.Module):
    """Patches of 2 by a convolution, then four times a residual block and a convolution of stride 2."""

    def __init__(self, in_channels: int, feature_size: int) -> None:
        super().__init__()
        widths = [feature_size * 2**i for i in range(4)]
        self.patch_embed = nn.Conv3d(in_channels, feature_size, 2, 2)
        self.blocks = nn.ModuleList(FusedResidualBlock(3, c, c) for c in widths)
        self.downs = nn.ModuleList(nn.Conv3d(c, 2 * c, 2, 2) for c in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, X, Y, Z) -> five maps at 1/2 to 1/32."""
        found = [self.patch_embed(x)]
        for block, down in zip(self.blocks, self.downs, strict=True):
            found.append(down(block(found[-1])))
        return found


class RepeatedViews(nn.Module):
    """Each view repeated along the axis that it does not see, joined as two channels, and a residual 3-D U-Net.

    The decoder and skips of Swin-X2S behind a convolutional encoder of the same widths: no attention, nothing learned
    in two dimensions.
    """

    def __init__(self, img_size: Sequence[int], in_channels: int, out_channels: int, feature_size: int) -> None:
        super().__init__()
        f = feature_size
        self.img_size = tuple(img_size)
        self.encoder = _Encoder(2 * in_channels, f)
        widths = [(2 * in_channels, f), (f, f), (2 * f, 2 * f), (4 * f, 4 * f), (8 * f, 8 * f), (16 * f, 16 * f)]
        self.blocks = nn.ModuleList(FusedResidualBlock(3, i, o) for i, o in widths)
        ups = [(16 * f, 8 * f), (8 * f, 4 * f), (4 * f, 2 * f), (2 * f, f), (f, f)]
        self.ups = nn.ModuleList(FusedUpBlock(3, i, o) for i, o in ups)
        self.out = nn.Conv3d(f, out_channels, 1)

    def forward(self, xa: Tensor, xb: Tensor) -> tuple[Tensor, Tensor]:
        """Views (B, C, X, Z) and (B, C, Y, Z) -> logits (B, K, X, Y, Z), once, under two names."""
        x, y, z = self.img_size
        shape = (len(xa), xa.shape[1], x, y, z)
        both = _doubled(torch.cat([xa.unsqueeze(3).expand(shape), xb.unsqueeze(2).expand(shape)], 1))
        *skips, deep = [block(map) for block, map in zip(self.blocks, [both, *self.encoder(both)], strict=True)]
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            deep = up(deep, skip)
        logits = self.out(deep)[: len(xa)]
        return logits, logits


def repeated_views(
    img_size: Sequence[int], in_channels: int = 1, out_channels: int = 55, feature_size: int = 96, **_: Any
) -> RepeatedViews:
    """The baseline; takes Swin-X2S's further options, which mean nothing to it."""
    return RepeatedViews(img_size, in_channels, out_channels, feature_size)
