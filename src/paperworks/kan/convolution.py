"""The sum that a convolutional Kolmogorov-Arnold layer computes.

    y = conv(b, silu(x)) + sum_t sum_k conv(w^t_k, B^t_k(u)),    u = squash(x)

The basis maps are zero padded, not x: a tap that falls outside the image contributes nothing. (Unfolding a padded x
into patches and applying one Kolmogorov-Arnold layer to them, the other form in use, lets such a tap contribute
phi(0).) Where no tap falls outside both are the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from paperworks.kan.fused import (
    SILU,
    SQUASH_CODES,
    SQUASHES,
    Codes,
    Loops,
    Run,
    Tile,
    codes,
    loops,
    must_be_traceable,
)


class Geometry(NamedTuple):
    """Stride, padding, dilation and groups, as `torch.nn.functional.conv2d` takes them."""

    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int

    def conv(self, maps: Tensor, weight: Tensor) -> Tensor:
        """The convolution of these maps."""
        return functional.conv2d(maps, weight, None, self.stride, self.padding, self.dilation, self.groups)


def kan_conv(x: Tensor, base_weight: Tensor | None, tiles: Sequence[Tile], squash: str, geometry: Geometry) -> Tensor:
    """The sum above for x (N, C, H, W), in the memory format channels-last on the fused path.

    Args:
        base_weight: b (O, C / groups, k, k), or None.
        tiles: weights (O, C / groups, K, k, k); the columns of a run are channels.
    """
    weights = [tile.weight for tile in tiles] + ([] if base_weight is None else [base_weight])
    kernels = None if geometry.padding == "same" or must_be_traceable(x, *weights) else loops(x, tiles, weights)
    if kernels is None:
        return composite_conv(x, base_weight, tiles, squash, geometry)
    runs = tuple(tile.runs for tile in tiles)
    y: Tensor = _FusedConv.apply(x, squash, runs, base_weight is not None, geometry, kernels, *weights)
    return y


def composite_conv(
    x: Tensor, base_weight: Tensor | None, tiles: Sequence[Tile], squash: str, geometry: Geometry
) -> Tensor:
    """The sum in differentiable tensor operations. Bases are evaluated in float32 or wider."""
    u = SQUASHES[squash](x.to(torch.promote_types(x.dtype, torch.float32)))
    y = None if base_weight is None else geometry.conv(functional.silu(x), base_weight)
    for runs, weight in tiles:
        parts = [run.basis(u if run.columns is None else u[:, run.columns.long()]) for run in runs]
        maps = parts[0]
        if len(parts) > 1:
            order = torch.cat([run.columns.long() for run in runs if run.columns is not None])
            maps = torch.cat(parts, 1)[:, order.argsort()]
        maps = maps.movedim(-1, 2).flatten(1, 2)
        term = geometry.conv(maps.to(weight.dtype), weight.flatten(1, 2))
        y = term if y is None else y + term
    assert y is not None
    return y


def _matrix(weight: Tensor) -> Tensor:
    """A weight as one of a plain convolution over all basis maps."""
    return weight.detach() if weight.ndim == 4 else weight.detach().flatten(1, 2)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) as contiguous rows of channels (N H W, C)."""
    return x.detach().permute(0, 2, 3, 1).contiguous().flatten(0, 2)


def _maps(rows: Tensor, runs: Codes, squash: int, functions: int, shape: torch.Size, kernels: Loops) -> Tensor:
    """Basis maps (N, C K, H, W), channels-last."""
    block = rows.new_empty(rows.shape[0], rows.shape[1] * functions)
    kernels.expand(rows, 0, rows.shape[0], runs, squash, block)
    return block.view(shape[0], *shape[2:], -1).permute(0, 3, 1, 2)


class _FusedConv(torch.autograd.Function):
    """Keeps x only: the basis maps are made again in backward, one tile at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        squash: str,
        runs: tuple[tuple[Run, ...], ...],
        base: bool,
        geometry: Geometry,
        kernels: Loops,
        *weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.squash, ctx.runs, ctx.base, ctx.geometry, ctx.kernels = squash, runs, base, geometry, kernels
        rows, y = _rows(x), None
        for plan, weight in zip(_plans(runs, base), weights, strict=True):
            maps = _maps(rows, plan, SQUASH_CODES[squash], _functions(weight), x.shape, kernels)
            term = geometry.conv(maps, _matrix(weight))
            y = term if y is None else y.add_(term)
        assert y is not None
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[6:]]
        if torch.is_grad_enabled() or must_be_traceable(g, x, *weights):
            found = _differentiable(ctx, x, weights, g, wanted)
        else:
            found = _gradients(ctx, x, weights, g, wanted)
        return found[0], None, None, None, None, None, *found[1:]


def _functions(weight: Tensor) -> int:
    return 1 if weight.ndim == 4 else weight.shape[2]


def _plans(runs: Sequence[Sequence[Run]], base: bool) -> list[Codes]:
    return [codes(r) for r in runs] + ([((SILU, None),)] if base else [])


def _gradients(
    ctx: Any, x: Tensor, weights: Sequence[Tensor], g: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    rows, kernels, code = _rows(x), ctx.kernels, SQUASH_CODES[ctx.squash]
    dx = torch.zeros_like(rows) if wanted[0] else None
    found: list[Tensor | None] = []
    stride, padding, dilation, groups = ctx.geometry
    for plan, weight, needed in zip(_plans(ctx.runs, ctx.base), weights, wanted[1:], strict=True):
        maps = _maps(rows, plan, code, _functions(weight), x.shape, kernels)
        d_maps, d_weight, _ = torch.ops.aten.convolution_backward(
            g, maps, _matrix(weight), None, stride, padding, dilation, False, [0, 0], groups,
            [dx is not None, needed, False],
        )  # fmt: skip
        found.append(d_weight.view_as(weight) if needed else None)
        if dx is not None:
            kernels.contract(rows, 0, rows.shape[0], plan, code, _rows(d_maps), dx)
    if dx is None:
        return [None, *found]
    return [dx.view(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2), *found]


def _differentiable(
    ctx: Any, x: Tensor, weights: Sequence[Tensor], g: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients with a graph of their own, from the tensor operations."""
    with torch.enable_grad():
        tiles = [Tile(runs, weight) for runs, weight in zip(ctx.runs, weights, strict=False)]
        y = composite_conv(x, weights[-1] if ctx.base else None, tiles, ctx.squash, ctx.geometry)
        inputs = [t for t, needed in zip((x, *weights), wanted, strict=True) if needed]
        found = iter(torch.autograd.grad(y, inputs, g, create_graph=True))
    return [next(found) if needed else None for needed in wanted]
