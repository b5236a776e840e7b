"""The structured-state-space-duality scan of Mamba-2 in PyTorch, with the segment sum in three forms.

The recurrence, per head: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t. In chunks of L steps, with
a = dt A and c its cumulative sum within the chunk: G = C B^T, M = G * exp(segsum a), Y_diag = M (dt x); the chunk's
own state S = sum_s exp(c_L - c_s) (dt x)_s B_s^T; states at the chunks' ends by exp(segsum of the chunks' c_L);
Y_off = exp(c) C S_previous; y = Y_diag + Y_off + D x. This is the graph that XAMBA (arXiv 2502.06924) rewrites:
`segsum` says how S[i, j] = a_{j+1} + ... + a_i is made.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Segsum = Literal["cumsum", "matmul", "difference"]
FORMS = ("cumsum", "matmul", "difference")


def segment_sum(a: Tensor, form: Segsum = "cumsum") -> Tensor:
    """S[..., i, j] = a_{j+1} + ... + a_i for j <= i and -inf above the diagonal: (..., L) -> (..., L, L).

    Args:
        a: floating tensor.
        form: ``"cumsum"``, sums down the columns of the masked matrix; ``"matmul"``, the same by a triangular product
            (CumBA); ``"difference"``, c_i - c_j from one cumulative sum c.

    Raises ValueError for another form.
    """
    if form not in FORMS:
        raise ValueError(f"segsum: got {form!r}, want one of {', '.join(FORMS)}")
    length = a.shape[-1]
    ones = torch.ones(length, length, dtype=torch.bool, device=a.device)
    if form == "difference":
        sums = a.cumsum(-1)
        matrix = sums[..., :, None] - sums[..., None, :]
    else:
        matrix = a[..., None].expand(*a.shape, length).masked_fill(~ones.tril(-1), 0)
        matrix = matrix.cumsum(-2) if form == "cumsum" else ones.tril().to(a.dtype) @ matrix
    return matrix.masked_fill(~ones.tril(), -torch.inf)


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    chunk: int = 64,
    segsum: Segsum = "cumsum",
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The scan over T steps.

    Args:
        x: (b, T, h, p), heads of width p.
        dt: (b, T, h), step sizes as they enter the recurrence: after bias, softplus and limits.
        A: (h,), the negative decay rates.
        B, C: (b, T, g, n), with g groups that divide the heads; head k reads group k // (h / g).
        D: (h,) or (h, p), the skip; None: none.
        chunk: L, any number from 1; T need not be a multiple.
        segsum: see `segment_sum`.
        state: (b, h, p, n) before the first step; None: zeros.

    Returns:
        y (b, T, h, p) and the state (b, h, p, n) after the last step, in the dtype of `x`.

    Raises:
        ValueError: shapes that do not fit, heads that the groups do not divide, a chunk below 1, another segsum.
    """
    _check(x, dt, A, B, C, D, chunk, segsum, state)
    b, T, h, p = x.shape
    groups, n = B.shape[2:]
    start = x.new_zeros(b, h, p, n) if state is None else state.to(x.dtype)
    if T == 0:
        return x.clone(), start.clone()
    chunks = -(-T // chunk)

    def cut(t: Tensor) -> Tensor:
        """(b, T, ...) -> (b, c, L, ...); steps that are added have dt = 0, so they change no state."""
        padded = functional.pad(t, (0, 0) * (t.ndim - 2) + (0, chunks * chunk - T))
        return padded.reshape(b, chunks, chunk, *t.shape[2:])

    # heads are (g, j): B and C are never repeated over the j heads of a group
    j = h // groups
    Bs, Cs = cut(B).transpose(2, 3), cut(C).transpose(2, 3)  # (b, c, g, L, n)
    xs = cut(x * dt[..., None])  # (b, c, L, h, p)
    a = cut(dt * A).transpose(2, 3)  # (b, c, h, L)
    sums = a.cumsum(-1)

    M = (Cs @ Bs.transpose(-1, -2))[:, :, :, None] * segment_sum(a, segsum).exp().unflatten(2, (groups, j))
    y = (M.flatten(2, 3) @ xs.transpose(2, 3)).transpose(2, 3)  # (b, c, L, h, p)

    to_end = (sums[..., -1:] - sums).exp().transpose(2, 3)[..., None]
    by_group = (xs * to_end).reshape(b, chunks, chunk, groups, j * p).transpose(2, 3)  # (b, c, g, L, j p)
    ends = (by_group.transpose(-1, -2) @ Bs).reshape(b, chunks, h * p * n)
    between = segment_sum(functional.pad(sums[..., -1].transpose(1, 2), (1, 0)), segsum).exp()  # (b, h, c + 1, c + 1)
    states = torch.cat([start.reshape(b, 1, h * p * n), ends], 1).reshape(b, chunks + 1, h, p * n).transpose(1, 2)
    states = (between @ states).transpose(1, 2)  # (b, c + 1, h, p n)
    before = states[:, :-1].reshape(b, chunks, groups, j * p, n)
    through = (Cs @ before.transpose(-1, -2)).transpose(2, 3).reshape(b, chunks, chunk, h, p)
    y = (y + through * sums.exp().transpose(2, 3)[..., None]).reshape(b, chunks * chunk, h, p)[:, :T]
    if D is not None:
        y = y + x * (D[:, None] if D.ndim == 1 else D)
    return y.to(x.dtype), states[:, -1].reshape(b, h, p, n).to(x.dtype)


def _check(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    chunk: int, segsum: str, state: Tensor | None,
) -> None:  # fmt: skip
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x: got {x.dtype} of shape {tuple(x.shape)}, want floats of shape (b, T, h, p)")
    b, T, h, p = x.shape
    if B.ndim != 4 or tuple(B.shape[:2]) != (b, T):
        raise ValueError(f"B: got shape {tuple(B.shape)}, want ({b}, {T}, groups, n)")
    groups, n = B.shape[2:]
    if groups < 1 or h % groups:
        raise ValueError(f"B: got {groups} groups for {h} heads, want a number that divides the heads")
    wanted = {"dt": (dt, (b, T, h)), "A": (A, (h,)), "C": (C, (b, T, groups, n))}
    if state is not None:
        wanted["state"] = (state, (b, h, p, n))
    if D is not None:
        wanted["D"] = (D, (h,) if D.ndim == 1 else (h, p))
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, want {shape}")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk: got {chunk!r}, want an integer of 1 or more")
    if segsum not in FORMS:
        raise ValueError(f"segsum: got {segsum!r}, want one of {', '.join(FORMS)}")
