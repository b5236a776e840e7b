"""Residual and up blocks, channels last, with instance norm, sum and LeakyReLU fused: in loops on a CPU (`residual.c`),
in Triton kernels on a GPU (`residual_triton`).

Convolutions of this layout need no reordering of their maps; each norm reads its map once for its moments, and what is
normalised is never written: a block keeps its two or three convolutions' outputs and its result for the backward pass.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks import native
from paperworks.swin.unet_parts import EPS, SLOPE, ResidualBlock, UpBlock
from paperworks.swin.windows_cpu import usable

__all__ = ["FusedResidualBlock", "FusedUpBlock", "normed_sum"]

_POINTER, _COUNT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_FUNCTIONS = {
    "moments": [_POINTER] * 3 + [_REAL] + [_COUNT] * 4,
    "residual": [_POINTER] * 4 + [_REAL] + [_COUNT] * 4,
    "residual_backward": [_POINTER] * 7 + [_REAL] + [_COUNT] * 5,
}


def _library() -> Any:
    return native.load(Path(__file__).with_name("residual.c"), _FUNCTIONS)


def _last(x: Tensor) -> Tensor:
    """The same values with the channels innermost in memory."""
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def _pointers(*tensors: Tensor | None) -> tuple[int | None, ...]:
    return tuple(None if t is None else t.data_ptr() for t in tensors)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    return x.shape[0], x[0, 0].numel(), x.shape[1], torch.get_num_threads()


def normed_sum(a: Tensor, b: Tensor | None = None, normed: bool = False) -> Tensor:
    """LeakyReLU(norm(a)), LeakyReLU(norm(a) + b) or, `normed`, LeakyReLU(norm(a) + norm(b)); norms over space.

    Args:
        a, b: (B, C, *S), of more than one voxel: float32 on the CPU, any floating type on a GPU.
        normed: whether `b` is normalised too.

    Returns (B, C, *S), channels last in memory.
    """
    found: Tensor = _NormedSum.apply(_last(a), None if b is None else _last(b), normed)
    return found


def _norm_gradient(x: Tensor, d_z: Tensor) -> Tensor | None:
    """Gradient of x under that of its norm, with a graph of its own."""
    if not x.requires_grad:
        return None
    variance, mean = torch.var_mean(x, tuple(range(2, x.dim())), correction=0, keepdim=True)
    return torch.autograd.grad((x - mean) * torch.rsqrt(variance + EPS), x, d_z, create_graph=True)[0]


class _NormedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None, normed: bool) -> Tensor:
        ctx.normed, ctx.added = normed, None if b is None else b.dtype
        if a.is_cuda:
            from paperworks.swin.swin_unetr import residual_triton

            out, statistics = residual_triton.forward(a, b, normed, EPS, SLOPE)
            ctx.save_for_backward(a, b if normed else None, statistics, out)
            return out
        statistics = a.new_zeros(4, *a.shape[:2])
        statistics[3] = 1
        for i, map in enumerate((a, b) if normed and b is not None else (a,)):
            pointers = _pointers(map, statistics[2 * i], statistics[2 * i + 1])
            _library().moments(*pointers, EPS, *_sizes(map))
        out = torch.empty_like(a)
        _library().residual(*_pointers(a, b, statistics, out), SLOPE, *_sizes(a))
        ctx.save_for_backward(a, b if normed else None, statistics, out)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b, statistics, out = ctx.saved_tensors
        if torch.is_grad_enabled():  # derivatives of these gradients are wanted
            d_z = torch.where(out > 0, 1.0, SLOPE) * d_out
            d_b = _norm_gradient(b, d_z) if ctx.normed else d_z if ctx.added else None
            return _norm_gradient(a, d_z), d_b, None
        if a.is_cuda:
            from paperworks.swin.swin_unetr import residual_triton

            return *residual_triton.backward(a, b, statistics, out, _last(d_out), SLOPE, ctx.added), None
        d_out, d_a = _last(d_out), torch.empty_like(a)
        d_b = torch.empty_like(a) if ctx.added else None
        second = b if ctx.normed else a if ctx.added else None  # one without a norm is not read
        given = _pointers(a, second, statistics, out, d_out, d_a, d_b)
        _library().residual_backward(*given, SLOPE, int(ctx.normed), *_sizes(a))
        return d_a, d_b, None


def _fits(*tensors: Tensor | None) -> bool:
    first = tensors[0]
    assert first is not None
    if first.numel() <= first.shape[0] * first.shape[1]:
        return False
    if first.is_cuda:
        return find_spec("triton") is not None and not native.must_be_traceable(*(t for t in tensors if t is not None))
    return usable(*tensors) and _library() is not None


def _joined(convolution: Any, x: Tensor, skip: Tensor | None) -> Tensor:
    """A convolution of both maps joined along their channels, without joining them."""
    if skip is None:
        return convolution(x)
    convolve = F.conv2d if x.dim() == 4 else F.conv3d
    first, second = convolution.conv.weight.split([x.shape[1], skip.shape[1]], 1)
    padding = convolution.conv.padding
    return convolve(x, first, padding=padding).add_(convolve(skip, second, padding=padding))


class FusedResidualBlock(ResidualBlock):
    """`ResidualBlock`, in fused loops where they can take its input: same values, same weights."""

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, in_channels, *S) -> (B, out_channels, *S); with `skip`, of both joined along their channels."""
        given = x.shape[1] + (0 if skip is None else skip.shape[1])
        if given != self.in_channels or not _fits(x, skip, self.conv1.conv.weight):
            return super().forward(x, skip)
        x, skip = _last(x), None if skip is None else _last(skip)
        z = self.conv2(normed_sum(_joined(self.conv1, x, skip)))
        if self.conv3 is not None:
            return normed_sum(z, _joined(self.conv3, x, skip), normed=True)
        return normed_sum(z, x if skip is None else torch.cat([x, skip], 1))


class FusedUpBlock(UpBlock):
    """`UpBlock` of a `FusedResidualBlock`: same values, same weights.

    Args:
        stride: what multiplies the size of each axis, 2 as in `UpBlock` or other numbers.
    """

    def __init__(
        self, ndim: int, in_channels: int, out_channels: int, stride: Sequence[int] | int = 2, **factory: Any
    ) -> None:
        super().__init__(ndim, in_channels, out_channels, **factory)
        stride = (stride,) * ndim if isinstance(stride, int) else tuple(stride)
        if set(stride) != {2}:
            kind: Any = type(self.transp_conv.conv)
            self.transp_conv.conv = kind(in_channels, out_channels, stride, stride, bias=False, **factory)
        self.conv_block = FusedResidualBlock(ndim, 2 * out_channels, out_channels, **factory)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in_channels, *s), (B, out_channels, *stride s) -> (B, out_channels, *stride s)."""
        if _fits(x, skip, self.transp_conv.conv.weight):
            x = _last(x)
        return super().forward(x, skip)
