"""The sum that a Kolmogorov-Arnold layer computes, without ever holding the whole basis matrix.

    y_no = sum_d b_od silu(x_nd) + sum_t sum_d sum_k w^t_odk B^{t,d}_k(u_nd),    u = squash(x)

Eager code expands x (N, D) to (N, D, K) and keeps that, and what it was made from, for the backward pass. Here a C
loop expands some rows at a time, a matrix product takes them, and backward expands them again: memory holds x and one
block. `composite` is the same sum in tensor operations, for everything else (other dtypes and devices, bases of the
user, `torch.compile`, `torch.func`, autocast, second derivatives).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from paperworks import native
from paperworks.kan.cpu_kernels import SILU, Codes, Loops, cpu_kernels
from paperworks.kan.families import (
    Basis,
    BSplineBasis,
    ChebyshevBasis,
    FourierBasis,
    GaussianBasis,
    WaveletBasis,
)

SQUASHES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "clamp": lambda x: x.clamp(-1, 1)}
"""How an input is brought to [-1, 1]."""

CODES: dict[type[Basis], int] = {
    BSplineBasis: 1,
    ChebyshevBasis: 2,
    FourierBasis: 3,
    GaussianBasis: 4,
    WaveletBasis: 5,
}
"""Numbers of the families in the kernels; by exact type, since a subclass may compute something else."""
SQUASH_CODES = {"tanh": 0, "clamp": 1}


class Run(NamedTuple):
    """One family and the inputs it expands: `columns` (int32 indices), or None for all inputs in order."""

    basis: Basis
    columns: Tensor | None = None


class Tile(NamedTuple):
    """Runs that cover every input once, all with the same K, and the weights (O, D, K) that go with them."""

    runs: tuple[Run, ...]
    weight: Tensor


def check_squash(squash: str) -> str:
    """`squash`, or ValueError listing what exists."""
    if squash not in SQUASHES:
        raise ValueError(f"squash: got {squash!r}, wanted one of {', '.join(SQUASHES)}")
    return squash


def kan_sum(x: Tensor, base_weight: Tensor | None, tiles: Sequence[Tile], squash: str) -> Tensor:
    """The sum above, for x of shape (..., D) with any leading dimensions: (..., O).

    Args:
        x: floating point; in the dtype of the weights, or under autocast.
        base_weight: b (O, D), or None for no base term.
        tiles: one for each term t.
        squash: ``"tanh"`` or ``"clamp"`` (to [-1, 1]).
    """
    flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    weights = [tile.weight for tile in tiles] + ([] if base_weight is None else [base_weight])
    engine = None if must_be_traceable(flat, *weights) else _engine(flat, tiles, weights)
    if engine is None:
        y = composite(flat, base_weight, tiles, squash)
    else:
        runs = tuple(tile.runs for tile in tiles)
        y = _FusedSum.apply(flat.contiguous(), squash, runs, base_weight is not None, engine, *weights)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], y.shape[-1])


def composite(x: Tensor, base_weight: Tensor | None, tiles: Sequence[Tile], squash: str) -> Tensor:
    """The sum in differentiable tensor operations, for x (N, D). Bases are evaluated in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    u = SQUASHES[squash](x.to(wide))
    y = None if base_weight is None else functional.linear(functional.silu(x), base_weight)
    for runs, weight in tiles:
        parts = [run.basis(u if run.columns is None else u[:, run.columns.long()]) for run in runs]
        if len(parts) > 1 or runs[0].columns is not None:
            weight = weight[:, torch.cat([run.columns.long() for run in runs if run.columns is not None])]
        matrix = (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).flatten(1)
        term = functional.linear(matrix.to(weight.dtype), weight.flatten(1))
        y = term if y is None else y + term
    assert y is not None
    return y


def must_be_traceable(*tensors: Tensor) -> bool:
    """Whether something other than plain eager reverse mode in one dtype is looking: autocast counts too."""
    return native.must_be_traceable(*tensors) or torch.is_autocast_enabled(tensors[0].device.type)


class Engine(NamedTuple):
    """`forward(x, runs, weights, squash) -> y` and `backward(x, g, runs, weights, squash, wanted) -> gradients`.

    The base term is a run of code 0. Gradients are of x and of each weight, None where not wanted.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., list[Tensor | None]]


def _known(x: Tensor, tiles: Sequence[Tile], weights: Sequence[Tensor]) -> bool:
    """Whether the kernels have every family and all tensors are of one kind and none is empty."""
    return all(type(run.basis) in CODES for tile in tiles for run in tile.runs) and all(
        t.dtype == x.dtype and t.device == x.device and t.numel() > 0 for t in (x, *weights)
    )


def _engine(x: Tensor, tiles: Sequence[Tile], weights: Sequence[Tensor]) -> Engine | None:
    """The kernels for this call, or None where only tensor operations will do."""
    return _kernels(x.device.type, x.dtype) if _known(x, tiles, weights) else None


def loops(x: Tensor, tiles: Sequence[Tile], weights: Sequence[Tensor]) -> Loops | None:
    """The C loops for this call, or None where there are none."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return cpu_kernels() if on_cpu and _known(x, tiles, weights) else None


@cache
def _kernels(device: str, dtype: torch.dtype) -> Engine | None:
    if device == "cuda" and dtype in (torch.float32, torch.float16, torch.bfloat16):
        if importlib.util.find_spec("triton") is None:
            return None
        from paperworks.kan import fused_triton

        return Engine(fused_triton.forward, fused_triton.backward)
    if device != "cpu" or dtype != torch.float32:
        return None
    found = cpu_kernels()
    return None if found is None else Engine(found.forward, found.backward)


def codes(runs: Sequence[Run]) -> Codes:
    """`runs` by the numbers of their families."""
    return tuple((CODES[type(run.basis)], run.columns) for run in runs)


class _FusedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        squash: str,
        runs: tuple[tuple[Run, ...], ...],
        base: bool,
        engine: Engine,
        *weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.squash, ctx.runs, ctx.base, ctx.engine = squash, runs, base, engine
        y: Tensor = engine.forward(x, _all_codes(runs, base), weights, SQUASH_CODES[squash])
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]]
        if torch.is_grad_enabled() or must_be_traceable(g, x, *weights):
            found = _differentiable(ctx, x, weights, g, wanted)
        else:
            plan = _all_codes(ctx.runs, ctx.base)
            found = ctx.engine.backward(x, g.contiguous(), plan, weights, SQUASH_CODES[ctx.squash], wanted)
        return found[0], None, None, None, None, *found[1:]


def _all_codes(runs: Sequence[Sequence[Run]], base: bool) -> list[Codes]:
    return [codes(r) for r in runs] + ([((SILU, None),)] if base else [])


def _differentiable(
    ctx: Any, x: Tensor, weights: Sequence[Tensor], g: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients with a graph of their own, from the tensor operations."""
    with torch.enable_grad():
        tiles = [Tile(runs, weight) for runs, weight in zip(ctx.runs, weights, strict=False)]
        y = composite(x, weights[-1] if ctx.base else None, tiles, ctx.squash)
        inputs = [t for t, needed in zip((x, *weights), wanted, strict=True) if needed]
        found = iter(torch.autograd.grad(y, inputs, g, create_graph=True))
    return [next(found) if needed else None for needed in wanted]
