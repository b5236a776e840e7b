"""Multi-level channel attention (MLCA): what a group of tasks takes from the levels and channels of a pyramid.

Per level a convolution, the results joined to x (B, C, h, w); then s = sigmoid(M(mean x) + M(max x)), one number a
channel, with M a two-layer network; ReLU(x s), its largest value over places, and a batch norm (SwinFace, arXiv
2308.11509, section on the face analysis subnets; order of steps and sizes from its code).

As s > 0, max ReLU(x s) = s ReLU(max x), to the last bit: the map is read once, for its mean and its largest value, and
never multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLCA", "level_widths", "pool_levels"]

EPS = 2e-5
"""Of every batch norm of the heads."""


def level_widths(in_channels: Sequence[int], out_channels: int) -> tuple[int, ...]:
    """Channels for each level: `out_channels` shared in proportion to `in_channels` by largest remainders.

    192, 384, 768 and 768 of 512 give 47, 93, 186 and 186.
    """
    if not in_channels or min(in_channels) < 1:
        raise ValueError(f"in_channels: got {tuple(in_channels)}, wanted positive numbers, one a level")
    total = sum(in_channels)
    widths = [out_channels * c // total for c in in_channels]
    by_remainder = sorted(range(len(widths)), key=lambda i: (-(out_channels * in_channels[i] % total), i))
    for i in by_remainder[: out_channels - sum(widths)]:
        widths[i] += 1
    if min(widths) < 1:
        raise ValueError(
            f"out_channels: got {out_channels} for levels of {tuple(in_channels)}, wanted one each or more"
        )
    return tuple(widths)


def pool_levels(levels: Sequence[Tensor]) -> list[Tensor]:
    """The maps (B, C_l, h_l, w_l) averaged down to the smallest one's grid.

    Raises ValueError for a grid that is no multiple of the smallest.
    """
    if not levels or any(x.dim() != 4 for x in levels):
        raise ValueError(f"levels: got the shapes {[tuple(x.shape) for x in levels]}, wanted maps (B, C, h, w)")
    height, width = (min(x.shape[axis] for x in levels) for axis in (2, 3))
    found = []
    for x in levels:
        if x.shape[2] % height or x.shape[3] % width:
            raise ValueError(
                f"levels: got a grid of {tuple(x.shape[2:])}, wanted a multiple of the smallest, {(height, width)}"
            )
        step = (x.shape[2] // height, x.shape[3] // width)
        found.append(x if step == (1, 1) else F.avg_pool2d(x, step))
    return found


def split_levels(levels: Sequence[Tensor] | Tensor, in_channels: Sequence[int]) -> list[Tensor]:
    """The pooled maps, one a level, of a pyramid or of what was joined along the channels."""
    if isinstance(levels, Tensor):
        if levels.dim() != 4 or levels.shape[1] != sum(in_channels):
            raise ValueError(f"levels: got the shape {tuple(levels.shape)}, wanted (B, {sum(in_channels)}, h, w)")
        return list(levels.split(list(in_channels), 1))
    if [x.shape[1] if x.dim() == 4 else None for x in levels] != list(in_channels):
        got = [tuple(x.shape) for x in levels]
        raise ValueError(f"levels: got the shapes {got}, wanted maps of {tuple(in_channels)} channels")
    return pool_levels(levels)


def check_options(kernel_size: int, reduction: int, out_channels: int, pool: str) -> None:
    """Raises ValueError for what makes no attention module."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: got {kernel_size}, wanted an odd number")
    if reduction < 1 or out_channels < reduction:
        raise ValueError(f"reduction: got {reduction} of {out_channels} channels, wanted 1 to {out_channels}")
    if pool not in ("max", "avg"):
        raise ValueError(f"pool: got {pool!r}, wanted 'max' or 'avg'")


class MLCA(nn.Module):
    """Features for one group of tasks from a pyramid (B, C_l, h_l, w_l): (B, out_channels).

    It plugs onto any pyramid: that of `SwinFace`, timm's ``features_only=True``, torchvision's feature extractor.

    Args:
        in_channels: channels of the levels, in their order.
        out_channels: features, shared among levels by `level_widths`.
        kernel_size: of the convolutions, odd; they keep the grid and have no bias.
        reduction: `out_channels` over the hidden width of the gate's network.
        pool: ``"max"`` (the paper) or ``"avg"`` over places, behind gate and ReLU.

    In training its batch norm needs two or more samples.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (192, 384, 768, 768),
        out_channels: int = 512,
        kernel_size: int = 3,
        reduction: int = 16,
        pool: str = "max",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_options(kernel_size, reduction, out_channels, pool)
        self.in_channels, self.out_channels, self.pool = tuple(in_channels), out_channels, pool
        self.widths = level_widths(in_channels, out_channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(c, w, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)
            for c, w in zip(in_channels, self.widths, strict=True)
        )
        hidden = out_channels // reduction
        self.fc1 = nn.Linear(out_channels, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, out_channels, device=device, dtype=dtype)
        self.norm = nn.BatchNorm1d(out_channels, EPS, device=device, dtype=dtype)
        for layer in (self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def extra_repr(self) -> str:
        """Channels of the levels and pooling."""
        return f"in_channels={self.in_channels}, widths={self.widths}, pool={self.pool!r}"

    def forward(self, levels: Sequence[Tensor] | Tensor) -> Tensor:
        """Features (B, out_channels).

        Args:
            levels: the maps of a pyramid, averaged to the smallest grid here, or joined already: (B, sum C_l, h, w).
        """
        x = self._joined(levels)
        gate = self._gate(x)
        pooled = x.amax((2, 3)).relu() if self.pool == "max" else x.relu().mean((2, 3))
        return self.norm(gate * pooled)

    def gate(self, levels: Sequence[Tensor] | Tensor) -> Tensor:
        """The channel weights (B, out_channels), in (0, 1); channels are those of the levels in turn, by `widths`."""
        return self._gate(self._joined(levels))

    def _joined(self, levels: Sequence[Tensor] | Tensor) -> Tensor:
        maps = split_levels(levels, self.in_channels)
        return torch.cat([conv(x) for conv, x in zip(self.convs, maps, strict=True)], 1)

    def _gate(self, x: Tensor) -> Tensor:
        both = torch.stack([x.mean((2, 3)), x.amax((2, 3))])
        return self.fc2(self.fc1(both).relu()).sum(0).sigmoid()
