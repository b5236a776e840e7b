# mypy: disable-error-code="no-untyped-def"
"""CRReLU on a GPU: one pass forward, one backward, one exponential an element (Triton).

The counterpart of `crrelu.c`: memory is (outer, channels, inner) with one float32 eps a channel. d eps is summed in two
stages without atomics, each program its own block and then the blocks in a fixed order, so it is the same in every run.
Imported only where a CUDA tensor meets an installed triton; `paperworks.activations.crrelu` is what to call.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
_ROWS, _COLUMNS = 32, 64  # the block where channels are innermost


@triton.jit
def _bell(x):
    e = tl.exp(-0.5 * x * x)
    # Where the bell is 0 its products are 0 too, infinite x included.
    return e, tl.where(e == 0.0, 0.0, x * e), tl.where(e == 0.0, 0.0, (1.0 - x * x) * e)


@triton.jit
def _forward_kernel(x_ptr, eps_ptr, y_ptr, n, channels, inner, SINGLE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if SINGLE:
        eps = tl.load(eps_ptr)
    else:
        eps = tl.load(eps_ptr + (at // inner) % channels, mask=inside, other=0.0)
    _, correction, _ = _bell(x)
    # Written so that a NaN stays one: x > 0 is false for it, and the correction carries it on.
    y = tl.where(x > 0.0, x, 0.0) + eps * correction
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gradients(x, g, eps):
    _, correction, slope = _bell(x)
    return g * (tl.where(x > 0.0, 1.0, 0.0) + eps * slope), g * correction


@triton.jit
def _backward_kernel(
    x_ptr, g_ptr, eps_ptr, dx_ptr, partial_ptr, n, channels, inner, blocks, G_STEP: tl.constexpr, BLOCK: tl.constexpr
):
    """One block of one channel's elements; its share of d eps goes to partial[channel, block]."""
    program = tl.program_id(0).to(tl.int64)
    channel, block = program // blocks, program % blocks
    k = block * BLOCK + tl.arange(0, BLOCK)
    inside = k < n
    at = ((k // inner) * channels + channel) * inner + k % inner
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + at * G_STEP, mask=inside, other=0.0).to(tl.float32)
    dx, share = _gradients(x, g, tl.load(eps_ptr + channel))
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_ptr + program, tl.sum(share, axis=0))


@triton.jit
def _backward_innermost_kernel(
    x_ptr,
    g_ptr,
    eps_ptr,
    dx_ptr,
    partial_ptr,
    outer,
    channels,
    blocks,
    G_STEP: tl.constexpr,
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
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + at * G_STEP, mask=inside, other=0.0).to(tl.float32)
    eps = tl.load(eps_ptr + channel, mask=here, other=0.0)
    dx, share = _gradients(x, g, eps[None, :])
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_ptr + channel * blocks + program % blocks, tl.sum(share, axis=0), mask=here)


def forward(x: Tensor, eps: Tensor, outer: int, channels: int, inner: int) -> Tensor:
    """max(0, x) + eps x exp(-x^2 / 2).

    Args:
        x: contiguous, outer * channels * inner elements, float32, float16 or bfloat16.
        eps: (channels,) float32.
        outer, channels, inner: how the memory of `x` is laid out.
    """
    y, n = torch.empty_like(x), x.numel()
    with _device(x):
        _forward_kernel[(triton.cdiv(n, _BLOCK),)](x, eps, y, n, channels, inner, SINGLE=channels == 1, BLOCK=_BLOCK)
    return y


def backward(x: Tensor, g: Tensor, eps: Tensor, outer: int, channels: int, inner: int) -> tuple[Tensor, Tensor]:
    """Gradients for `x` (in its dtype) and `eps` ((channels,) float32) of `forward`, given that of its output."""
    uniform = not any(g.stride())  # the gradient of a sum or mean: one value seen everywhere
    g = g if uniform else g.contiguous()
    step, dx = (0 if uniform else 1), torch.empty_like(x)
    innermost = inner == 1 and channels > 1
    blocks = triton.cdiv(outer, _ROWS) if innermost else triton.cdiv(outer * inner, _BLOCK)
    partial = torch.empty(channels, blocks, dtype=torch.float32, device=x.device)
    with _device(x):
        if innermost:
            _backward_innermost_kernel[(triton.cdiv(channels, _COLUMNS) * blocks,)](
                x, g, eps, dx, partial, outer, channels, blocks, G_STEP=step, ROWS=_ROWS, COLUMNS=_COLUMNS
            )
        else:
            _backward_kernel[(channels * blocks,)](
                x, g, eps, dx, partial, outer * inner, channels, inner, blocks, G_STEP=step, BLOCK=_BLOCK
            )
    return dx, partial.sum(1, dtype=torch.float64).float()


def _device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
