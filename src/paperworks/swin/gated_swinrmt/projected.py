"""Gated retention up to its last projection in one function: projections, passes, local enhancement and gate.

The projections write side by side into one map, which the loops of `passes.c` read and whose gradient they write: no
sums of gradients, no offsets, gates or convolutions in passes of their own, and one product for all weights' gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paperworks import native
from paperworks.swin.gated_swinrmt.depthwise import untouched
from paperworks.swin.gated_swinrmt.passes import Given, Passes, backward, forward, library
from paperworks.swin.windows_cpu import usable

if TYPE_CHECKING:
    from paperworks.swin.gated_swinrmt.attention import _Retention

__all__ = ["projected_passes"]


def projected_passes(
    attention: _Retention, x: Tensor, make: Callable[[], Passes], eager: Callable[..., Tensor]
) -> Tensor | None:
    """What `attention` projects at last, (B, h, w, C), or None where the loops or one of its layers must be called.

    Args:
        attention: its layers.
        x: (B, h, w, C).
        make: the tables of the passes.
        eager: the same in tensor operations, of x and of weight and bias of each layer, the convolution last.
    """
    gate = attention.gate if attention.v_gate is None else attention.v_gate
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, *([] if gate is None else [gate])]
    if not (all(untouched(layer, nn.Linear) for layer in linears) and untouched(attention.lce, nn.Conv2d)):
        return None
    parameters: list[Any] = [p for layer in (*linears, attention.lce) for p in (layer.weight, layer.bias)]
    if x.numel() == 0 or not usable(x, *parameters) or library() is None:
        return None
    found: Tensor = _Projected.apply(attention.num_heads, attention.v_gate is not None, make(), eager, x, *parameters)
    return found


def _given(y: Tensor, heads: int, of_values: bool, parameters: tuple[Tensor, ...]) -> Given:
    """The maps that lie side by side in y, (B, h, w, 3 C or 4 C)."""
    maps = y.unflatten(-1, (len(parameters) // 2 - 1, heads, -1)).unbind(-3)
    return Given(maps, tuple(parameters[1:-2:2]), parameters[-2], parameters[-1], of_values)


def _many(rows: int, width: int) -> bool:
    """Whether one product is worth a copy of the weights side by side."""
    return rows > 2 * width


def _of_rows(d_rows: Tensor, weights: list[Tensor]) -> Tensor:
    """The gradient of what all projections read."""
    width = weights[0].shape[1]
    if _many(len(d_rows), width):
        return d_rows @ torch.cat(weights)
    parts = d_rows.split(width, 1)
    found = parts[0] @ weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        found.addmm_(part, weight)
    return found


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        heads: int,
        of_values: bool,
        passes: Passes,
        eager: Callable[..., Tensor],
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        weights, width = parameters[:-2:2], x.shape[-1]
        rows = x.reshape(-1, width)
        if _many(len(rows), width):
            y = rows @ torch.cat(weights).t()
        else:
            y = rows.new_empty(len(rows), len(weights) * width)
            for part, weight in zip(y.split(width, 1), weights, strict=True):
                torch.mm(rows, weight.t(), out=part)
        y = y.view(*x.shape[:-1], -1)
        out = forward(_given(y, heads, of_values, parameters), passes).flatten(-2)
        ctx.save_for_backward(y, out, x, *parameters)
        ctx.heads, ctx.of_values, ctx.passes, ctx.eager = heads, of_values, passes, eager
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        y, out, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled() or native.must_be_traceable(g):
            return (*[None] * 4, *_again(ctx.eager, inputs, ctx.needs_input_grad[4:], g))
        x, *parameters = inputs
        given, d_y = _given(y, ctx.heads, ctx.of_values, tuple(parameters)), torch.empty_like(y)
        into = _given(d_y, ctx.heads, ctx.of_values, tuple(parameters)).maps
        sums = backward(given, ctx.passes, out, g.contiguous(), into).transpose(1, 2).flatten(0, 1).t()  # (5 + K K, C)
        rows, d_rows, weights = x.reshape(-1, x.shape[-1]), d_y.flatten(0, 2), parameters[:-2:2]
        wanted = ctx.needs_input_grad[4:]
        d_x = _of_rows(d_rows, weights).view(x.shape) if wanted[0] else None
        d_weights = (d_rows.t() @ rows).split(x.shape[-1]) if any(wanted[1:-2:2]) else (None,) * len(weights)
        gradients = [t for d_weight, d_offset in zip(d_weights, sums, strict=False) for t in (d_weight, d_offset)]
        taps = sums[5:].t().reshape(parameters[-2].shape)
        found = (d_x, *gradients, taps, sums[4])
        return (*[None] * 4, *(t if want else None for t, want in zip(found, wanted, strict=True)))


def _again(
    eager: Callable[..., Tensor], inputs: list[Tensor], wanted: tuple[bool, ...], g: Tensor
) -> list[Tensor | None]:
    """Gradients that can be differentiated."""
    with torch.enable_grad():
        out = eager(*inputs)
        some = [t for t, want in zip(inputs, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(out, some, g, create_graph=True))
    return [next(found) if want else None for want in wanted]
