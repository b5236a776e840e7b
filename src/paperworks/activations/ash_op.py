"""ASH as torch operators: the formula, its closed-form gradient, and the choice of a kernel for them.

`paperworks::ash_forward` and `paperworks::ash_backward` keep x and two numbers a sample, and run a C loop on the CPU,
Triton kernels on CUDA, and torch operations where there is neither. Where torch has to see through the formula
(torch.func, forward-mode derivatives, export, tensor subclasses), `formula` runs instead.
"""

import ctypes
import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperworks import native

_POINTER = ctypes.c_void_p
_SERIAL = 32768  # elements below which waking the other threads costs more than it saves


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "n", "channels", "inner", "bfloat16", "threads")),
        ("alpha", _POINTER),
        ("z", _POINTER),
        ("leak", ctypes.c_float),
        ("eps", ctypes.c_double),
    )


_SOURCE = Path(__file__).with_name("ash.c")
_FUNCTIONS = {
    "ash_forward": [ctypes.POINTER(_Problem), *[_POINTER] * 3],
    "ash_backward": [ctypes.POINTER(_Problem), *[_POINTER] * 6],
}


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the statistics and the gate: x's own, float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def moments(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """x minus its mean over `dims`, and sigma = sqrt(population variance + eps) broadcastable to x."""
    centred = x - x.mean(dims, keepdim=True)
    return centred, (centred.square().mean(dims, keepdim=True) + eps).sqrt()


def formula(x: Tensor, alpha: Any, z_k: Any, dims: tuple[int, ...], leak: float, eps: float) -> Tensor:
    """x (leak + (1 - leak) S(2 alpha (x - mean - z_k sigma))), in torch operations."""
    value = x.to(arithmetic_dtype(x))
    centred, sigma = moments(value, dims, eps)
    gate = torch.sigmoid(2 * alpha * (centred - z_k * sigma))
    return (value * (leak + (1 - leak) * gate)).to(x.dtype)


def gradient_formula(
    gradient: Tensor, x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, leak: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The closed-form gradients for x, alpha and z_k, in torch operations that can be differentiated again."""
    dims = tuple(range(first_dim, x.ndim))
    shape = [alpha.numel() if d == channel_dim else 1 for d in range(x.ndim)]
    value, incoming = x.to(arithmetic_dtype(x)), gradient.to(arithmetic_dtype(x))
    slope, z = 2 * alpha.view(shape), z_k.view(shape)
    centred, sigma = moments(value, dims, eps)
    gate = torch.sigmoid(slope * (centred - z * sigma))
    t = (1 - leak) * incoming * value * gate * (1 - gate)
    shift, tilt = (slope * t).mean(dims, keepdim=True), (slope * z * t).mean(dims, keepdim=True)
    dx = incoming * (leak + (1 - leak) * gate) + slope * t - shift - tilt * centred / sigma
    dalpha = (2 * t * (centred - z * sigma)).sum_to_size(shape)
    dz = (-slope * t * sigma).sum_to_size(shape)
    return dx.to(x.dtype), dalpha.reshape(-1), dz.reshape(-1)


def fused(x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, leak: float, eps: float) -> Tensor:
    """ASH with statistics over the dimensions from `first_dim` on.

    `alpha` and `z_k` have shape (1,) or (x.shape[channel_dim],) and the dtype `arithmetic_dtype(x)`; channel_dim is not
    below first_dim, and no reduced dimension is empty.
    """
    if torch.is_grad_enabled() and (x.requires_grad or alpha.requires_grad or z_k.requires_grad):
        return _Fused.apply(x, alpha, z_k, channel_dim, first_dim, leak, eps)
    return torch.ops.paperworks.ash_forward(x, alpha, z_k, channel_dim, first_dim, leak, eps)[0]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, z_k: Tensor, *constants: Any) -> Tensor:
        y, statistics = torch.ops.paperworks.ash_forward(x, alpha, z_k, *constants)
        ctx.save_for_backward(x, alpha, z_k, statistics)
        ctx.constants = constants
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, z_k, statistics = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            gradients = gradient_formula(gradient, x, alpha, z_k, *ctx.constants)
        else:
            gradients = torch.ops.paperworks.ash_backward(gradient, x, alpha, z_k, statistics, *ctx.constants)
        return *gradients, None, None, None, None


_CONSTANTS = "int channel_dim, int first_dim, float leak, float eps"
_library = torch.library.Library("paperworks", "FRAGMENT")
_library.define(f"ash_forward(Tensor x, Tensor alpha, Tensor z_k, {_CONSTANTS}) -> (Tensor, Tensor)")
_library.define(
    f"ash_backward(Tensor gradient, Tensor x, Tensor alpha, Tensor z_k, Tensor statistics, {_CONSTANTS})"
    " -> (Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("paperworks::ash_forward", lib=_library)
def _forward_fake(x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, *rest: float) -> Any:
    return torch.empty_like(x), x.new_empty((math.prod(x.shape[:first_dim]), 2), dtype=torch.float64)


@torch.library.register_fake("paperworks::ash_backward", lib=_library)
def _backward_fake(gradient: Tensor, x: Tensor, alpha: Tensor, z_k: Tensor, *rest: Any) -> Any:
    return torch.empty_like(x), torch.empty_like(alpha), torch.empty_like(z_k)


def _forward_torch(x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, *rest: float) -> Any:
    shape = [alpha.numel() if d == channel_dim else 1 for d in range(x.ndim)]
    y = torch.empty_like(x).copy_(formula(x, alpha.view(shape), z_k.view(shape), tuple(range(first_dim, x.ndim)), *rest))
    return y, x.new_empty((math.prod(x.shape[:first_dim]), 2), dtype=torch.float64)


def _backward_torch(gradient: Tensor, x: Tensor, alpha: Tensor, z_k: Tensor, statistics: Tensor, *rest: Any) -> Any:
    dx, dalpha, dz = gradient_formula(gradient, x, alpha, z_k, *rest)
    return torch.empty_like(x).copy_(dx), dalpha, dz


def _forward_cpu(
    x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, leak: float, eps: float
) -> Any:
    library = _native(x)
    if library is None:
        return _forward_torch(x, alpha, z_k, channel_dim, first_dim, leak, eps)
    dense = _dense(x, first_dim)
    y = torch.empty_like(dense)
    problem = _problem(dense, alpha, z_k, channel_dim, first_dim, leak, eps)
    statistics = torch.empty((problem.rows, 2), dtype=torch.float64)
    library.ash_forward(problem, dense.data_ptr(), y.data_ptr(), statistics.data_ptr())
    return y if dense is x else torch.empty_like(x).copy_(y), statistics


def _backward_cpu(
    gradient: Tensor,
    x: Tensor,
    alpha: Tensor,
    z_k: Tensor,
    statistics: Tensor,
    channel_dim: int,
    first_dim: int,
    leak: float,
    eps: float,
) -> Any:
    library = _native(x)
    if library is None or not bool(torch.isfinite(statistics[:, 1]).all()):
        return _backward_torch(gradient, x, alpha, z_k, statistics, channel_dim, first_dim, leak, eps)
    dense = _dense(x, first_dim)
    incoming = gradient if gradient.stride() == dense.stride() else torch.empty_like(dense).copy_(gradient)
    dx, dalpha, dz = torch.empty_like(dense), torch.empty_like(alpha), torch.empty_like(z_k)
    problem = _problem(dense, alpha, z_k, channel_dim, first_dim, leak, eps)
    arrays = (incoming, statistics, dx, dalpha, dz)
    library.ash_backward(problem, dense.data_ptr(), *(array.data_ptr() for array in arrays))
    return dx if dense is x else torch.empty_like(x).copy_(dx), dalpha, dz
