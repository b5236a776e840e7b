# mypy: disable-error-code="no-untyped-def"
"""The two passes on a GPU: one program a (window, head), nothing but q, k, v and the result in memory (Triton).

All pairs of tokens of a window have one matrix of scores S = q k^T. The width pass is softmax of S with -inf where two
tokens are not in one row, the height pass the same for columns: both come from one product, and the gradient of S is
the sum of theirs. The tables are those of `passes.c`, looked up by row and column.
Imported only where a CUDA tensor meets an installed triton; `fused_passes` is what to call.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_TOKENS = 128


@triton.jit
def _turned(ptr, at, inside, cos, sin, scale, STEP: tl.constexpr):
    even = tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(ptr + at + STEP, mask=inside, other=0.0).to(tl.float32)
    return scale * (even * cos - odd * sin), scale * (odd * cos + even * sin)


@triton.jit
def _weights(scores, add_ptr, factor_ptr, line, place, other_line, other, real, lines, length, start, heads,
             FACTOR: tl.constexpr):  # fmt: skip
    """P of one pass, dA / dS and the row sums: `line` and `place` of the queries, `other...` of the keys."""
    square = heads * length * length
    at = start + tl.where(lines > 1, line, 0)[:, None] * square + place[:, None] * length + other[None, :]
    same = (line[:, None] == other_line[None, :]) & real
    add = tl.load(add_ptr + at, mask=same, other=-float("inf"))
    if FACTOR:
        factor = tl.load(factor_ptr + at, mask=same, other=0.0)
        opened = tl.where(same, tl.sigmoid(scores + add), 0.0)
        weights = opened * factor
        sums = tl.sum(weights, 1)
        return weights / tl.maximum(sums, 1.0)[:, None], weights * (1.0 - opened), sums
    shifted = tl.where(same, scores + add, -float("inf"))
    most = tl.max(shifted, 1)
    weights = tl.exp(shifted - tl.where(most == -float("inf"), 0.0, most)[:, None])
    sums = tl.sum(weights, 1)
    weights = weights / tl.where(sums > 0, sums, 1.0)[:, None]
    return weights, weights, sums


@triton.jit
def _score_gradient(weights, slope, sums, g, FACTOR: tl.constexpr):
    inner = g - tl.sum(weights * g, 1)[:, None]
    if FACTOR:
        over = (sums > 1.0)[:, None]
        return slope * tl.where(over, inner / tl.where(sums > 0, sums, 1.0)[:, None], g)
    return weights * inner


@triton.jit
def _passes_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, row_add, row_factor, column_add, column_factor,
    out_ptr, g_ptr, dq_ptr, dk_ptr, dv_ptr,
    scale, windows, row_lines, column_lines, h, w, heads,
    D: tl.constexpr, N: tl.constexpr, ROTARY: tl.constexpr, FACTOR: tl.constexpr, BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Forward: out from q, k, v. Backward: dq, dk, dv from g too. Each is (B, h w, heads, D)."""
    window, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    HALF: tl.constexpr = D // 2
    token, half, channel = tl.arange(0, N), tl.arange(0, HALF), tl.arange(0, D)
    n = h * w
    here = (token < n)[:, None]
    row, column = token // w, token % w
    first = (window * n * heads + head) * D
    pairs = first + token[:, None] * heads * D + 2 * half[None, :]
    whole = first + token[:, None] * heads * D + channel[None, :]
    cos = tl.full((N, HALF), 1.0, tl.float32)
    sin = tl.zeros((N, HALF), tl.float32)
    if ROTARY:
        angles = token[:, None] * HALF + half[None, :]
        cos = tl.load(cos_ptr + angles, mask=here, other=1.0).to(tl.float32)
        sin = tl.load(sin_ptr + angles, mask=here, other=0.0).to(tl.float32)
    q_even, q_odd = _turned(q_ptr, pairs, here, cos, sin, 1.0, 1)
    k_even, k_odd = _turned(k_ptr, pairs, here, cos, sin, scale, 1)
    v = tl.load(v_ptr + whole, mask=here, other=0.0).to(tl.float32)
    scores = tl.dot(q_even, tl.trans(k_even), input_precision=PRECISION)
    scores += tl.dot(q_odd, tl.trans(k_odd), input_precision=PRECISION)
    real = here & (token < n)[None, :]
    of_window = window % windows
    row_start = (of_window * row_lines * heads + head) * w * w
    column_start = (of_window * column_lines * heads + head) * h * h
    in_rows, row_slope, row_sums = _weights(
        scores, row_add, row_factor, row, column, row, column, real, row_lines, w, row_start, heads, FACTOR
    )
    in_columns, column_slope, column_sums = _weights(
        scores, column_add, column_factor, column, row, column, row, real, column_lines, h, column_start, heads, FACTOR
    )
    middle = tl.dot(in_rows, v, input_precision=PRECISION)
    if not BACKWARD:
        out = tl.dot(in_columns, middle, input_precision=PRECISION)
        tl.store(out_ptr + whole, out.to(out_ptr.dtype.element_ty), mask=here)
    else:
        g = tl.load(g_ptr + whole, mask=here, other=0.0).to(tl.float32)
        g_middle = tl.dot(tl.trans(in_columns), g, input_precision=PRECISION)
        g_columns = tl.dot(g, tl.trans(middle), input_precision=PRECISION)
        g_rows = tl.dot(g_middle, tl.trans(v), input_precision=PRECISION)
        dv = tl.dot(tl.trans(in_rows), g_middle, input_precision=PRECISION)
        ds = _score_gradient(in_columns, column_slope, column_sums, g_columns, FACTOR)
        ds += _score_gradient(in_rows, row_slope, row_sums, g_rows, FACTOR)
        dq_even = tl.dot(ds, k_even, input_precision=PRECISION)
        dq_odd = tl.dot(ds, k_odd, input_precision=PRECISION)
        dk_even = tl.dot(tl.trans(ds), q_even, input_precision=PRECISION) * scale
        dk_odd = tl.dot(tl.trans(ds), q_odd, input_precision=PRECISION) * scale
        kind = dq_ptr.dtype.element_ty
        tl.store(dq_ptr + pairs, (dq_even * cos + dq_odd * sin).to(kind), mask=here)
        tl.store(dq_ptr + pairs + 1, (dq_odd * cos - dq_even * sin).to(kind), mask=here)
        tl.store(dk_ptr + pairs, (dk_even * cos + dk_odd * sin).to(kind), mask=here)
        tl.store(dk_ptr + pairs + 1, (dk_odd * cos - dk_even * sin).to(kind), mask=here)
        tl.store(dv_ptr + whole, dv.to(kind), mask=here)


def takes(q: Tensor) -> bool:
    """Whether the kernel takes windows (B, h, w, H, D) of this shape and type."""
    _, h, w, _, width = q.shape
    fits = h * w <= MOST_TOKENS and width in (32, 64, 128)
    return fits and q.dtype in (torch.float32, torch.float16, torch.bfloat16)


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    scale: float,
    rows: tuple[Tensor, Tensor | None],
    columns: tuple[Tensor, Tensor | None],
    g: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """(v after both passes,), or with the gradient `g` of that (dq, dk, dv).

    Args:
        q, k, v, g: (B, h, w, H, D), contiguous.
        rotary, scale, rows, columns: as in `Passes`.
    """
    b, h, w, heads, width = q.shape
    made = tuple(torch.empty_like(q) for _ in range(1 if g is None else 3))
    outputs = (made[0], q, q, q, q) if g is None else (q, g, *made)
    cos, sin = (t.contiguous() for t in rotary) if rotary else (q, q)
    windows, row_lines = rows[0].shape[:2] if rows[0].dim() == 5 else (1, 1)
    column_lines = columns[0].shape[1] if columns[0].dim() == 5 else 1
    tables = [q if t is None else t.contiguous() for t in (*rows, *columns)]
    with _device(q):
        _passes_kernel[(b, heads)](
            q, k, v, cos, sin, *tables, *outputs, scale, windows, row_lines, column_lines, h, w, heads,
            D=width, N=max(16, triton.next_power_of_2(h * w)), ROTARY=rotary is not None, FACTOR=rows[1] is not None,
            BACKWARD=g is not None, PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        )  # fmt: skip
    return made


def _device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
