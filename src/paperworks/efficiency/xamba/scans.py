"""Mamba-2's scan in other operations than those of transformers, for the length of an export.

*Naive*, those of early 2024, from which XAMBA (arXiv 2502.06924) sets out: every contraction is a broadcast product
followed by a sum, so that the scores alone pass through a tensor of (batch, chunks, L, L, heads, n). *Grouped*, beyond
the paper: `ssd_scan`, whose products are matrix products in the layout that they leave behind, and which does not
repeat B and C over the heads of a group. All functions take the arguments of transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from paperworks.efficiency.xamba.ssd import segment_sum, ssd_scan


def naive_chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **unused: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """The scan of a whole sequence, (b, T, h, p) -> (b, T, h, p), and the last state (b, h, p, n) where asked for."""
    b, T, h, p = hidden_states.shape
    dt = _step_size(dt, dt_bias, dt_softplus, dt_limit)
    repeats = h // B.shape[2]
    B, C = (t.float().repeat_interleave(repeats, dim=2, output_size=h) for t in (B, C))
    x = hidden_states.float()
    padding = -T % chunk_size

    def cut(t: Tensor) -> Tensor:
        padded = functional.pad(t, (0, 0) * (t.ndim - 2) + (0, padding))
        return padded.reshape(b, -1, chunk_size, *t.shape[2:])

    xs, a, Bs, Cs = cut(x * dt[..., None]), cut(A.float() * dt).permute(0, 3, 1, 2), cut(B), cut(C)
    sums = torch.cumsum(a, dim=-1)  # (b, h, c, L)

    G = (Cs[:, :, :, None] * Bs[:, :, None]).sum(dim=-1)  # through (b, c, l, s, h, n)
    M = G * segment_sum(a).exp().permute(0, 2, 3, 4, 1)
    y = (M[..., None] * xs[:, :, None]).sum(dim=3)

    to_end = (sums[..., -1:] - sums).exp().permute(0, 2, 3, 1)
    ends = ((Bs * to_end[..., None])[..., None, :] * xs[..., None]).sum(dim=2)  # (b, c, h, p, n)
    start = torch.zeros_like(ends[:, :1]) if initial_states is None else initial_states[:, None].float()
    between = segment_sum(functional.pad(sums[..., -1], (1, 0))).exp().transpose(1, 3)  # (b, z, c, h)
    states = (between[..., None, None] * torch.cat([start, ends], dim=1)[:, :, None]).sum(dim=1)

    through = (Cs[..., None, :] * states[:, :-1, None]).sum(dim=-1)
    y = y + through * sums.exp().permute(0, 2, 3, 1)[..., None]
    y = y.reshape(b, -1, h, p)[:, :T]
    if D is not None:
        y = y + D[..., None] * x
    return (y, states[:, -1]) if return_final_states else y


def grouped_chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **unused: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same through `ssd_scan`, segment sums by difference."""
    y, state = ssd_scan(
        hidden_states.float(),
        _step_size(dt, dt_bias, dt_softplus, dt_limit),
        A.float(),
        B.float(),
        C.float(),
        D,
        chunk=chunk_size,
        segsum="difference",
        state=initial_states,
    )
    return (y, state) if return_final_states else y


def naive_state_update(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    **unused: Any,
) -> Tensor:
    """One step: `state` (b, h, p, n) is brought up to date in place; x and dt (b, h, p) -> y (b, h, p)."""
    b, h, _ = hidden_states.shape
    groups, n = B.shape[1:]
    dt = _step_size(dt, dt_bias, dt_softplus, None)[..., None]
    B, C = (t[:, :, None].expand(b, groups, h // groups, n).reshape(b, h, 1, n) for t in (B, C))
    new = state * torch.exp(dt * A.float()) + dt * B * hidden_states[..., None]
    state.copy_(new.to(state.dtype))
    y = (new * C).sum(dim=-1)
    return y if D is None else y + hidden_states * D


def _step_size(dt: Tensor, bias: Tensor | None, softplus: bool, limit: tuple[float, float] | None) -> Tensor:
    dt = dt.float()
    if bias is not None:
        dt = dt + bias
    if softplus:
        dt = functional.softplus(dt)
    return dt if limit is None else torch.clamp(dt, min=limit[0], max=limit[1])
