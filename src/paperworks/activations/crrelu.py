"""CRReLU, a ReLU with one learnable correction, and EAFO, the entropy method it comes from.

    CRReLU(x) = max(0, x) + eps x exp(-x^2 / 2),     f'(x) = 1[x > 0] + eps (1 - x^2) exp(-x^2 / 2)

"A Method on Searching Better Activation Functions" (arXiv 2405.12954; ICLR 2025 as "Entropy-based Activation Function
Optimization"): ReLU's invertible branch under z ~ N(0, 1) has the EAFO correction eta(x) = x phi(x); with its constants
taken into a learnable eps, started at 0.01, and extended to both signs it is CRReLU. eps < 0 is the side that lowers
the output entropy: on the positive branch dH/deps at 0 is +1/(4 sqrt 2).

The method's other names live by their subject (`eafo_densities`, `eafo_entropy`, `eafo_search`, `eafo`, `eafo_fit`) and
are importable from here.
"""

import ctypes
import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paperworks import native
from paperworks.activations.eafo import EAFOActivation, channel_view, initial_eps
from paperworks.activations.eafo_densities import (
    EmpiricalDensity,
    LogisticDensity,
    NormalDensity,
    WorstActivation,
    in_float,
)
from paperworks.activations.eafo_entropy import activation_entropy, eafo_correction, eafo_direction
from paperworks.activations.eafo_fit import entropy_leaderboard, fit_activation, measure_density
from paperworks.activations.eafo_search import SearchResult, eafo_search
from paperworks.activations.eafo_table import TableActivation

__all__ = [
    "CRReLU",
    "EAFOActivation",
    "EmpiricalDensity",
    "LogisticDensity",
    "NormalDensity",
    "SearchResult",
    "TableActivation",
    "WorstActivation",
    "activation_entropy",
    "crrelu",
    "eafo_correction",
    "eafo_direction",
    "eafo_search",
    "entropy_leaderboard",
    "fit_activation",
    "measure_density",
    "no_weight_decay",
]


def crrelu(x: Tensor, eps: float | Tensor) -> Tensor:
    """max(0, x) + eps x exp(-x^2 / 2), elementwise.

    On CPU (float32, bfloat16) and CUDA one fused pass forward and one backward, with only `x` kept; d eps is the same
    for every number of threads. `torch.compile`, `torch.func`, forward mode and second derivatives use plain tensor
    operations. Half types are computed in float32.

    Args:
        x: any shape, floating point.
        eps: a number, or a tensor that broadcasts to the shape of `x` (a one-element tensor always does).

    Returns:
        A tensor in the shape and dtype of `x`; gradients for `x` and `eps`, with f'(0) = eps.

    Raises:
        TypeError: `x` or `eps` is an integer tensor.
        ValueError: `eps` is a number that is not finite, or a tensor that does not broadcast to `x`.
    """
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, wanted a floating point tensor")
    if not isinstance(eps, Tensor):
        if not -math.inf < eps < math.inf:  # math.isfinite cannot be compiled for a number that varies
            raise ValueError(f"eps: got {eps}, wanted a finite number")
    elif not eps.is_floating_point():
        raise TypeError(f"eps: got {eps.dtype}, wanted a floating point tensor")
    elif eps.numel() != 1 and not _broadcasts(eps.shape, x.shape):
        raise ValueError(f"eps: got shape {tuple(eps.shape)}, wanted one that broadcasts to x, {tuple(x.shape)}")
    if native.must_be_traceable(*(t for t in (x, eps) if isinstance(t, Tensor))):
        return _composite(x, eps)
    kernels = _kernels(x.device.type, x.dtype)
    if kernels is None or x.numel() == 0:
        return _composite(x, eps)
    steps = eps if isinstance(eps, Tensor) else torch.tensor(float(eps), dtype=torch.float32, device="cpu")
    dense, layout = _layout(x, steps)
    if layout is None:
        return _composite(x, eps)
    if torch.is_grad_enabled() and (x.requires_grad or steps.requires_grad):
        return _Fused.apply(dense, steps, kernels, layout)
    return _forward(dense, steps, kernels, layout)


class CRReLU(nn.Module):
    """Correction Regularized ReLU: max(0, x) + eps x exp(-x^2 / 2) with a learnable eps.

    Increasing for x > 0 while -1 <= eps <= exp(3/2) / 2; within |eps| exp(-1/2) of ReLU everywhere.

    Args:
        eps: initial value, finite.
        num_parameters: 1, or as many as channels.
        channel_dim: dimension of the channels; used with num_parameters > 1.
        learnable: False keeps `eps` as it is.

    Raises:
        ValueError: non-finite `eps`, num_parameters < 1; when called, num_parameters that do not match the channels.
        TypeError: when called on an integer tensor.
    """

    def __init__(
        self,
        eps: float = 0.01,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        learnable: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        self.eps = initial_eps(eps, num_parameters, learnable, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return crrelu(x, channel_view(self.eps, x, self.channel_dim))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone (it would pull `eps` to 0), as timm asks."""
        return {"eps"}

    def extra_repr(self) -> str:
        return f"num_parameters={self.eps.numel()}, channel_dim={self.channel_dim}"


def no_weight_decay(model: nn.Module) -> set[str]:
    """Qualified names of the parameters that weight decay should leave alone, asked of every module of a model.

    timm asks the model only; this asks its parts too (each by its own `no_weight_decay()`), so the set can go to an
    optimizer factory or be returned by the model's own method.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in (module.no_weight_decay() if callable(getattr(module, "no_weight_decay", None)) else ())
    }


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    aligned = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(a in (1, b) for a, b in aligned)


def _composite(x: Tensor, eps: float | Tensor) -> Tensor:
    """The function in differentiable tensor operations, any order, any transform."""
    step = eps.reshape(()) if isinstance(eps, Tensor) and eps.numel() == 1 else eps

    def value(t: Tensor) -> Tensor:
        near, bell = _near_and_bell(t)
        return torch.relu(t) + (step.to(t) if isinstance(step, Tensor) else step) * (near * bell)

    return in_float(value, x, "x")


def _composite_gradients(x: Tensor, eps: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    near, bell = _near_and_bell(x.to(dtype))
    step = eps.reshape(()) if eps.numel() == 1 else eps
    dx = g * ((x > 0) + step.to(dtype) * ((1 - near * near) * bell))
    return dx.to(x.dtype), (g * (near * bell)).sum_to_size(step.shape).reshape(eps.shape).to(eps.dtype)


def _near_and_bell(x: Tensor) -> tuple[Tensor, Tensor]:
    near = x.clamp(-40.0, 40.0)  # the bell is 0 beyond in float64; an infinite x would give inf * 0
    return near, torch.exp(-0.5 * near * near)


class _Layout(NamedTuple):
    """How memory is laid out: permuting x by `order` gives contiguous (outer, channels, inner)."""

    order: tuple[int, ...]
    outer: int
    channels: int
    inner: int


class _Kernels(NamedTuple):
    forward: Callable[[Tensor, Tensor, int, int, int], Tensor]  # x, eps (channels,) float32, outer, channels, inner
    backward: Callable[[Tensor, Tensor, Tensor, int, int, int], tuple[Tensor, Tensor]]  # x, g, eps, ... -> dx, d eps


def _layout(x: Tensor, eps: Tensor) -> tuple[Tensor, _Layout | None]:
    """x (copied if it has gaps) and its layout; None where eps varies along several dimensions."""
    order = tuple(range(x.dim()))
    if not x.is_contiguous():
        by_stride = tuple(sorted(order, key=x.stride, reverse=True))
        if x.permute(by_stride).is_contiguous():
            order = by_stride
        else:
            x = x.contiguous()
    if eps.numel() == 1:
        return x, _Layout(order, 1, 1, x.numel())
    varying = [i + x.dim() - eps.dim() for i, size in enumerate(eps.shape) if size != 1]
    if len(varying) != 1:
        return x, None
    at = order.index(varying[0])
    sizes = [x.shape[i] for i in order]
    return x, _Layout(order, math.prod(sizes[:at]), sizes[at], math.prod(sizes[at + 1 :]))


def _forward(x: Tensor, eps: Tensor, kernels: _Kernels, layout: _Layout) -> Tensor:
    order, *shape = layout
    steps = eps.detach().reshape(-1).to(x.device, torch.float32).contiguous()
    return _unpermuted(kernels.forward(x.detach().permute(order), steps, *shape), order)


def _unpermuted(t: Tensor, order: tuple[int, ...]) -> Tensor:
    return t.permute(sorted(range(len(order)), key=order.__getitem__))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: Tensor, kernels: _Kernels, layout: _Layout) -> Tensor:
        ctx.save_for_backward(x, eps)
        ctx.kernels, ctx.layout = kernels, layout
        return _forward(x, eps, kernels, layout)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, eps = ctx.saved_tensors
        if torch.is_grad_enabled() or native.must_be_traceable(g, eps):
            return *_composite_gradients(x, eps, g), None, None
        order, *shape = ctx.layout
        steps = eps.reshape(-1).to(x.device, torch.float32).contiguous()
        dx, d_eps = ctx.kernels.backward(x.permute(order), g.permute(order), steps, *shape)
        return _unpermuted(dx, order), d_eps.to(eps).reshape(eps.shape), None, None


_PIECE, _ROWS = 4096, 64  # as in crrelu.c: they decide the room that partial sums take
_SHARE = 1 << 15  # elements that are worth a thread
_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}


@cache
def _kernels(device: str, dtype: torch.dtype) -> _Kernels | None:
    """The fused kernels for a kind of device, or None where there are none."""
    if device == "cuda" and dtype in (torch.float32, torch.float16, torch.bfloat16):
        if importlib.util.find_spec("triton") is None:
            return None
        from paperworks.activations import crrelu_triton

        return _Kernels(crrelu_triton.forward, crrelu_triton.backward)
    if device != "cpu" or dtype not in _SUFFIXES:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    forward_types = [pointer] * 3 + [size] * 3 + [ctypes.c_int]
    backward_types = [pointer] * 6 + [size] * 3 + [ctypes.c_int] * 2
    functions = {f"crrelu_forward_{suffix}": forward_types for suffix in _SUFFIXES.values()}
    functions |= {f"crrelu_backward_{suffix}": backward_types for suffix in _SUFFIXES.values()}
    library = native.load(Path(__file__).with_name("crrelu.c"), functions)
    if library is None:
        return None
    suffix = _SUFFIXES[dtype]
    run_forward = getattr(library, f"crrelu_forward_{suffix}")
    run_backward = getattr(library, f"crrelu_backward_{suffix}")

    def forward(x: Tensor, eps: Tensor, outer: int, channels: int, inner: int) -> Tensor:
        y = torch.empty_like(x)
        run_forward(x.data_ptr(), eps.data_ptr(), y.data_ptr(), outer, channels, inner, _threads(x))
        return y

    def backward(x: Tensor, g: Tensor, eps: Tensor, outer: int, channels: int, inner: int) -> tuple[Tensor, Tensor]:
        uniform = not any(g.stride())  # the gradient of a sum or mean: one value seen everywhere
        g = g[(0,) * g.dim()].expand(max(_PIECE, channels)).contiguous() if uniform else g.contiguous()
        blocks = -(-outer // _ROWS) if inner == 1 else outer * -(-inner // _PIECE)
        dx, room = torch.empty_like(x), torch.empty((blocks + 1) * channels, dtype=torch.float32, device="cpu")
        d_eps, partial = room[:channels], room[channels:]
        pointers = [t.data_ptr() for t in (x, g, eps, dx, partial, d_eps)]
        run_backward(*pointers, outer, channels, inner, uniform, _threads(x))
        return dx, d_eps

    return _Kernels(forward, backward)


def _threads(x: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), x.numel() // _SHARE))
