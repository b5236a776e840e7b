"""Depthwise convolutions of channels-last maps, alone or behind GELU: on the CPU in float32 by loops (`depthwise.c`).

A convolution of PyTorch wants its map in another layout and makes a map that the sum around it reads again. The loops
read the map as it is and add what is to be added; behind GELU only its input is kept for the backward pass.
"""

from __future__ import annotations

from ctypes import CDLL, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks import native
from paperworks.swin.windows_cpu import gelu, gelu_backward, usable

__all__ = ["add_depthwise", "gelu_depthwise"]

_SIZES = [c_int64] * 5


def _library() -> CDLL | None:
    functions: dict[str, list[Any]] = {
        "depthwise": [*[c_void_p] * 5, c_int64, *_SIZES, c_int],
        "depthwise_taps": [*[c_void_p] * 4, *_SIZES, c_int],
    }
    return native.load(Path(__file__).with_name("depthwise.c"), functions)


def convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of a channels-last map (B, H, W, C)."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is what it was built as: one that is wrapped, hooked or parametrised has to be called."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is kind and not any(hooks) and layer.bias is not None


def _looped(layer: nn.Conv2d, *tensors: Tensor) -> bool:
    """Whether the loops take these maps."""
    return (
        untouched(layer, nn.Conv2d)
        and min(t.numel() for t in tensors) > 0
        and usable(*tensors, layer.weight, layer.bias)
        and _library() is not None
    )


def add_depthwise(layer: nn.Conv2d, x: Tensor, base: Tensor | None = None) -> Tensor:
    """`base` + the depthwise convolution of x, both (B, H, W, C); x itself in place of no base."""
    if not _looped(layer, x, x if base is None else base):
        return (x if base is None else base) + convolved(layer, x)
    found: Tensor = _Added.apply(x, base, layer.weight, layer.bias)
    return found


def gelu_depthwise(fc: nn.Linear, layer: nn.Conv2d, x: Tensor) -> Tensor:
    """u + the depthwise convolution of u, with u = GELU(fc(x)): (B, H, W, C) -> (B, H, W, C')."""
    if not (untouched(fc, nn.Linear) and _looped(layer, x) and usable(fc.weight, fc.bias)):
        u = F.gelu(fc(x))
        return u + convolved(layer, u)
    hidden = F.linear(x, fc.weight)
    if not torch.is_grad_enabled():
        assert layer.bias is not None
        gelu(hidden, fc.bias.contiguous(), hidden)
        return _run(hidden, _taps(layer.weight), layer.bias.contiguous(), hidden)
    found: Tensor = _Gelu.apply(hidden, fc.bias, layer.weight, layer.bias)
    return found


def _run(x: Tensor, taps: Tensor, bias: Tensor | None, base: Tensor | None, flipped: bool = False) -> Tensor:
    """base + bias + taps * x."""
    library, out, side = _library(), torch.empty_like(x), taps.shape[0]
    assert library is not None
    pointers = [None if t is None else t.data_ptr() for t in (x, taps, bias, base, out)]
    library.depthwise(*pointers, int(flipped), *x.shape, round(side**0.5), torch.get_num_threads())
    return out


def _taps(weight: Tensor) -> Tensor:
    """(K K, C) of (C, 1, K, K)."""
    return weight.flatten(1).t().contiguous()


def _of_weights(x: Tensor, g: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias."""
    library, side = _library(), weight.shape[-1]
    assert library is not None
    d_taps, d_bias = x.new_empty(side * side, x.shape[-1]), x.new_empty(x.shape[-1])
    pointers = [t.data_ptr() for t in (x, g, d_taps, d_bias)]
    library.depthwise_taps(*pointers, *x.shape, side, torch.get_num_threads())
    return d_taps.t().reshape(weight.shape), d_bias


def by_tensors(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The depthwise convolution of x (B, H, W, C)."""
    found = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    return found.permute(0, 2, 3, 1)


def _again(out: Tensor, given: tuple[Tensor, ...], wanted: tuple[bool, ...], g: Tensor) -> list[Tensor | None]:
    """Gradients of `out` that can be differentiated."""
    found = iter(torch.autograd.grad(out, [t for t, w in zip(given, wanted, strict=True) if w], g, create_graph=True))
    return [next(found) if w else None for w in wanted]


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight, bias)
        ctx.alone = base is None
        return _run(x, _taps(weight), bias.contiguous(), x if base is None else base.contiguous())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
        d_base = g if not ctx.alone and ctx.needs_input_grad[1] else None
        if torch.is_grad_enabled():  # derivatives of these gradients are wanted
            out = by_tensors(x, weight, bias) + (x if ctx.alone else 0)
            d_x, d_weight, d_bias = _again(out, (x, weight, bias), wanted, g)
            return d_x, d_base, d_weight, d_bias
        g = g.contiguous()
        d_x = _run(g, _taps(weight), None, g if ctx.alone else None, flipped=True) if wanted[0] else None
        d_weight, d_bias = _of_weights(x, g, weight) if any(wanted[1:]) else (None, None)
        return d_x, d_base, d_weight, d_bias


class _Gelu(torch.autograd.Function):
    """GELU is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, offset = x.contiguous(), offset.contiguous()
        ctx.save_for_backward(x, offset, weight, bias)
        u = gelu(x, offset, torch.empty_like(x))
        return _run(u, _taps(weight), bias.contiguous(), u)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, offset, weight, bias = given = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            u = F.gelu(x + offset)
            return tuple(_again(u + by_tensors(u, weight, bias), given, wanted, g))
        g = g.contiguous()
        d_x = d_offset = d_weight = d_bias = None
        if any(wanted[2:]):
            d_weight, d_bias = _of_weights(gelu(x, offset, torch.empty_like(x)), g, weight)
        if any(wanted[:2]):
            d_x = gelu_backward(x, offset, _run(g, _taps(weight), None, g, flipped=True))
            d_offset = d_x.flatten(0, 2).sum(0) if wanted[1] else None
        return d_x, d_offset, d_weight, d_bias
