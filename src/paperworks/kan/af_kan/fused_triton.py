# mypy: disable-error-code="no-untyped-def"
"""The terms of AF-KAN on a GPU: one pass over x forward and one backward, an input's terms in registers (Triton).

The counterpart of the first stage of `af_kan.c`; what follows it is a few tensor operations on (rows, D). A program has
one block of one row. Fused multiply-add is off: an element's term has to come out the same in every kernel, since the
elements that attained an extreme are found again by equality. Sums over rows have no atomics and a fixed order.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from paperworks.kan.af_kan.functional import Options
from paperworks.kan.pairs import ACTIVATIONS, COMBINATIONS

_ACTIVATION = {name: i for i, name in enumerate(ACTIVATIONS)}
_FUNCTION = {name: i for i, name in enumerate(COMBINATIONS)}
_LARGEST_BLOCK = 1024


@triton.jit
def _logistic(t):
    return 1.0 / (1.0 + tl.exp(-t))


@triton.jit
def _activation(t, KIND: tl.constexpr):
    """Value and slope, in the order of `ACTIVATIONS`."""
    if KIND == 0:  # silu
        s = _logistic(t)
        y, dy = t * s, s * (1.0 + t * (1.0 - s))
    elif KIND == 1:  # relu
        y, dy = tl.where(t < 0.0, 0.0, t), tl.where(t > 0.0, 1.0, 0.0)
    elif KIND == 2:  # leaky_relu
        y, dy = tl.where(t > 0.0, t, 0.01 * t), tl.where(t > 0.0, 1.0, 0.01)
    elif KIND == 3:  # elu
        e = tl.exp(tl.where(t > 0.0, 0.0, t))
        y, dy = tl.where(t > 0.0, t, e - 1.0), tl.where(t > 0.0, 1.0, e)
    elif KIND == 4:  # gelu
        c = 0.5 * (1.0 + tl.erf(t * 0.7071067811865476))
        y, dy = t * c, c + t * 0.3989422804014327 * tl.exp(-0.5 * t * t)
    elif KIND == 5:  # selu
        e = 1.6732632423543772 * tl.exp(tl.where(t > 0.0, 0.0, t))
        y = 1.0507009873554805 * tl.where(t > 0.0, t, e - 1.6732632423543772)
        dy = 1.0507009873554805 * tl.where(t > 0.0, 1.0, e)
    elif KIND == 6:  # softplus
        y = tl.where(t > 20.0, t, tl.log(1.0 + tl.exp(tl.where(t > 20.0, 0.0, t))))
        dy = _logistic(t)
    elif KIND == 7:  # sigmoid
        y = _logistic(t)
        dy = y * (1.0 - y)
    else:  # tanh
        y = 2.0 * _logistic(2.0 * t) - 1.0
        dy = 1.0 - y * y
    return y, dy


@triton.jit
def _term(x, low, high, ACTIVATION: tl.constexpr, FUNCTION: tl.constexpr):
    """A term and its derivatives by the phases, in the order of `COMBINATIONS`."""
    u, du = _activation(x - low, ACTIVATION)
    v, dv = _activation(high - x, ACTIVATION)
    p = u * v
    if FUNCTION == 0:  # sum
        f, by_u, by_v = u + v, 1.0 + 0.0 * u, 1.0 + 0.0 * v
    elif FUNCTION == 1:  # prod
        f, by_u, by_v = p, v, u
    elif FUNCTION == 2:  # sum_prod
        f, by_u, by_v = u + v + p, 1.0 + v, 1.0 + u
    elif FUNCTION == 3:  # quad1
        f, by_u, by_v = p * p, 2.0 * p * v, 2.0 * p * u
    elif FUNCTION == 4:  # quad2
        f, by_u, by_v = p + u * u + v * v, v + 2.0 * u, u + 2.0 * v
    elif FUNCTION == 5:  # cubic1
        q = u * u + v * v
        f, by_u, by_v = (u + v) * q, q + 2.0 * u * (u + v), q + 2.0 * v * (u + v)
    else:  # cubic2
        f, by_u, by_v = p * p * p, 3.0 * p * p * v, 3.0 * p * p * u
    return f, -du * by_u, dv * by_v


@triton.jit
def _forward_kernel(
    x_ptr, low_ptr, high_ptr, weight_ptr, weighted_ptr, sums_ptr, extremes_ptr, features, terms,
    ACTIVATION: tl.constexpr, FUNCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < features
    x = tl.load(x_ptr + row * features + at, mask=inside, other=0.0)
    weighted, sums = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    extremes_ptr += (row * tl.num_programs(1) + block) * terms * 2
    for j in range(terms):
        f, _, _ = _term(x, tl.load(low_ptr + j), tl.load(high_ptr + j), ACTIVATION, FUNCTION)
        weighted += tl.load(weight_ptr + j) * f
        sums += f
        tl.store(extremes_ptr + 2 * j, tl.min(tl.where(inside, f, float("inf")), axis=0))
        tl.store(extremes_ptr + 2 * j + 1, tl.max(tl.where(inside, f, float("-inf")), axis=0))
    tl.store(weighted_ptr + row * features + at, weighted, mask=inside)
    tl.store(sums_ptr + row * features + at, sums, mask=inside)


@triton.jit
def _count_kernel(
    x_ptr, low_ptr, high_ptr, extent_ptr, counts_ptr, features, terms,
    ACTIVATION: tl.constexpr, FUNCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many elements of a block attain m and M."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < features
    x = tl.load(x_ptr + row * features + at, mask=inside, other=0.0)
    least, largest = tl.load(extent_ptr + 2 * row), tl.load(extent_ptr + 2 * row + 1)
    low_count, high_count = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for j in range(terms):
        f, _, _ = _term(x, tl.load(low_ptr + j), tl.load(high_ptr + j), ACTIVATION, FUNCTION)
        low_count += tl.where(inside & (f == least), 1.0, 0.0)
        high_count += tl.where(inside & (f == largest), 1.0, 0.0)
    counts_ptr += (row * tl.num_programs(1) + block) * 2
    tl.store(counts_ptr, tl.sum(low_count, axis=0))
    tl.store(counts_ptr + 1, tl.sum(high_count, axis=0))


@triton.jit
def _backward_kernel(
    x_ptr, low_ptr, high_ptr, weight_ptr, by_weighted_ptr, by_sums_ptr, extent_ptr, share_ptr, dx_ptr, partial_ptr,
    features, terms, ACTIVATION: tl.constexpr, FUNCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d x of a block, and its part of d low, d high and d w: partial[row, block, 3, terms]."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < features
    x = tl.load(x_ptr + row * features + at, mask=inside, other=0.0)
    by_weighted = tl.load(by_weighted_ptr + row * features + at, mask=inside, other=0.0)
    by_sums = tl.load(by_sums_ptr + row * features + at, mask=inside, other=0.0)
    least, largest = tl.load(extent_ptr + 2 * row), tl.load(extent_ptr + 2 * row + 1)
    at_least, at_largest = tl.load(share_ptr + 2 * row), tl.load(share_ptr + 2 * row + 1)
    partial_ptr += (row * tl.num_programs(1) + block) * 3 * terms
    dx = tl.zeros([BLOCK], tl.float32)
    for j in range(terms):
        f, by_low, by_high = _term(x, tl.load(low_ptr + j), tl.load(high_ptr + j), ACTIVATION, FUNCTION)
        d = by_weighted * tl.load(weight_ptr + j) + by_sums
        d += tl.where(f == least, at_least, 0.0) + tl.where(f == largest, at_largest, 0.0)
        d = tl.where(inside, d, 0.0)
        dx -= d * (by_low + by_high)
        tl.store(partial_ptr + j, tl.sum(d * by_low, axis=0))
        tl.store(partial_ptr + terms + j, tl.sum(d * by_high, axis=0))
        tl.store(partial_ptr + 2 * terms + j, tl.sum(by_weighted * f, axis=0))
    tl.store(dx_ptr + row * features + at, dx, mask=inside)


def terms(x: Tensor, low: Tensor, high: Tensor, weight: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """L and S (rows, D) and the extremes (rows, G, 2) of x (rows, D) in float32, contiguous."""
    grid, size = _grid(x)
    weighted, sums = torch.empty_like(x), torch.empty_like(x)
    extremes = x.new_empty(*grid, len(weight), 2)
    given = [t.detach().contiguous() for t in (low, high, weight)]
    with _device(x):
        _forward_kernel[grid](
            x, *given, weighted, sums, extremes, x.shape[1], len(weight), **_kinds(options, size)
        )  # fmt: skip
    return weighted, sums, torch.stack([extremes[..., 0].amin(1), extremes[..., 1].amax(1)], -1)


def terms_backward(
    x: Tensor, low: Tensor, high: Tensor, weight: Tensor, options: Options, by_weighted: Tensor, by_sums: Tensor,
    pull: Tensor, extremes: Tensor, extent: Tensor, wants_dx: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, low, high and weight, given those of L, S and of m and M (`pull`: rows, 2)."""
    grid, size = _grid(x)
    phases = [t.detach().contiguous() for t in (low, high)]
    dx, partial = torch.empty_like(x), x.new_empty(*grid, 3, len(weight))
    with _device(x):
        share = torch.zeros_like(pull)
        if options.feature_norm is not None:
            counts = x.new_empty(*grid, 2)
            _count_kernel[grid](x, *phases, extent, counts, x.shape[1], len(weight), **_kinds(options, size))
            counts = counts.sum(1)
            if options.feature_norm == "batch":
                counts, pull = (t.sum(0, dtype=torch.float64).expand(len(x), 2) for t in (counts, pull))
            share = (pull / counts.clamp(min=1)).float().contiguous()
        _backward_kernel[grid](
            x, *phases, weight.detach().contiguous(), by_weighted, by_sums, extent, share, dx, partial,
            x.shape[1], len(weight), **_kinds(options, size),
        )  # fmt: skip
    by_low, by_high, by_weight = partial.sum((0, 1), dtype=torch.float64).float()
    return dx, by_low, by_high, by_weight


def _grid(x: Tensor) -> tuple[tuple[int, int], int]:
    size = min(_LARGEST_BLOCK, triton.next_power_of_2(x.shape[1]))
    return (len(x), triton.cdiv(x.shape[1], size)), size


def _kinds(options: Options, size: int) -> dict[str, int]:
    return {
        "ACTIVATION": _ACTIVATION[options.activation],
        "FUNCTION": _FUNCTION[options.function],
        "BLOCK": size,
        "enable_fp_fusion": False,
    }


def _device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
