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
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from paperworks import native

_ops: Any = torch.ops.paperworks
_is_exporting = getattr(
    torch.compiler, "is_exporting", torch.compiler.is_compiling
)  # torch 2.6 does not tell them apart
_POINTER = ctypes.c_void_p
_SERIAL = 32768  # elements below which waking the other threads costs more than it saves
_SLICE = 65536  # elements that torch operations take at a time


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
    "ash_frozen": [ctypes.POINTER(_Problem), *[_POINTER] * 2],
}


class Moments(NamedTuple):
    """x minus its mean, and the statistics of each sample, broadcastable to x: sigma, and the mean in two parts."""

    centred: Tensor
    sigma: Tensor
    mean: Tensor
    rest: Tensor  # what rounding took from `mean`: it matters where |mean| >> sigma


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the statistics and the gate: x's own, float32 for half precision."""
    return x.dtype if x.dtype.itemsize >= 4 else torch.float32


def moments(x: Tensor, dims: tuple[int, ...], eps: float) -> Moments:
    """Mean and sigma = sqrt(population variance + eps) over `dims`."""
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    rest = centred.detach().mean(dims, keepdim=True)  # 0 as a function of x: it has no gradient
    centred = centred - rest
    sigma = (centred.square().mean(dims, keepdim=True) + eps).sqrt()
    return Moments(centred, sigma, mean, rest)


def gated(x: Tensor, m: Moments, alpha: float | Tensor, z_k: float | Tensor, leak: float) -> Tensor:
    """x (leak + (1 - leak) S(2 alpha (x - mean - z_k sigma)))."""
    return x * _leaky(torch.sigmoid(2 * alpha * (m.centred - z_k * m.sigma)), leak)


def formula(
    x: Tensor, alpha: float | Tensor, z_k: float | Tensor, dims: tuple[int, ...], leak: float, eps: float
) -> Tensor:
    """ASH in torch operations."""
    value = x.to(arithmetic_dtype(x))
    return gated(value, moments(value, dims, eps), alpha, z_k, leak).to(x.dtype)


def gradient_formula(
    incoming: Tensor, x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, leak: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The closed-form gradients for x, alpha and z_k, in torch operations that can be differentiated again."""
    dims = tuple(range(first_dim, x.ndim))
    alpha, z_k = _broadcastable(x, channel_dim, alpha, z_k)
    value, g = x.to(arithmetic_dtype(x)), incoming.to(arithmetic_dtype(x))
    m = moments(value, dims, eps)
    deviation, a = m.centred - z_k * m.sigma, 2 * alpha
    s = torch.sigmoid(a * deviation)
    t = (1 - leak) * g * value * s * (1 - s)
    shift, tilt = (a * t).mean(dims, keepdim=True), (a * z_k * t).mean(dims, keepdim=True)
    dx = g * _leaky(s, leak) + a * t - shift - tilt * m.centred / m.sigma
    dalpha = (2 * t * deviation).sum_to_size(alpha.shape)
    dz = (-a * t * m.sigma).sum_to_size(z_k.shape)
    return dx.to(x.dtype), dalpha.reshape(-1), dz.reshape(-1)


def _leaky(s: Tensor, leak: float) -> Tensor:
    return leak + (1 - leak) * s if leak else s


def must_be_seen_through(x: Tensor) -> bool:
    """Whether an opaque operator would stop what is being done: a transform, an export, a subclass, a tangent."""
    if torch.compiler.is_compiling():
        return bool(_is_exporting())
    return (
        type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or forward_ad.unpack_dual(x).tangent is not None
    )


def fused(x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, leak: float, eps: float) -> Tensor:
    """ASH with statistics over the dimensions from `first_dim` on.

    `alpha` and `z_k` have shape (1,) or (x.shape[channel_dim],) and the dtype `arithmetic_dtype(x)`; channel_dim is not
    below first_dim, and no reduced dimension is empty.
    """
    y: Tensor
    if torch.is_grad_enabled() and (x.requires_grad or alpha.requires_grad or z_k.requires_grad):
        y = _apply(x, alpha, z_k, channel_dim, first_dim, leak, eps)
    else:
        y, _ = _ops.ash_forward(x, alpha, z_k, channel_dim, first_dim, leak, eps)
    return y


def frozen(x: Tensor, alpha: Tensor, threshold: Tensor, channel_dim: int, leak: float) -> Tensor:
    """x (leak + (1 - leak) S(a x + b)), a = 2 alpha, b = -2 alpha threshold: statistics that no longer follow x."""
    channel_dim %= x.ndim
    differentiated = torch.is_grad_enabled() and x.requires_grad
    if differentiated or torch.compiler.is_compiling() or must_be_seen_through(x):
        return _frozen_torch(x, alpha, threshold, channel_dim, leak)
    y: Tensor = _ops.ash_frozen(x, alpha, threshold, channel_dim, leak)
    return y


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, z_k: Tensor, *constants: Any) -> Tensor:
        y: Tensor
        y, statistics = _ops.ash_forward(x, alpha, z_k, *constants)
        ctx.save_for_backward(x, alpha, z_k, statistics)
        ctx.constants = constants
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, z_k, statistics = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            gradients = gradient_formula(gradient, x, alpha, z_k, *ctx.constants)
        else:
            gradients = _ops.ash_backward(gradient, x, alpha, z_k, statistics, *ctx.constants)
        return *gradients, None, None, None, None


_apply: Any = _Fused.apply

_CONSTANTS = "int channel_dim, int first_dim, float leak, float eps"
_registry: Any = torch.library
_library = _registry.Library("paperworks", "FRAGMENT")
_library.define(f"ash_forward(Tensor x, Tensor alpha, Tensor z_k, {_CONSTANTS}) -> (Tensor, Tensor)")
_library.define("ash_frozen(Tensor x, Tensor alpha, Tensor threshold, int channel_dim, float leak) -> Tensor")
_library.define(
    f"ash_backward(Tensor gradient, Tensor x, Tensor alpha, Tensor z_k, Tensor statistics, {_CONSTANTS})"
    " -> (Tensor, Tensor, Tensor)"
)


def _forward_fake(x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, *rest: float) -> Any:
    return torch.empty_like(x), x.new_empty((math.prod(x.shape[:first_dim]), 3), dtype=arithmetic_dtype(x))


def _backward_fake(gradient: Tensor, x: Tensor, alpha: Tensor, z_k: Tensor, *rest: Any) -> Any:
    return torch.empty_like(x), torch.empty_like(alpha), torch.empty_like(z_k)


def _broadcastable(x: Tensor, channel_dim: int, *parameters: Tensor) -> list[Tensor]:
    return [p.view([p.numel() if d == channel_dim else 1 for d in range(x.ndim)]) for p in parameters]


def _slices(x: Tensor) -> list[slice]:
    """Slices of the batch whose temporary tensors stay in cache: several times faster on a CPU than all at once."""
    samples = x.shape[0]
    step = max(1, _SLICE * samples // max(1, x.numel())) if x.device.type == "cpu" else max(1, samples)
    return [slice(start, start + step) for start in range(0, samples, step)]


def _forward_torch(
    x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, leak: float, eps: float
) -> tuple[Tensor, Tensor]:
    y, statistics = _forward_fake(x, alpha, z_k, channel_dim, first_dim)
    by_sample = statistics.view(x.shape[0], -1) if x.shape[0] else statistics
    alpha, z_k = _broadcastable(x, channel_dim, alpha, z_k)
    for part in _slices(x):
        value = x[part].to(arithmetic_dtype(x))
        m = moments(value, tuple(range(first_dim, x.ndim)), eps)
        y[part] = gated(value, m, alpha, z_k, leak)
        by_sample[part] = torch.stack([m.mean, m.rest, m.sigma], dim=-1).flatten(1)
    return y, statistics


def _backward_torch(
    incoming: Tensor, x: Tensor, alpha: Tensor, z_k: Tensor, statistics: Tensor, *constants: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dalpha, dz = torch.empty_like(x), torch.zeros_like(alpha), torch.zeros_like(z_k)
    for part in _slices(x):
        dx[part], more_alpha, more_z = gradient_formula(incoming[part], x[part], alpha, z_k, *constants)
        dalpha += more_alpha
        dz += more_z
    return dx, dalpha, dz


def _forward_cpu(
    x: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, *constants: float
) -> tuple[Tensor, Tensor]:
    library = _native_library(x)
    if library is None:
        return _forward_torch(x, alpha, z_k, channel_dim, first_dim, *constants)
    dense = dense_samples(x, first_dim)
    y = torch.empty_like(dense)
    problem = _problem(dense, alpha, z_k, channel_dim, first_dim, *constants)
    statistics = x.new_empty((problem.rows, 3), dtype=torch.float32)
    library.ash_forward(problem, *(array.data_ptr() for array in (dense, y, statistics)))
    return (y if dense is x else torch.empty_like(x).copy_(y)), statistics


def _backward_cpu(
    incoming: Tensor,
    x: Tensor,
    alpha: Tensor,
    z_k: Tensor,
    statistics: Tensor,
    channel_dim: int,
    first_dim: int,
    *constants: float,
) -> tuple[Tensor, Tensor, Tensor]:
    library = _native_library(x)
    if library is None:
        return _backward_torch(incoming, x, alpha, z_k, statistics, channel_dim, first_dim, *constants)
    dense = dense_samples(x, first_dim)
    g = incoming if incoming.stride() == dense.stride() else torch.empty_like(dense).copy_(incoming)
    dx, dalpha, dz = torch.empty_like(dense), torch.empty_like(alpha), torch.empty_like(z_k)
    problem = _problem(dense, alpha, z_k, channel_dim, first_dim, *constants)
    library.ash_backward(problem, *(array.data_ptr() for array in (dense, g, statistics, dx, dalpha, dz)))
    return (dx if dense is x else torch.empty_like(x).copy_(dx)), dalpha, dz


def _frozen_torch(x: Tensor, alpha: Tensor, threshold: Tensor, channel_dim: int, leak: float) -> Tensor:
    value = x.to(arithmetic_dtype(x))
    alpha, threshold = _broadcastable(x, channel_dim, alpha, threshold)
    slope = 2 * alpha
    return (value * _leaky(torch.sigmoid(slope * value - slope * threshold), leak)).to(x.dtype)


def _frozen_cpu(x: Tensor, alpha: Tensor, threshold: Tensor, channel_dim: int, leak: float) -> Tensor:
    library = _native_library(x)
    if library is None:
        return _frozen_torch(x, alpha, threshold, channel_dim, leak)
    dense = dense_samples(x, 0)
    y = torch.empty_like(dense)
    alpha, threshold = alpha.float().contiguous(), threshold.float().contiguous()
    problem = _problem(dense, alpha, threshold, channel_dim, 0, leak, 0.0)
    library.ash_frozen(problem, dense.data_ptr(), y.data_ptr())
    return y if dense is x else torch.empty_like(x).copy_(y)


def _native_library(x: Tensor) -> ctypes.CDLL | None:
    return native.load(_SOURCE, _FUNCTIONS) if x.dtype in (torch.float32, torch.bfloat16) else None


def _problem(
    dense: Tensor, alpha: Tensor, z_k: Tensor, channel_dim: int, first_dim: int, leak: float, eps: float
) -> _Problem:
    rows = math.prod(dense.shape[:first_dim])
    return _Problem(
        rows=rows,
        n=math.prod(dense.shape[first_dim:]),
        channels=alpha.numel(),
        inner=dense.stride(channel_dim) if alpha.numel() > 1 else 1,
        bfloat16=dense.dtype == torch.bfloat16,
        threads=torch.get_num_threads() if dense.numel() > _SERIAL else 1,
        alpha=alpha.data_ptr(),
        z=z_k.data_ptr(),
        leak=leak,
        eps=eps,
    )


def dense_samples(x: Tensor, first_dim: int) -> Tensor:
    """x, or a contiguous copy where the elements of one sample are not one block of memory after the other."""
    within = sorted((d for d in range(first_dim, x.ndim) if x.shape[d] > 1), key=x.stride)
    across = [d for d in reversed(range(first_dim)) if x.shape[d] > 1]
    expected = 1
    for d in (*within, *across):
        if x.stride(d) != expected:
            return x.contiguous()
        expected *= x.shape[d]
    return x


@cache
def _triton_kernels() -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("paperworks.activations.ash.ash_triton")


def _forward_cuda(x: Tensor, alpha: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    kernels = None if x.dtype == torch.float64 else _triton_kernels()
    result: tuple[Tensor, Tensor] = (kernels.forward if kernels else _forward_torch)(x, alpha, *rest)
    return result


def _backward_cuda(incoming: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    kernels = None if x.dtype == torch.float64 else _triton_kernels()
    result: tuple[Tensor, Tensor, Tensor] = (kernels.backward if kernels else _backward_torch)(incoming, x, *rest)
    return result


for _name, _key, _kernel in (
    ("ash_forward", "CompositeExplicitAutograd", _forward_torch),
    ("ash_backward", "CompositeExplicitAutograd", _backward_torch),
    ("ash_frozen", "CompositeExplicitAutograd", _frozen_torch),
    ("ash_forward", "CPU", _forward_cpu),
    ("ash_backward", "CPU", _backward_cpu),
    ("ash_frozen", "CPU", _frozen_cpu),
    ("ash_forward", "CUDA", _forward_cuda),
    ("ash_backward", "CUDA", _backward_cuda),
):
    _library.impl(_name, _kernel, _key)
for _name in ("ash_forward", "ash_backward", "ash_frozen"):
    _library.impl(_name, _registry.fallthrough_kernel, "Autograd")  # _Fused has done that already
_registry.register_fake("paperworks::ash_forward", _forward_fake, lib=_library)
_registry.register_fake("paperworks::ash_backward", _backward_fake, lib=_library)
_registry.register_fake("paperworks::ash_frozen", lambda x, *rest: torch.empty_like(x), lib=_library)
