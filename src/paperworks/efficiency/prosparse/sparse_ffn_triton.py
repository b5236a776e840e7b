# mypy: disable-error-code="no-untyped-def"
"""The sparse feed-forward network of a few tokens on a GPU (Triton).

The active rows of every token are listed first, by one program a token; the host never learns how many there are. The
grids are made for all d_ff rows, and programs past the end of the list return at once. Step 3 splits the list among
programs and sums their shares in a fixed order, so every run gives the same result. Sums are float32, or float64 for
float64. Imported only where it is used; `paperworks.efficiency.prosparse.sparse_ffn` is what to call.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

_LISTED = 4096  # gates that a program looks at in one step
_ROWS, _ALONG = 8, 512  # the tile of step 2: rows and their elements
_SPLITS, _DEEP, _COLUMNS = 16, 16, 128  # step 3: shares of the list, and its tile: rows and columns


@triton.jit
def _list_kernel(gate_ptr, threshold_ptr, index_ptr, count_ptr, d_ff, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """The active rows of one token in rising order, and their number. A NaN is active."""
    token = tl.program_id(0).to(tl.int64)
    found = 0
    for begin in range(0, d_ff, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        inside = j < d_ff
        g = tl.load(gate_ptr + token * d_ff + j, mask=inside, other=0.0)
        t = tl.load(threshold_ptr + j * STEP, mask=inside, other=0.0)
        below = g.to(t.dtype) < t
        active = inside & (below == 0)
        one = active.to(tl.int32)
        at = found + tl.cumsum(one, axis=0) - one
        tl.store(index_ptr + token * d_ff + at, j, mask=active)
        found += tl.sum(one, axis=0)
    tl.store(count_ptr + token, found)


@triton.jit
def _rows_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    gate_ptr,
    index_ptr,
    count_ptr,
    out_ptr,
    d,
    d_ff,
    BIAS: tl.constexpr,
    UP: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    ALONG: tl.constexpr,
):
    """out_j = <x, w_j> + bias_j over the list, times the gate in step 2."""
    token = tl.program_id(1).to(tl.int64)
    count = tl.load(count_ptr + token)
    first = tl.program_id(0) * ROWS
    if first >= count:
        return
    k = first + tl.arange(0, ROWS)
    here = k < count
    j = tl.load(index_ptr + token * d_ff + k, mask=here, other=0).to(tl.int64)
    sums = tl.zeros((ROWS, ALONG), dtype=ACC)
    for begin in range(0, d, ALONG):
        i = begin + tl.arange(0, ALONG)
        inside = i < d
        x = tl.load(x_ptr + token * d + i, mask=inside, other=0.0).to(ACC)
        w = tl.load(w_ptr + j[:, None] * d + i[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        sums += w.to(ACC) * x[None, :]
    s = tl.sum(sums, axis=1)
    if BIAS:
        s += tl.load(bias_ptr + j, mask=here, other=0.0).to(ACC)
    if UP:
        s *= tl.load(gate_ptr + token * d_ff + j, mask=here, other=0.0).to(ACC)
    tl.store(out_ptr + token * d_ff + j, s, mask=here)


@triton.jit
def _down_kernel(
    h_ptr,
    w_ptr,
    index_ptr,
    count_ptr,
    partial_ptr,
    d,
    d_ff,
    ACC: tl.constexpr,
    SPLITS: tl.constexpr,
    DEEP: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One share of the list, one block of columns: its part of sum_j h_j w_j goes to partial[token, share]."""
    token = tl.program_id(2).to(tl.int64)
    share = tl.program_id(1)
    i = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = i < d
    count = tl.load(count_ptr + token)
    length = tl.cdiv(count, SPLITS)
    begin = share * length
    end = tl.minimum(count, begin + length)
    sums = tl.zeros((DEEP, COLUMNS), dtype=ACC)
    for at in range(begin, end, DEEP):
        k = at + tl.arange(0, DEEP)
        here = k < end
        j = tl.load(index_ptr + token * d_ff + k, mask=here, other=0).to(tl.int64)
        h = tl.load(h_ptr + token * d_ff + j, mask=here, other=0.0).to(ACC)
        w = tl.load(w_ptr + j[:, None] * d + i[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        sums += h[:, None] * w.to(ACC)
    tl.store(partial_ptr + (token * SPLITS + share) * d + i, tl.sum(sums, axis=0), mask=inside)


def ffn(x: Tensor, gate: Tensor, W_up: Tensor, W_down_t: Tensor, threshold: Tensor, up_bias: Tensor | None) -> Tensor:
    """Steps 2 and 3 of `sparse_ffn` for rows x (tokens, d) and gate (tokens, d_ff): (tokens, d) in the sums' dtype."""
    wide, _ = _wide(x.dtype)
    gate = gate.contiguous()
    with _device(x):
        index, count = _listed(gate, threshold.to(wide))
        x1 = torch.empty(gate.shape, dtype=wide, device=x.device)  # filled and read where the list says
        _rows(x, W_up, up_bias, gate, index, count, x1)
        return _summed(x1, W_down_t, index, count)


def down(x1: Tensor, W_down_t: Tensor) -> Tensor:
    """Step 3 alone for x1 (tokens, d_ff): (tokens, d) in the sums' dtype."""
    with _device(x1):
        return _summed(x1.contiguous(), W_down_t, *_named(x1 != 0))


def gate(x: Tensor, W_gate: Tensor, bias: Tensor | None, candidates: Tensor) -> Tensor:
    """x W_gate^T + bias where `candidates` (tokens, d_ff), else -inf: (tokens, d_ff) in the sums' dtype."""
    wide, _ = _wide(x.dtype)
    out = torch.full(candidates.shape, -torch.inf, dtype=wide, device=x.device)
    with _device(x):
        _rows(x, W_gate, bias, None, *_named(candidates), out)
    return out


def _listed(gate: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    tokens, d_ff = gate.shape
    index = torch.empty(tokens, d_ff, dtype=torch.int32, device=gate.device)
    count = torch.empty(tokens, dtype=torch.int32, device=gate.device)
    limit = threshold.contiguous()
    _list_kernel[(tokens,)](gate, limit, index, count, d_ff, STEP=min(1, limit.ndim), BLOCK=_LISTED, num_warps=16)
    return index, count


def _named(active: Tensor) -> tuple[Tensor, Tensor]:
    """`_listed` for what is true: gates of 1 and 0 at a threshold of 1."""
    return _listed(active.float().contiguous(), torch.ones((), device=active.device))


def _summed(x1: Tensor, W_down_t: Tensor, index: Tensor, count: Tensor) -> Tensor:
    wide, acc = _wide(W_down_t.dtype)
    (tokens, d_ff), d = x1.shape, W_down_t.shape[1]
    partial = torch.empty(tokens, _SPLITS, d, dtype=wide, device=x1.device)
    _down_kernel[(triton.cdiv(d, _COLUMNS), _SPLITS, tokens)](
        x1,
        W_down_t.contiguous(),
        index,
        count,
        partial,
        d,
        d_ff,
        ACC=acc,
        SPLITS=_SPLITS,
        DEEP=_DEEP,
        COLUMNS=_COLUMNS,
    )
    return partial.sum(1)


def _rows(
    x: Tensor, W: Tensor, bias: Tensor | None, gate: Tensor | None, index: Tensor, count: Tensor, out: Tensor
) -> None:
    (tokens, d), d_ff = x.shape, len(W)
    _rows_kernel[(triton.cdiv(d_ff, _ROWS), tokens)](
        x.contiguous(),
        W.contiguous(),
        out if bias is None else bias.contiguous(),
        out if gate is None else gate,
        index,
        count,
        out,
        d,
        d_ff,
        BIAS=bias is not None,
        UP=gate is not None,
        ACC=_wide(x.dtype)[1],
        ROWS=_ROWS,
        ALONG=_ALONG,
    )


def _wide(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def _device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
