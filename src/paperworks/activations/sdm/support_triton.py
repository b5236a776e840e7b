# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Similarity and nearest distance on a GPU: distances fused with their reductions, no N x B matrix written.

Two passes over tiles of (queries, exemplars).  The first keeps, per query, the least squared distance over failing
and over all exemplars; the second counts the matching exemplars below the least failing one.  A tile sums
(a_k - b_k)^2 over the features in order, in float32 (float64 for float64 exemplars): nothing cancels, a duplicate is
at distance 0, and both passes see the same number for the same pair.  Every program handles one tile of queries and
one share of the exemplars; the shares are reduced outside, in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERIES, _EXEMPLARS = 32, 64  # a tile
_PROGRAMS = 1024  # programs wanted on the device at once


@triton.jit
def _squared_distances(
    a_ptr,
    b_ptr,
    rows,
    columns,
    n_rows,
    n_columns,
    features,
    QUERIES: tl.constexpr,
    EXEMPLARS: tl.constexpr,
):
    """Tile of sum_k (a_k - b_k)^2; a (features, n_rows) and b (features, n_columns) are stored feature by feature."""
    a_in, b_in = rows < n_rows, columns < n_columns
    total = tl.zeros((QUERIES, EXEMPLARS), dtype=a_ptr.dtype.element_ty)
    for k in range(features):
        a = tl.load(a_ptr + k * n_rows + rows, mask=a_in, other=0.0)
        b = tl.load(b_ptr + k * n_columns + columns, mask=b_in, other=0.0)
        difference = a[:, None] - b[None, :]
        total += difference * difference
    return total


@triton.jit
def _nearest_kernel(
    a_ptr,
    b_ptr,
    predicted_ptr,
    group_ptr,
    fail_ptr,
    all_ptr,
    n_rows,
    n_columns,
    features,
    share,
    exclude_self,
    QUERIES: tl.constexpr,
    EXEMPLARS: tl.constexpr,
):
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    predicted = tl.load(predicted_ptr + rows, mask=rows < n_rows, other=0)
    infinity = float("inf")
    d_fail = tl.full((QUERIES,), infinity, dtype=a_ptr.dtype.element_ty)
    d_all = tl.full((QUERIES,), infinity, dtype=a_ptr.dtype.element_ty)
    first = tl.program_id(1) * share
    for start in range(first, tl.minimum(first + share, n_columns), EXEMPLARS):
        columns = start + tl.arange(0, EXEMPLARS)
        squared = _squared_distances(a_ptr, b_ptr, rows, columns, n_rows, n_columns, features, QUERIES, EXEMPLARS)
        group = tl.load(group_ptr + columns, mask=columns < n_columns, other=-1)
        seen = (columns[None, :] < n_columns) & ((exclude_self == 0) | (columns[None, :] != rows[:, None]))
        fails = seen & (group[None, :] != predicted[:, None])
        d_fail = tl.minimum(d_fail, tl.min(tl.where(fails, squared, infinity), axis=1))
        d_all = tl.minimum(d_all, tl.min(tl.where(seen, squared, infinity), axis=1))
    out = tl.program_id(1) * n_rows + rows
    tl.store(fail_ptr + out, d_fail, mask=rows < n_rows)
    tl.store(all_ptr + out, d_all, mask=rows < n_rows)


@triton.jit
def _count_kernel(
    a_ptr,
    b_ptr,
    predicted_ptr,
    group_ptr,
    fail_ptr,
    count_ptr,
    n_rows,
    n_columns,
    features,
    share,
    exclude_self,
    QUERIES: tl.constexpr,
    EXEMPLARS: tl.constexpr,
):
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    predicted = tl.load(predicted_ptr + rows, mask=rows < n_rows, other=0)
    d_fail = tl.load(fail_ptr + rows, mask=rows < n_rows, other=0.0)
    count = tl.zeros((QUERIES,), dtype=tl.int64)
    first = tl.program_id(1) * share
    for start in range(first, tl.minimum(first + share, n_columns), EXEMPLARS):
        columns = start + tl.arange(0, EXEMPLARS)
        squared = _squared_distances(a_ptr, b_ptr, rows, columns, n_rows, n_columns, features, QUERIES, EXEMPLARS)
        group = tl.load(group_ptr + columns, mask=columns < n_columns, other=-1)
        seen = (columns[None, :] < n_columns) & ((exclude_self == 0) | (columns[None, :] != rows[:, None]))
        matches = seen & (group[None, :] == predicted[:, None]) & (squared < d_fail[:, None])
        count += tl.sum(matches.to(tl.int64), axis=1)
    tl.store(count_ptr + tl.program_id(1) * n_rows + rows, count, mask=rows < n_rows)


def fused_query(
    h: Tensor, predicted: Tensor, exemplars: Tensor, group: Tensor, *, exclude_self: bool = False
) -> tuple[Tensor, Tensor]:
    """q (B,) and d_nearest (B,) as `SupportIndex.query` returns them.

    Args:
        h: queries (B, M).
        predicted: their classes (B,), int64, not negative.
        exemplars: (N, M).
        group: (N,) int64, the class of an exemplar that is rightly predicted, negative for one that is not.
        exclude_self: row i is exemplar i.
    """
    dtype = torch.float64 if exemplars.dtype == torch.float64 else torch.float32
    a, b = h.to(dtype).T.contiguous(), exemplars.to(dtype).T.contiguous()
    (features, n_rows), n_columns = a.shape, b.shape[1]
    if n_rows == 0:
        return predicted.new_zeros(0), exemplars.new_zeros(0)
    tiles = triton.cdiv(n_rows, _QUERIES)
    shares = max(1, min(triton.cdiv(n_columns, _EXEMPLARS), _PROGRAMS // tiles))
    share = triton.cdiv(triton.cdiv(n_columns, shares), _EXEMPLARS) * _EXEMPLARS
    shares = triton.cdiv(n_columns, share)
    d_fail = torch.empty(shares, n_rows, dtype=dtype, device=h.device)
    d_all, count = torch.empty_like(d_fail), torch.empty_like(d_fail, dtype=torch.int64)
    sizes = (n_rows, n_columns, features, share, int(exclude_self))
    tile = {"QUERIES": _QUERIES, "EXEMPLARS": _EXEMPLARS}
    _nearest_kernel[(tiles, shares)](a, b, predicted, group, d_fail, d_all, *sizes, **tile)
    least = d_fail.amin(0)
    _count_kernel[(tiles, shares)](a, b, predicted, group, least, count, *sizes, **tile)
    return count.sum(0), d_all.amin(0).double().sqrt().to(exemplars.dtype)
