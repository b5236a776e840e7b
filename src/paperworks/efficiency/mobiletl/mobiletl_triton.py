# mypy: disable-error-code="no-untyped-def"
"""The fused passes of MobileTL on a GPU (Triton): the counterpart of `mobiletl.c`.

A program takes 8 BYTES neighbouring values, by eight loads at a stride of eight, so that it packs whole bytes alone.
d b is summed in two stages without atomics, each program its own block of one channel and then the blocks in a fixed
order, so it is the same in every run. Imported only where a CUDA tensor meets an installed triton.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from paperworks.efficiency.mobiletl.kernels import KINDS, Layout, back_in_order, one_number, rule_of

_BYTES = 256  # bytes of bits that a program of the forward pass writes
_BLOCK = 1024
_ROWS, _COLUMNS = 32, 64  # the block where channels are innermost


@triton.jit
def _act(z, KIND: tl.constexpr):
    # Written so that a NaN stays one: it is not below 0.
    low = tl.where(z < 0.0, 0.0, z)
    if KIND == 0:
        return low
    if KIND == 1:
        return tl.where(low > 6.0, 6.0, low)
    if KIND == 2:
        gate = z + 3.0
        gate = tl.where(gate < 0.0, 0.0, gate)
        gate = tl.where(gate > 6.0, 6.0, gate)
        return z * gate * (1.0 / 6.0)
    return z / (1.0 + tl.exp(-z))


@triton.jit
def _forward_kernel(
    x_ptr,
    a_ptr,
    b_ptr,
    y_ptr,
    bits_ptr,
    n,
    channels,
    inner,
    size,
    SINGLE: tl.constexpr,
    KIND: tl.constexpr,
    RULE: tl.constexpr,
    BYTES: tl.constexpr,
):
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    low = tl.zeros((BYTES,), tl.int32)
    high = tl.zeros((BYTES,), tl.int32)
    for k in tl.static_range(8):
        at = byte * 8 + k
        inside = at < n
        z = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if not SINGLE:
            channel = (at // inner) % channels
            scale = tl.load(a_ptr + channel, mask=inside, other=0.0)
            z = scale * z + tl.load(b_ptr + channel, mask=inside, other=0.0)
        tl.store(y_ptr + at, _act(z, KIND).to(y_ptr.dtype.element_ty), mask=inside)
        if RULE == 0:
            code = (z > 0.0).to(tl.int32)
        elif RULE == 1:
            code = ((z > 0.0) & (z < 6.0)).to(tl.int32)
        else:
            code = (z >= -1.5).to(tl.int32) + (z >= 0.0).to(tl.int32) + (z >= 1.5).to(tl.int32)
            high |= tl.where(inside, code >> 1, 0) << k
        low |= tl.where(inside, code & 1, 0) << k
    tl.store(bits_ptr + byte, low.to(tl.uint8), mask=byte < size)
    if RULE == 2:
        tl.store(bits_ptr + size + byte, high.to(tl.uint8), mask=byte < size)


@triton.jit
def _slope(bits_ptr, at, inside, size, s0, s1, s2, s3, TWO: tl.constexpr):
    shift = (at % 8).to(tl.int32)
    low = (tl.load(bits_ptr + at // 8, mask=inside, other=0).to(tl.int32) >> shift) & 1
    slope = tl.where(low == 1, s1, s0)
    if TWO:
        high = (tl.load(bits_ptr + size + at // 8, mask=inside, other=0).to(tl.int32) >> shift) & 1
        slope = tl.where(high == 1, tl.where(low == 1, s3, s2), slope)
    return slope


@triton.jit
def _backward_kernel(
    g_ptr,
    a_ptr,
    bits_ptr,
    dx_ptr,
    partial_ptr,
    n,
    channels,
    inner,
    blocks,
    size,
    s0,
    s1,
    s2,
    s3,
    G_STEP: tl.constexpr,
    TWO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one channel's elements; its share of d b goes to partial[channel, block]."""
    program = tl.program_id(0).to(tl.int64)
    channel, block = program // blocks, program % blocks
    k = block * BLOCK + tl.arange(0, BLOCK)
    inside = k < n
    at = ((k // inner) * channels + channel) * inner + k % inner
    g = tl.load(g_ptr + at * G_STEP, mask=inside, other=0.0).to(tl.float32)
    d = g * _slope(bits_ptr, at, inside, size, s0, s1, s2, s3, TWO)
    tl.store(dx_ptr + at, (tl.load(a_ptr + channel) * d).to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_ptr + program, tl.sum(tl.where(inside, d, 0.0), axis=0))


@triton.jit
def _backward_innermost_kernel(
    g_ptr,
    a_ptr,
    bits_ptr,
    dx_ptr,
    partial_ptr,
    outer,
    channels,
    blocks,
    size,
    s0,
    s1,
    s2,
    s3,
    G_STEP: tl.constexpr,
    TWO: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The same for inner = 1: a block of rows and of neighbouring channels, read along the channels."""
    program = tl.program_id(0).to(tl.int64)
    row = (program % blocks) * ROWS + tl.arange(0, ROWS)
    channel = (program // blocks) * COLUMNS + tl.arange(0, COLUMNS)
    here = channel < channels
    inside = (row < outer)[:, None] & here[None, :]
    at = row[:, None] * channels + channel[None, :]
    g = tl.load(g_ptr + at * G_STEP, mask=inside, other=0.0).to(tl.float32)
    d = g * _slope(bits_ptr, at, inside, size, s0, s1, s2, s3, TWO)
    scale = tl.load(a_ptr + channel, mask=here, other=0.0)
    tl.store(dx_ptr + at, (scale[None, :] * d).to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_ptr + channel * blocks + program % blocks, tl.sum(tl.where(inside, d, 0.0), axis=0), mask=here)


def forward(
    x: Tensor, a: Tensor | None, b: Tensor | None, layout: Layout, kind: str, backward: str
) -> tuple[Tensor, Tensor]:
    """y = act(a x + b) in the dtype of `x` and the packed bits, in the order of memory (see `kernels.Kernels`)."""
    rule, n, size = rule_of(kind, backward), x.numel(), -(-x.numel() // 8)
    y = torch.empty_like(x)
    bits = torch.empty((1 + rule // 2) * size, dtype=torch.uint8, device=x.device)
    scale, shift = _values(a, x), _values(b, x)
    with _device(x):
        _forward_kernel[(triton.cdiv(size, _BYTES),)](
            *(x, scale, shift, y, bits, n, layout.channels, layout.inner, size),
            SINGLE=a is None,
            KIND=KINDS.index(kind),
            RULE=rule,
            BYTES=_BYTES,
        )
    return y, bits


def backward(
    g: Tensor, bits: Tensor, a: Tensor | None, layout: Layout, slopes: tuple[float, ...]
) -> tuple[Tensor, Tensor | None]:
    """dx in the dtype of `g` and d b ((C,) float32, None without `a`), given the gradient of y."""
    order, outer, channels, inner = layout
    uniform, two = one_number(g), len(slopes) == 4
    g = g.permute(order)
    dx = torch.empty(g.shape, dtype=g.dtype, device=g.device)
    g = g if uniform else g.contiguous()
    s = (*slopes, 0.0, 0.0)[:4]
    innermost = inner == 1 and channels > 1
    blocks = triton.cdiv(outer, _ROWS) if innermost else triton.cdiv(outer * inner, _BLOCK)
    partial = torch.empty(channels, blocks, dtype=torch.float32, device=g.device)
    size, scale = bits.numel() // (2 if two else 1), _values(a, g)
    if a is None:
        scale = torch.ones(1, dtype=torch.float32, device=g.device)
    step = 0 if uniform else 1
    with _device(g):
        if innermost:
            _backward_innermost_kernel[(triton.cdiv(channels, _COLUMNS) * blocks,)](
                *(g, scale, bits, dx, partial, outer, channels, blocks, size, *s),
                G_STEP=step,
                TWO=two,
                ROWS=_ROWS,
                COLUMNS=_COLUMNS,
            )
        else:
            _backward_kernel[(channels * blocks,)](
                *(g, scale, bits, dx, partial, outer * inner, channels, inner, blocks, size, *s),
                G_STEP=step,
                TWO=two,
                BLOCK=_BLOCK,
            )
    dx = back_in_order(dx, order)
    return dx, None if a is None else partial.sum(1, dtype=torch.float64).float()


def _values(values: Tensor | None, x: Tensor) -> Tensor:
    """Numbers a channel as float32; where there are none, something that is not read."""
    if values is None:
        return torch.empty(1, dtype=torch.float32, device=x.device)
    return values.detach().to(torch.float32).contiguous()


def _device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
