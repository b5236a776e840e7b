"""The AF-KAN layer up to its matrix in two fused stages, each with its gradient, on CPU (C) and CUDA (Triton).

`terms` reads x once and yields the two sums over j and the extremes; `finish` turns them into z. Kept for the backward
pass are x, the two sums and a few numbers a row, (rows, D) each, in place of a dozen tensors of (rows, D, G).
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paperworks import native
from paperworks.kan.af_kan.functional import (
    Options,
    Parameters,
    extent_of,
    finish_composite,
    hidden_composite,
    sums_composite,
)
from paperworks.kan.fused import must_be_traceable
from paperworks.kan.pairs import ACTIVATIONS, COMBINATIONS

_BLOCKS = 64  # row blocks that are summed apart: fixed, so that sums do not depend on the number of threads
_SHARE = 1 << 12  # inputs that are worth a thread
_ACTIVATION = {name: i for i, name in enumerate(ACTIVATIONS)}  # the order of the enumerations in af_kan.c
_FUNCTION = {name: i for i, name in enumerate(COMBINATIONS)}


def hidden(x: Tensor, p: Parameters, options: Options) -> Tensor:
    """z (rows, D) of x (rows, D): fused where there are kernels for it, else `functional.hidden_composite`.

    x and the parameters are float32 (or float64: composite) on one device.
    """
    given = [t for t in (x, *p) if t is not None]
    kernels = None
    if options.reduction != "spatial_attn" and x.numel() > 0 and not must_be_traceable(*given):
        kernels = _kernels(x.device.type, x.dtype)
    if kernels is None:
        return hidden_composite(x, p, options)
    if options.feature_norm == "batch" and x.numel() * len(p.low) == 1:
        return hidden_composite(x, p, options)  # says what is wrong
    weighted, sums, extent = _Terms.apply(x.contiguous(), p.low, p.high, p.weight, options, kernels)
    if kernels.finish is None:
        return finish_composite(weighted, sums, extent, p, options)
    return _Finish.apply(weighted, sums, extent, p.weight, p.bias, p.temperature, p.gain, p.offset, options, kernels)


class Kernels(NamedTuple):
    """The fused stages of one kind of device; without `finish` that stage is a few tensor operations."""

    terms: Callable[..., tuple[Tensor, Tensor, Tensor]]
    terms_backward: Callable[..., tuple[Tensor | None, ...]]
    finish: Callable[..., Tensor] | None = None
    finish_backward: Callable[..., tuple[Tensor | None, ...]] | None = None


class _Terms(torch.autograd.Function):
    """x (rows, D) -> L, S (rows, D), m and M (rows, 2)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, low: Tensor, high: Tensor, weight: Tensor, options: Options, kernels: Kernels
    ) -> tuple[Tensor, Tensor, Tensor]:
        weighted, sums, extremes = kernels.terms(x, low, high, weight, options)
        extent = extent_of(extremes, options.feature_norm)
        ctx.save_for_backward(x, low, high, weight, extremes, extent)
        ctx.options, ctx.kernels = options, kernels
        return weighted, sums, extent

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, extremes, extent = ctx.saved_tensors
        if torch.is_grad_enabled() or must_be_traceable(*gradients):
            found = _again(partial(sums_composite, options=ctx.options), inputs, gradients)
        else:
            dense = [g.contiguous() for g in gradients]
            wants_dx = ctx.needs_input_grad[0]
            found = ctx.kernels.terms_backward(*inputs, ctx.options, *dense, extremes, extent, wants_dx)
        return *found, None, None


class _Finish(torch.autograd.Function):
    """L, S, m and M -> z (rows, D)."""

    @staticmethod
    def forward(
        ctx: Any,
        weighted: Tensor,
        sums: Tensor,
        extent: Tensor,
        weight: Tensor,
        bias: Tensor,
        temperature: Tensor | None,
        gain: Tensor | None,
        offset: Tensor | None,
        options: Options,
        kernels: Kernels,
    ) -> Tensor:
        assert kernels.finish is not None
        given = (weighted, sums, extent, weight, bias, temperature, gain, offset)
        ctx.save_for_backward(*given)
        ctx.options, ctx.kernels = options, kernels
        return kernels.finish(*given, options)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        given, options = ctx.saved_tensors, ctx.options
        if torch.is_grad_enabled() or must_be_traceable(dz):

            def again(weighted: Tensor, sums: Tensor, extent: Tensor, *parameters: Any) -> tuple[Tensor]:
                return (finish_composite(weighted, sums, extent, Parameters(weighted, sums, *parameters), options),)

            return *_again(again, given, (dz,)), None, None
        return *ctx.kernels.finish_backward(dz.contiguous(), *given, options), None, None


def _again(
    function: Callable[..., tuple[Tensor, ...]], inputs: Any, gradients: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the composite `function` at `inputs`, themselves differentiable."""
    with torch.enable_grad(), torch.autocast(gradients[0].device.type, enabled=False):
        # Views: a saved input that was a leaf would otherwise be reached along two ways.
        seen = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in inputs]
        outputs = function(*seen)
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
        wanted = [t for t in seen if t is not None]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs],
                create_graph=torch.is_grad_enabled(), allow_unused=True,
            )
        )  # fmt: skip
    return tuple(None if t is None else next(found) for t in seen)


class _Call(ctypes.Structure):
    """`call` of af_kan.c."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("rows", "features", "terms", "activation", "function", "attention")),
        *((n, ctypes.c_int64) for n in ("layer_norm", "normalised", "shared", "blocks", "threads")),
        *((n, ctypes.c_double) for n in ("bias", "temperature", "epsilon")),
        *((n, ctypes.c_void_p) for n in ("low", "high", "weight", "factors")),
    )


def _call(x: Tensor, options: Options, weight: Tensor) -> _Call:
    rows, features = x.shape
    return _Call(
        rows=rows, features=features, terms=len(weight),
        activation=_ACTIVATION[options.activation], function=_FUNCTION[options.function],
        attention=options.reduction == "global_attn",
        normalised=options.feature_norm is not None, shared=options.feature_norm == "batch",
        blocks=min(rows, _BLOCKS), threads=max(1, min(torch.get_num_threads(), x.numel() // _SHARE)),
        temperature=1.0, epsilon=options.epsilon, weight=weight.data_ptr(),
    )  # fmt: skip


def _finish_call(
    weighted: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor | None, gain: Tensor | None, options: Options
) -> _Call:
    call = _call(weighted, options, weight)
    call.bias, call.layer_norm = float(bias.detach()), gain is not None
    call.temperature = 1.0 if temperature is None else float(temperature.detach())
    return call


def _pointers(*tensors: Tensor | None) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


def _dense(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.detach().contiguous() for t in tensors]


@cache
def _kernels(device: str, dtype: torch.dtype) -> Kernels | None:
    """The fused stages for a kind of device, or None where there are none."""
    if dtype != torch.float32:
        return None
    if device == "cuda" and importlib.util.find_spec("triton") is not None:
        from paperworks.kan.af_kan import fused_triton

        return Kernels(fused_triton.terms, fused_triton.terms_backward)
    if device != "cpu":
        return None
    counts = {"terms": 4, "terms_backward": 9, "finish": 6, "finish_backward": 11}
    library = native.load(
        Path(__file__).with_name("af_kan.c"),
        {f"af_kan_{name}": [ctypes.POINTER(_Call)] + [ctypes.c_void_p] * n for name, n in counts.items()},
    )
    return None if library is None else _cpu_kernels(library)


def _cpu_kernels(library: ctypes.CDLL) -> Kernels:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device="cpu")

    def terms(x: Tensor, low: Tensor, high: Tensor, weight: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
        low, high, weight = _dense(low, high, weight)
        call = _call(x, options, weight)
        call.low, call.high = low.data_ptr(), high.data_ptr()
        weighted, sums, extremes = empty(*x.shape), empty(*x.shape), empty(len(x), len(weight), 2)
        library.af_kan_terms(call, *_pointers(x, weighted, sums, extremes))
        return weighted, sums, extremes

    def terms_backward(
        x: Tensor, low: Tensor, high: Tensor, weight: Tensor, options: Options, by_weighted: Tensor, by_sums: Tensor,
        pull: Tensor, extremes: Tensor, extent: Tensor, wants_dx: bool,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        low, high, weight = _dense(low, high, weight)
        call = _call(x, options, weight)
        call.low, call.high = low.data_ptr(), high.data_ptr()
        dx = empty(*x.shape) if wants_dx else None
        partial, out = empty(call.blocks, 3 * len(weight)), empty(3, len(weight))
        given = (x, by_weighted, by_sums, extremes, extent, pull, dx, partial, out)
        library.af_kan_terms_backward(call, *_pointers(*given))
        return dx, out[0], out[1], out[2]

    def finish(
        weighted: Tensor, sums: Tensor, extent: Tensor, weight: Tensor, bias: Tensor, temperature: Tensor | None,
        gain: Tensor | None, offset: Tensor | None, options: Options,
    ) -> Tensor:  # fmt: skip
        weight, gain, offset = _dense(weight, gain, offset)
        call = _finish_call(weighted, weight, bias, temperature, gain, options)
        z = empty(*weighted.shape)
        library.af_kan_finish(call, *_pointers(weighted, sums, extent, gain, offset, z))
        return z

    def finish_backward(
        dz: Tensor, weighted: Tensor, sums: Tensor, extent: Tensor, weight: Tensor, bias: Tensor,
        temperature: Tensor | None, gain: Tensor | None, offset: Tensor | None, options: Options,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        weight, gain, offset = _dense(weight, gain, offset)
        call = _finish_call(weighted, weight, bias, temperature, gain, options)
        rows, features = weighted.shape
        by_weighted, by_sums, pull = empty(rows, features), empty(rows, features), empty(rows, 2)
        partial, out = empty(call.blocks, 3 + 2 * features), empty(3 + 2 * features)
        given = (weighted, sums, extent, dz, gain, offset, by_weighted, by_sums, pull, partial, out)
        library.af_kan_finish_backward(call, *_pointers(*given))
        return (
            by_weighted, by_sums, pull, out[2].expand(len(weight)), out[0].reshape(bias.shape),
            None if temperature is None else out[1].reshape(temperature.shape),
            None if gain is None else out[3 : 3 + features], None if offset is None else out[3 + features :],
        )  # fmt: skip

    return Kernels(terms, terms_backward, finish, finish_backward)
