# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""ASH on the GPU: the operators of `operator` as Triton kernels.

A sample that fits into one program's registers is read once: statistics, gate, and the result goes out. A larger one,
or one of too few to fill the device, is split: moments of its parts, joined without cancellation, then the gate.
Backward recomputes the gate. All arithmetic is float32; sums have a fixed order, so that results repeat.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from paperworks.activations.ash.operator import dense_samples

_PART = 8192  # elements of a sample that one program takes where a sample is split
_WHOLE_FORWARD, _WHOLE_BACKWARD = 65536, 32768  # the largest samples kept in registers
_FILLING = 64  # samples from which large ones are taken whole


@triton.jit
def _deviation(x, mean, rest):
    return (x - mean) - rest  # in this order: see Moments


@triton.jit
def _block_moments(x, inside, count):
    """Mean in two parts and sum of squared deviations of the elements `inside` a block."""
    mean = tl.sum(tl.where(inside, x, 0.0)) / count
    centred = tl.where(inside, x - mean, 0.0)
    rest = tl.sum(centred) / count
    centred = tl.where(inside, centred - rest, 0.0)
    return mean, rest, tl.sum(centred * centred)


@triton.jit
def _forward_whole(
    x_ptr, y_ptr, stat_ptr, alpha_ptr, z_ptr, n, channels, inner, leak, eps, MANY: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    inside = j < n
    x = tl.load(x_ptr + row * n + j, mask=inside, other=0.0).to(tl.float32)
    mean, rest, squares = _block_moments(x, inside, n)
    sigma = tl.sqrt(squares / n + eps)
    tl.store(stat_ptr + row * 3, mean)
    tl.store(stat_ptr + row * 3 + 1, rest)
    tl.store(stat_ptr + row * 3 + 2, sigma)
    channel = (j // inner) % channels if MANY else j * 0
    alpha, z = tl.load(alpha_ptr + channel), tl.load(z_ptr + channel)
    s = tl.sigmoid(2.0 * alpha * (_deviation(x, mean, rest) - z * sigma))
    tl.store(y_ptr + row * n + j, x * (leak + (1.0 - leak) * s), mask=inside)


@triton.jit
def _moments_part(x_ptr, part_ptr, n, parts, BLOCK: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    j = part * BLOCK + tl.arange(0, BLOCK)
    inside = j < n
    x = tl.load(x_ptr + row * n + j, mask=inside, other=0.0).to(tl.float32)
    mean, rest, squares = _block_moments(x, inside, tl.minimum(BLOCK, n - part * BLOCK))
    out = part_ptr + (row * parts + part) * 3
    tl.store(out, mean)
    tl.store(out + 1, rest)
    tl.store(out + 2, squares)


@triton.jit
def _forward_part(
    x_ptr, y_ptr, stat_ptr, alpha_ptr, z_ptr, n, channels, inner, leak, MANY: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = j < n
    x = tl.load(x_ptr + row * n + j, mask=inside, other=0.0).to(tl.float32)
    mean, rest = tl.load(stat_ptr + row * 3), tl.load(stat_ptr + row * 3 + 1)
    sigma = tl.load(stat_ptr + row * 3 + 2)
    channel = (j // inner) % channels if MANY else j * 0
    alpha, z = tl.load(alpha_ptr + channel), tl.load(z_ptr + channel)
    s = tl.sigmoid(2.0 * alpha * (_deviation(x, mean, rest) - z * sigma))
    tl.store(y_ptr + row * n + j, x * (leak + (1.0 - leak) * s), mask=inside)


@triton.jit
def _backward_whole(x_ptr, g_ptr, dx_ptr, stat_ptr, sums_ptr, alpha_ptr, z_ptr, n, leak, BLOCK: tl.constexpr):
    """One pair (alpha, z) for the layer: gradient of x, and sum t, sum t (x - mean) of the sample."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    inside = j < n
    x = tl.load(x_ptr + row * n + j, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + row * n + j, mask=inside, other=0.0).to(tl.float32)
    mean, rest = tl.load(stat_ptr + row * 3), tl.load(stat_ptr + row * 3 + 1)
    sigma = tl.load(stat_ptr + row * 3 + 2)
    a, z = 2.0 * tl.load(alpha_ptr), tl.load(z_ptr)
    centred = _deviation(x, mean, rest)
    s = tl.sigmoid(a * (centred - z * sigma))
    t = (1.0 - leak) * g * x * s * (1.0 - s)  # 0 outside, where x and g are 0
    total, total_centred = tl.sum(t), tl.sum(t * centred)
    tl.store(sums_ptr + row * 2, total)
    tl.store(sums_ptr + row * 2 + 1, total_centred)
    dx = g * (leak + (1.0 - leak) * s) + a * t - a * total / n * (1.0 + z * centred / sigma)
    tl.store(dx_ptr + row * n + j, dx, mask=inside)


@triton.jit
def _sums_part(
    x_ptr, g_ptr, stat_ptr, sums_ptr, alpha_ptr, z_ptr, channels, inner, positions, splits, leak,
    CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Sum t and sum t (x - mean) of CHANNELS channels over POSITIONS of their elements."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    position = split * POSITIONS + tl.arange(0, POSITIONS)
    inside = (channel < channels)[:, None] & (position < positions)[None, :]
    within = (position // inner) * (channels * inner) + position % inner
    offset = row * channels * positions + within[None, :] + (channel * inner)[:, None]
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    mean, rest = tl.load(stat_ptr + row * 3), tl.load(stat_ptr + row * 3 + 1)
    sigma = tl.load(stat_ptr + row * 3 + 2)
    a = 2.0 * tl.load(alpha_ptr + channel, mask=channel < channels, other=0.0)
    z = tl.load(z_ptr + channel, mask=channel < channels, other=0.0)
    centred = _deviation(x, mean, rest)
    s = tl.sigmoid(a[:, None] * (centred - (z * sigma)[:, None]))
    t = (1.0 - leak) * g * x * s * (1.0 - s)
    out = sums_ptr + ((row * splits + split) * channels + channel) * 2
    tl.store(out, tl.sum(t, axis=1), mask=channel < channels)
    tl.store(out + 1, tl.sum(t * centred, axis=1), mask=channel < channels)


@triton.jit
def _backward_part(
    x_ptr, g_ptr, dx_ptr, stat_ptr, shift_ptr, tilt_ptr, alpha_ptr, z_ptr, n, channels, inner, leak,
    MANY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = j < n
    x = tl.load(x_ptr + row * n + j, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + row * n + j, mask=inside, other=0.0).to(tl.float32)
    mean, rest = tl.load(stat_ptr + row * 3), tl.load(stat_ptr + row * 3 + 1)
    sigma = tl.load(stat_ptr + row * 3 + 2)
    channel = (j // inner) % channels if MANY else j * 0
    a, z = 2.0 * tl.load(alpha_ptr + channel), tl.load(z_ptr + channel)
    centred = _deviation(x, mean, rest)
    s = tl.sigmoid(a * (centred - z * sigma))
    t = (1.0 - leak) * g * x * s * (1.0 - s)
    dx = g * (leak + (1.0 - leak) * s) + a * t - tl.load(shift_ptr + row) - tl.load(tilt_ptr + row) * centred
    tl.store(dx_ptr + row * n + j, dx, mask=inside)


def forward(
    x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, leak: float, eps: float
) -> tuple[Tensor, Tensor]:
    """y, and (mean, rest, sigma) of each sample in float32; arguments as `operator.fused`."""
    dense = dense_samples(x, first_dim)
    rows, n, channels, inner = _layout(dense, alpha, channel_dim, first_dim)
    y, statistics = torch.empty_like(dense), alpha.new_empty((rows, 3))
    if rows and _whole(rows, n, _WHOLE_FORWARD):
        block = triton.next_power_of_2(n)
        arguments = (dense, y, statistics, alpha, z_k, n, channels, inner, leak, eps, channels > 1, block)
        _forward_whole[(rows,)](*arguments, num_warps=_warps(block))
    elif rows:
        parts = triton.cdiv(n, _PART)
        moments = alpha.new_empty((rows, parts, 3))
        _moments_part[(rows, parts)](dense, moments, n, parts, _PART, num_warps=8)
        statistics.copy_(_join(moments, n, eps))
        _forward_part[(rows, parts)](
            dense, y, statistics, alpha, z_k, n, channels, inner, leak, channels > 1, _PART, num_warps=8
        )
    return (y if dense is x else torch.empty_like(x).copy_(y)), statistics


def backward(
    incoming: Tensor,
    x: Tensor,
    alpha: Tensor,
    z_k: Tensor,
    statistics: Tensor,
    channel_dim: int,
    first_dim: int,
    leak: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, alpha and z_k."""
    dense = dense_samples(x, first_dim)
    g = incoming if incoming.stride() == dense.stride() else torch.empty_like(dense).copy_(incoming)
    rows, n, channels, inner = _layout(dense, alpha, channel_dim, first_dim)
    dx, sigma = torch.empty_like(dense), statistics[:, 2:]
    if not rows:
        return torch.empty_like(x), torch.zeros_like(alpha), torch.zeros_like(z_k)
    if channels == 1 and _whole(rows, n, _WHOLE_BACKWARD):
        block = triton.next_power_of_2(n)
        sums = alpha.new_empty((rows, 1, 2))
        _backward_whole[(rows,)](
            dense, g, dx, statistics, sums, alpha, z_k, n, leak, block, num_warps=_warps(block)
        )  # fmt: skip
    else:
        sums = _channel_sums(dense, g, statistics, alpha, z_k, (rows, n, channels, inner), leak)
        weighted = 2 * alpha * sums[..., 0]
        shift, tilt = weighted.sum(1) / n, (weighted * z_k).sum(1) / n / statistics[:, 2]
        arguments = (dense, g, dx, statistics, shift, tilt, alpha, z_k, n, channels, inner, leak, channels > 1, _PART)
        _backward_part[(rows, triton.cdiv(n, _PART))](*arguments, num_warps=8)
    t, t_centred = sums.unbind(-1)
    dalpha = (2 * (t_centred - z_k * sigma * t)).sum(0)
    dz = (-2 * alpha * sigma * t).sum(0)
    return (dx if dense is x else torch.empty_like(x).copy_(dx)), dalpha, dz


def _channel_sums(
    x: Tensor,
    g: Tensor,
    statistics: Tensor,
    alpha: Tensor,
    z_k: Tensor,
    layout: tuple[int, int, int, int],
    leak: float,
) -> Tensor:
    """Sum t and sum t (x - mean) by sample and channel: (rows, channels, 2)."""
    rows, n, channels, inner = layout
    positions = n // channels
    wide = min(triton.next_power_of_2(channels), 64 if inner == 1 else 8)
    long = min(triton.next_power_of_2(positions), 4096 // wide)
    splits = triton.cdiv(positions, long)
    sums = alpha.new_empty((rows, splits, channels, 2))
    _sums_part[(rows, triton.cdiv(channels, wide), splits)](
        x, g, statistics, sums, alpha, z_k, channels, inner, positions, splits, leak, wide, long, num_warps=8
    )
    return sums.sum(1)


def _layout(dense: Tensor, alpha: Tensor, channel_dim: int, first_dim: int) -> tuple[int, int, int, int]:
    inner = dense.stride(channel_dim) if alpha.numel() > 1 else 1
    return math.prod(dense.shape[:first_dim]), math.prod(dense.shape[first_dim:]), alpha.numel(), inner


def _whole(rows: int, n: int, largest: int) -> bool:
    return n <= _PART or (n <= largest and rows >= _FILLING)


def _warps(block: int) -> int:
    return min(32, max(1, block // 1024))


def _join(moments: Tensor, n: int, eps: float) -> Tensor:
    """(mean, rest, sigma) of each sample from (mean, rest, sum of squared deviations) of its parts."""
    parts = moments.shape[1]
    counts = torch.full((parts,), _PART, dtype=torch.float64, device=moments.device)
    counts[-1] = n - (parts - 1) * _PART
    means = moments[..., 0].double() + moments[..., 1]
    mean = (means * counts).sum(1) / n
    squares = moments[..., 2].double().sum(1) + (counts * (means - mean[:, None]).square()).sum(1)
    high = mean.float()
    return torch.stack([high, (mean - high).float(), (squares / n + eps).sqrt().float()], dim=1)
