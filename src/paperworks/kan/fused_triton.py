# mypy: disable-error-code="no-untyped-def"
"""The sum of a Kolmogorov-Arnold layer on a GPU (Triton): basis functions live in registers, never in memory.

The counterpart of `fused.c`, called with the same plan: terms, each with runs of one family on some columns of x. A
program expands a block of rows and inputs function by function and feeds each to the matrix unit as it arises, so
neither the basis matrix (N, D K) nor its gradient is written. Sums run in a fixed order without atomics. Imported
only where a CUDA tensor meets an installed triton; `paperworks.kan.fused` is what to call.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from paperworks.kan.cpu_kernels import Codes

_ROWS, _INPUTS, _OUTPUTS = 64, 32, 64


@triton.jit
def _squashed(x, FAMILY: tl.constexpr, SQUASH: tl.constexpr):
    """u and du/dx; the base term (family 0) takes x as it is."""
    if FAMILY == 0:
        u, slope = x, tl.full(x.shape, 1.0, tl.float32)
    elif SQUASH == 0:
        e = tl.exp(-2.0 * tl.abs(x))
        t = (1.0 - e) / (1.0 + e)
        u = tl.where(x < 0.0, -t, t)
        slope = 1.0 - u * u
    else:
        u = tl.where(x < -1.0, -1.0, tl.where(x > 1.0, 1.0, x))
        slope = tl.where((x < -1.0) | (x > 1.0), 0.0, 1.0)
    return u, slope


@triton.jit
def _function(u, k, FAMILY: tl.constexpr, K: tl.constexpr):
    """B_k(u) and B_k'(u), each in closed form so that a program can begin anywhere in k."""
    if FAMILY == 0:
        s = 1.0 / (1.0 + tl.exp(-u))
        value, slope = u * s, s * (1.0 + u * (1.0 - s))
    elif FAMILY == 1:
        t = (u + 1.0) * (0.5 * (K - 3)) - (k - 1)
        v = tl.abs(t)
        a, b = tl.where(v < 2.0, 2.0 - v, 0.0), tl.where(v < 1.0, 1.0 - v, 0.0)
        value = (a * a * a - 4.0 * b * b * b) / 6.0
        rise = (2.0 * b * b - 0.5 * a * a) * (0.5 * (K - 3))
        slope = tl.where(t < 0.0, -rise, rise)
    elif FAMILY == 2:
        value, after = tl.full(u.shape, 1.0, tl.float32), u
        slope, steeper = tl.full(u.shape, 0.0, tl.float32), tl.full(u.shape, 1.0, tl.float32)
        for _ in range(k):
            value, after, slope, steeper = (
                after,
                2.0 * u * after - value,
                steeper,
                2.0 * after + 2.0 * u * steeper - slope,
            )
    elif FAMILY == 3:
        half: tl.constexpr = K // 2
        n = (k % half + 1) * 3.141592653589793
        c, s = tl.cos(u * n), tl.sin(u * n)
        value, slope = tl.where(k < half, c, s), n * tl.where(k < half, -s, c)
    else:
        scale: tl.constexpr = 0.5 * (K - 1)
        t = (u + 1.0) * scale - k
        q = t * t
        if FAMILY == 4:
            value = tl.exp(-q)
            slope = -2.0 * t * value * scale
        else:
            e = 0.8673250705840776 * tl.exp(-0.5 * q)
            value, slope = (1.0 - q) * e, (q - 3.0) * t * e * scale
    return value, slope


@triton.jit
def _columns(columns_ptr, d, n, SOME: tl.constexpr):
    return tl.load(columns_ptr + d, mask=d < n, other=0) if SOME else d


@triton.jit
def _forward_kernel(
    x_ptr, w_ptr, y_ptr, columns_ptr, rows, n, width, outputs,
    FAMILY: tl.constexpr, SQUASH: tl.constexpr, K: tl.constexpr, SOME: tl.constexpr, ADD: tl.constexpr,
    ROWS: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """y (rows, outputs) of one run: y += sum over its columns and functions."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, n, INPUTS):
        d = start + tl.arange(0, INPUTS)
        at = _columns(columns_ptr, d, n, SOME)
        x = tl.load(x_ptr + r[:, None] * width + at[None, :], mask=(r < rows)[:, None] & (d < n)[None, :], other=0.0)
        u, _ = _squashed(x.to(tl.float32), FAMILY, SQUASH)
        w_at = w_ptr + (o[None, :].to(tl.int64) * width + at[:, None]) * K
        inside = (d < n)[:, None] & (o < outputs)[None, :]
        for k in range(K):
            value, _ = _function(u, k, FAMILY, K)
            w = tl.load(w_at + k, mask=inside, other=0.0)
            total = tl.dot(value.to(w.dtype), w, total, input_precision="ieee")
    y_at = y_ptr + r[:, None] * outputs + o[None, :]
    inside = (r < rows)[:, None] & (o < outputs)[None, :]
    if ADD:
        total += tl.load(y_at, mask=inside, other=0.0)
    tl.store(y_at, total, mask=inside)


@triton.jit
def _weight_kernel(
    x_ptr, g_ptr, dw_ptr, columns_ptr, rows, n, width, outputs,
    FAMILY: tl.constexpr, SQUASH: tl.constexpr, K: tl.constexpr, SOME: tl.constexpr,
    ROWS: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """dw (outputs, columns, k) of one run and one function: g^T B_k over all rows."""
    d = tl.program_id(0) * INPUTS + tl.arange(0, INPUTS)
    o = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.program_id(2)
    at = _columns(columns_ptr, d, n, SOME)
    total = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    for start in range(0, rows, ROWS):
        r = start + tl.arange(0, ROWS).to(tl.int64)
        x = tl.load(x_ptr + r[:, None] * width + at[None, :], mask=(r < rows)[:, None] & (d < n)[None, :], other=0.0)
        u, _ = _squashed(x.to(tl.float32), FAMILY, SQUASH)
        value, _ = _function(u, k, FAMILY, K)
        g = tl.load(
            g_ptr + r[None, :] * outputs + o[:, None], mask=(r < rows)[None, :] & (o < outputs)[:, None], other=0.0
        )
        total = tl.dot(g, value.to(g.dtype), total, input_precision="ieee")
    w_at = (o[:, None].to(tl.int64) * width + at[None, :]) * K + k
    tl.store(dw_ptr + w_at, total, mask=(o < outputs)[:, None] & (d < n)[None, :])


@triton.jit
def _input_kernel(
    x_ptr, g_ptr, w_ptr, dx_ptr, columns_ptr, rows, n, width, outputs,
    FAMILY: tl.constexpr, SQUASH: tl.constexpr, K: tl.constexpr, SOME: tl.constexpr,
    ROWS: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """dx (rows, columns) of one run: dx += du/dx sum_k B_k'(u) (g w_k)."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1) * INPUTS + tl.arange(0, INPUTS)
    at = _columns(columns_ptr, d, n, SOME)
    inside = (r < rows)[:, None] & (d < n)[None, :]
    x_at = r[:, None] * width + at[None, :]
    u, rise = _squashed(tl.load(x_ptr + x_at, mask=inside, other=0.0).to(tl.float32), FAMILY, SQUASH)
    total = tl.zeros((ROWS, INPUTS), tl.float32)
    for k in range(K):
        back = tl.zeros((ROWS, INPUTS), tl.float32)
        for start in range(0, outputs, OUTPUTS):
            o = start + tl.arange(0, OUTPUTS)
            g = tl.load(
                g_ptr + r[:, None] * outputs + o[None, :], mask=(r < rows)[:, None] & (o < outputs)[None, :], other=0.0
            )
            w = tl.load(
                w_ptr + (o[:, None].to(tl.int64) * width + at[None, :]) * K + k,
                mask=(o < outputs)[:, None] & (d < n)[None, :], other=0.0,
            )  # fmt: skip
            back = tl.dot(g, w, back, input_precision="ieee")
        _, slope = _function(u, k, FAMILY, K)
        total += back * slope
    tl.store(dx_ptr + x_at, tl.load(dx_ptr + x_at, mask=inside, other=0.0) + total * rise, mask=inside)


def forward(x: Tensor, plan: Sequence[Codes], weights: Sequence[Tensor], squash: int) -> Tensor:
    """y (N, O) in the dtype of x, summed in float32.

    Args:
        x: (N, D), contiguous; float32, float16 or bfloat16.
        plan: the runs of each term.
        weights: (O, D, K) of each term, or (O, D) where K = 1.
        squash: 0 tanh, 1 clamp.
    """
    (rows, width), outputs = x.shape, weights[0].shape[0]
    y = torch.empty(rows, outputs, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(outputs, _OUTPUTS))
    add = False
    with _device(x):
        for runs, weight in zip(plan, weights, strict=True):
            weight = weight.detach().contiguous()
            for code, columns in runs:
                sizes, some = (rows, _count(columns, width), width, outputs), x if columns is None else columns
                _forward_kernel[grid](
                    x, weight, y, some, *sizes, **_constants(code, squash, weight, columns), ADD=add,
                )  # fmt: skip
                add = True
    return y.to(x.dtype)


def backward(
    x: Tensor, g: Tensor, plan: Sequence[Codes], weights: Sequence[Tensor], squash: int, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of x and of each weight for g (N, O), contiguous; None where not wanted."""
    (rows, width), outputs = x.shape, g.shape[1]
    dx = torch.zeros(rows, width, dtype=torch.float32, device=x.device) if wanted[0] else None
    found: list[Tensor | None] = []
    with _device(x):
        for runs, weight, needed in zip(plan, weights, wanted[1:], strict=True):
            weight = weight.detach().contiguous()
            dw = torch.empty_like(weight, dtype=torch.float32) if needed else None
            for code, columns in runs:
                n, some = _count(columns, width), x if columns is None else columns
                constants, sizes = _constants(code, squash, weight, columns), (rows, n, width, outputs)
                inputs = triton.cdiv(n, _INPUTS)
                if dw is not None:
                    grid = (inputs, triton.cdiv(outputs, _OUTPUTS), constants["K"])
                    _weight_kernel[grid](x, g, dw, some, *sizes, **constants)
                if dx is not None:
                    _input_kernel[(triton.cdiv(rows, _ROWS), inputs)](x, g, weight, dx, some, *sizes, **constants)
            found.append(None if dw is None else dw.to(weight.dtype))
    return [None if dx is None else dx.to(x.dtype), *found]


def _count(columns: Tensor | None, width: int) -> int:
    return width if columns is None else columns.shape[0]


def _constants(code: int, squash: int, weight: Tensor, columns: Tensor | None) -> dict[str, int | bool]:
    return {
        "FAMILY": code,
        "SQUASH": squash,
        "K": weight.shape[2] if weight.ndim == 3 else 1,
        "SOME": columns is not None,
        "ROWS": _ROWS,
        "INPUTS": _INPUTS,
        "OUTPUTS": _OUTPUTS,
    }


def _device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
