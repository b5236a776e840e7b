"""Activation and gate in one pass: which kernel serves which tensor, and the formula in tensor operations."""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperworks import native

KINDS = {"given": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}
"""Activations computed inside the kernels, by their number there."""

_PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}
_CLASSES = {
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "transformers.activations.SiLUActivation": "silu",
    "transformers.activations.NewGELUActivation": "gelu_tanh",
    "transformers.activations.FastGELUActivation": "gelu_tanh",
    "transformers.activations.PytorchGELUTanh": "gelu_tanh",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.GELUActivation": "gelu",
}
_ROWS = 64  # as in gate.c: it decides the room that partial sums take
_SHARE = 1 << 15  # elements that are worth a thread
_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def kind_of(activation: nn.Module | None) -> str | None:
    """The name in `KINDS` of the function that a module computes; None for others and for a module with hooks."""
    if activation is not None and (activation._forward_hooks or activation._forward_pre_hooks):
        return None
    if type(activation) is nn.GELU:
        return "gelu_tanh" if activation.approximate == "tanh" else "gelu"
    cls = type(activation)
    return _CLASSES.get(f"{cls.__module__}.{cls.__qualname__}")


def formula(z: Tensor, phi_z: Tensor, tau: Tensor, gain: Tensor, sharpness: float, hard: bool, dim: int) -> Tensor:
    """The gate in differentiable tensor operations, for any transform; at least float32."""
    dtype = torch.promote_types(phi_z.dtype, torch.float32)
    threshold, factor = (_view(t, z, dim).to(dtype) for t in (tau, gain))
    above = z.to(dtype) - threshold
    gate = (above > 0).to(dtype) if hard else torch.sigmoid(sharpness * above)
    return (factor * phi_z.to(dtype) * gate).to(phi_z.dtype)


def _view(t: Tensor, z: Tensor, dim: int) -> Tensor:
    """(H,) or (N, H) in the shape that broadcasts to `z`."""
    shape = [1] * z.ndim
    shape[dim] = t.shape[-1]
    if t.ndim == 2 and t.shape[0] > 1:
        shape[0] = t.shape[0]
    return t.reshape(shape)


def call(
    z: Tensor, phi_z: Tensor | None, tau: Tensor, gain: Tensor, sharpness: float, hard: bool, dim: int, kind: str
) -> Tensor | None:
    """The fused result; None where no kernel serves: other devices and dtypes, compiling, transforms, empty input."""
    tensors = [t for t in (z, phi_z, tau, gain) if t is not None]
    if z.numel() == 0 or native.must_be_traceable(*tensors):
        return None
    if any(t.device != z.device for t in tensors) or (phi_z is not None and phi_z.dtype != z.dtype):
        return None
    kernels = _kernels(z.device.type, z.dtype)
    if kernels is None:
        return None
    move = dim % z.ndim if dim % z.ndim != z.ndim - 1 and z.movedim(dim, -1).is_contiguous() else None
    seen = z if move is None else z.movedim(move, -1)
    at = z.ndim - 1 if move is not None else dim % z.ndim
    rows = max(t.shape[0] if t.ndim == 2 else 1 for t in (tau, gain))
    sizes = math.prod(seen.shape[:at]), seen.shape[at], math.prod(seen.shape[at + 1 :])
    layout = _Layout(move, rows, *sizes, sharpness, hard, kind, dim)
    tau, gain = (t.reshape(-1, t.shape[-1]).expand(rows, -1) for t in (tau, gain))
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Fused.apply(z, phi_z, tau, gain, kernels, layout)
    return _forward(z, phi_z, tau, gain, kernels, layout)


class _Layout(NamedTuple):
    """Memory as (outer, channels, inner) with `rows` runs of the outer index, each with its own tau and gain.

    `move` is the dimension of the units where memory has them innermost (channels-last), else None.
    """

    move: int | None
    rows: int
    outer: int
    channels: int
    inner: int
    sharpness: float
    hard: bool
    kind: str
    dim: int

    def dense(self, t: Tensor) -> Tensor:
        return (t if self.move is None else t.movedim(self.move, -1)).detach().contiguous()

    def back(self, t: Tensor) -> Tensor:
        return t if self.move is None else t.movedim(-1, self.move)


class _Kernels(NamedTuple):
    forward: Callable[[Tensor, Tensor | None, Tensor, Tensor, _Layout], Tensor]
    backward: Callable[
        [Tensor, Tensor | None, Tensor, Tensor, Tensor, _Layout], tuple[Tensor, Tensor | None, Tensor, Tensor]
    ]


def _forward(z: Tensor, phi_z: Tensor | None, tau: Tensor, gain: Tensor, kernels: _Kernels, layout: _Layout) -> Tensor:
    phi = None if phi_z is None else layout.dense(phi_z)
    return layout.back(kernels.forward(layout.dense(z), phi, _float(tau), _float(gain), layout))


def _float(t: Tensor) -> Tensor:
    return t.detach().to(torch.float32).contiguous()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, phi_z: Tensor | None, tau: Tensor, gain: Tensor, kernels: _Kernels, layout: _Layout
    ) -> Tensor:
        ctx.save_for_backward(z, phi_z, tau, gain)
        ctx.kernels, ctx.layout = kernels, layout
        return _forward(z, phi_z, tau, gain, kernels, layout)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, phi_z, tau, gain = ctx.saved_tensors
        layout: _Layout = ctx.layout
        if torch.is_grad_enabled() or native.must_be_traceable(g):
            return *_formula_gradients(z, phi_z, tau, gain, g, layout), None, None
        phi = None if phi_z is None else layout.dense(phi_z)
        dz, dphi, dtau, dgain = ctx.kernels.backward(
            layout.dense(z), phi, layout.dense(g), _float(tau), _float(gain), layout
        )
        dphi = None if dphi is None else layout.back(dphi)
        return layout.back(dz), dphi, dtau.to(tau.dtype), dgain.to(gain.dtype), None, None


def _formula_gradients(
    z: Tensor, phi_z: Tensor | None, tau: Tensor, gain: Tensor, g: Tensor, layout: _Layout
) -> list[Tensor | None]:
    """First derivatives in tensor operations that can be differentiated again."""
    with torch.enable_grad():
        # views of their own: phi_z may itself come from z, and that path is not this function's
        inputs = [
            None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            for t in (z, phi_z, tau, gain)
        ]
        z, phi_z, tau, gain = inputs  # type: ignore[assignment]
        phi = _PHI[layout.kind](z) if phi_z is None else phi_z
        y = formula(z, phi, tau, gain, layout.sharpness, layout.hard, layout.dim)
        wanted = [t for t in inputs if t is not None]
        found = iter(torch.autograd.grad(y, wanted, g, create_graph=True, allow_unused=True))
        return [None if t is None else next(found) for t in inputs]


@cache
def _kernels(device: str, dtype: torch.dtype) -> _Kernels | None:
    """The fused kernels for a kind of device, or None where there are none."""
    if device == "cuda" and dtype in (torch.float32, torch.float16, torch.bfloat16):
        if importlib.util.find_spec("triton") is None:
            return None
        from paperworks.efficiency.dopamine import fused_triton

        return _Kernels(fused_triton.forward, fused_triton.backward)
    if device != "cpu" or dtype not in _SUFFIXES:
        return None
    pointer, size, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    forward_types = [flag, flag] + [pointer] * 5 + [size] * 4 + [number, flag]
    backward_types = [flag, flag] + [pointer] * 10 + [size] * 4 + [number, flag]
    functions = {f"gate_forward_{suffix}": forward_types for suffix in _SUFFIXES.values()}
    functions |= {f"gate_backward_{suffix}": backward_types for suffix in _SUFFIXES.values()}
    library = native.load(Path(__file__).with_name("gate.c"), functions)
    if library is None:
        return None
    suffix = _SUFFIXES[dtype]
    run_forward = getattr(library, f"gate_forward_{suffix}")
    run_backward = getattr(library, f"gate_backward_{suffix}")

    def forward(z: Tensor, phi: Tensor | None, tau: Tensor, gain: Tensor, layout: _Layout) -> Tensor:
        y = torch.empty_like(z)
        given = z if phi is None else phi
        pointers = [t.data_ptr() for t in (z, given, tau, gain, y)]
        run_forward(KINDS[layout.kind], layout.hard, *pointers, *layout[1:5], layout.sharpness, _threads(z))
        return y

    def backward(
        z: Tensor, phi: Tensor | None, g: Tensor, tau: Tensor, gain: Tensor, layout: _Layout
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        run = layout.outer // layout.rows
        blocks = layout.rows * (-(-run // _ROWS) if layout.inner == 1 else run)
        partial = torch.empty(2 * blocks * layout.channels, dtype=torch.float32)
        dz, dtau, dgain = torch.empty_like(z), torch.empty_like(tau), torch.empty_like(gain)
        dphi = None if phi is None else torch.empty_like(z)
        given = (z, dz) if phi is None or dphi is None else (phi, dphi)
        pointers = [t.data_ptr() for t in (z, given[0], g, tau, gain, dz, given[1], partial, dtau, dgain)]
        run_backward(KINDS[layout.kind], layout.hard, *pointers, *layout[1:5], layout.sharpness, _threads(z))
        return dz, dphi, dtau, dgain

    return _Kernels(forward, backward)


def _threads(z: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), z.numel() // _SHARE))
