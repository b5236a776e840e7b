"""The convolutional parts of UNETR-like networks, channels first, under MONAI's parameter names.

R(a -> b): conv3 - norm - LeakyReLU - conv3 - norm, plus the input (through a 1x1 convolution and a norm where a and b
differ), then LeakyReLU. U(a -> b): a transposed convolution doubles the size, then R(2b -> b) of what comes up joined
with the skip. Norms are instance norms without weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResidualBlock", "UpBlock"]

SLOPE = 0.01
EPS = 1e-5


class _Convolution(nn.Module):
    """One convolution, under the name `conv`."""

    def __init__(
        self, ndim: int, channels: int, out: int, kernel: int, transposed: bool = False, **factory: Any
    ) -> None:
        super().__init__()
        kinds = (nn.ConvTranspose2d, nn.ConvTranspose3d) if transposed else (nn.Conv2d, nn.Conv3d)
        kind: Any = kinds[ndim - 2]
        placed = {"stride": kernel} if transposed else {"padding": kernel // 2}
        self.conv = kind(channels, out, kernel, bias=False, **placed, **factory)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """The convolution of `x`, or of `x` and `skip` joined along their channels, without joining them."""
        if skip is None:
            return self.conv(x)
        convolve = F.conv2d if x.dim() == 4 else F.conv3d
        first, second = self.conv.weight.split([x.shape[1], skip.shape[1]], 1)
        padding = self.conv.padding
        return convolve(x, first, padding=padding) + convolve(skip, second, padding=padding)


def _check(ndim: int) -> None:
    if ndim not in (2, 3):
        raise ValueError(f"ndim: got {ndim}, wanted 2 or 3")


class ResidualBlock(nn.Module):
    """R(in_channels -> out_channels) over 2 or 3 axes.

    Args:
        ndim: number of spatial axes.
        in_channels, out_channels: widths; where they differ the input takes a 1x1 convolution.
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(ndim)
        factory: Any = {"device": device, "dtype": dtype}
        self.in_channels = in_channels
        self.conv1 = _Convolution(ndim, in_channels, out_channels, 3, **factory)
        self.conv2 = _Convolution(ndim, out_channels, out_channels, 3, **factory)
        self.conv3 = (
            _Convolution(ndim, in_channels, out_channels, 1, **factory) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, in_channels, *S) -> (B, out_channels, *S); with `skip`, of both joined along their channels."""
        given = x.shape[1] + (0 if skip is None else skip.shape[1])
        if given != self.in_channels:
            raise ValueError(f"x: got {given} channels, wanted {self.in_channels}")
        out = F.leaky_relu(F.instance_norm(self.conv1(x, skip), eps=EPS), SLOPE)
        out = F.instance_norm(self.conv2(out), eps=EPS)
        if self.conv3 is None:
            kept = x if skip is None else torch.cat([x, skip], 1)
        else:
            kept = F.instance_norm(self.conv3(x, skip), eps=EPS)
        return F.leaky_relu(out + kept, SLOPE)


class UpBlock(nn.Module):
    """U(in_channels -> out_channels) over 2 or 3 axes: twice the size, joined with a skip of `out_channels`."""

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(ndim)
        self.transp_conv = _Convolution(ndim, in_channels, out_channels, 2, True, device=device, dtype=dtype)
        self.conv_block = ResidualBlock(ndim, 2 * out_channels, out_channels, device=device, dtype=dtype)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in_channels, *s), (B, out_channels, *2s) -> (B, out_channels, *2s)."""
        return self.conv_block(self.transp_conv(x), skip)
