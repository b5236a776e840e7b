"""First and second derivatives of activations: closed forms for the usual ones, `torch.func` for any other callable.

The closed forms stay accurate where the function saturates (the derivative of tanh at 30 is 4 exp(-60), not 0), which
is what entropies of wide densities need, and they cost no graph of the function.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


class Base(NamedTuple):
    """An activation f with f' and f''; `curvature` is None where f'' is 0 wherever it exists."""

    value: Function
    slope: Function
    curvature: Function | None


def _bell(z: Tensor) -> Tensor:
    t = z.clamp(-40.0, 40.0)  # 0 beyond in float64; keeps an infinite z from giving inf * 0
    return torch.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)


def _step(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


def _gelu_slope(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2)) + z.clamp(-40.0, 40.0) * _bell(z)


def _gelu_curvature(z: Tensor) -> Tensor:
    t = z.clamp(-40.0, 40.0)
    return (2 - t * t) * _bell(z)


def _logistic(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _silu_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) + z * _logistic(z)


def _silu_curvature(z: Tensor) -> Tensor:
    return _logistic(z) * (2 - z * torch.tanh(0.5 * z))


def _tanh_slope(z: Tensor) -> Tensor:
    return 4 * _logistic(2 * z)


def _tanh_curvature(z: Tensor) -> Tensor:
    return -2 * torch.tanh(z) * _tanh_slope(z)


def _sigmoid_curvature(z: Tensor) -> Tensor:
    return -torch.tanh(0.5 * z) * _logistic(z)


def _elu_slope(z: Tensor) -> Tensor:
    return torch.where(z > 0, 1.0, torch.exp(z.clamp(max=0.0)))


def _elu_curvature(z: Tensor) -> Tensor:
    return torch.where(z > 0, 0.0, torch.exp(z.clamp(max=0.0)))


def _leaky_slope(z: Tensor) -> Tensor:
    return torch.where(z > 0, 1.0, torch.full_like(z, 0.01))


def _hard_sigmoid_slope(z: Tensor) -> Tensor:
    return (z.abs() < 3).to(z.dtype) / 6


BASES: dict[str, Base] = {
    "relu": Base(F.relu, _step, None),
    "leaky_relu": Base(F.leaky_relu, _leaky_slope, None),
    "gelu": Base(F.gelu, _gelu_slope, _gelu_curvature),
    "silu": Base(F.silu, _silu_slope, _silu_curvature),
    "tanh": Base(torch.tanh, _tanh_slope, _tanh_curvature),
    "sigmoid": Base(torch.sigmoid, _logistic, _sigmoid_curvature),
    "softplus": Base(F.softplus, torch.sigmoid, _logistic),
    "elu": Base(F.elu, _elu_slope, _elu_curvature),
}
# torch has no second derivative of this one, so it cannot be left to torch.func.
_HARD_SIGMOID = Base(F.hardsigmoid, _hard_sigmoid_slope, None)

_BY_FUNCTION: dict[Any, Base] = {
    torch.relu: BASES["relu"],
    F.sigmoid: BASES["sigmoid"],
    F.tanh: BASES["tanh"],
    F.hardsigmoid: _HARD_SIGMOID,
    **{base.value: base for base in BASES.values()},
}
# Module classes with the settings under which they are the function above.
_BY_MODULE: dict[type[nn.Module], tuple[Base, dict[str, Any]]] = {
    nn.ReLU: (BASES["relu"], {}),
    nn.LeakyReLU: (BASES["leaky_relu"], {"negative_slope": 0.01}),
    nn.GELU: (BASES["gelu"], {"approximate": "none"}),
    nn.SiLU: (BASES["silu"], {}),
    nn.Tanh: (BASES["tanh"], {}),
    nn.Sigmoid: (BASES["sigmoid"], {}),
    nn.Softplus: (BASES["softplus"], {"beta": 1.0, "threshold": 20.0}),
    nn.ELU: (BASES["elu"], {"alpha": 1.0}),
    nn.Hardsigmoid: (_HARD_SIGMOID, {}),
}


def closed_form(f: Any) -> Base | None:
    """The `Base` of a torch function or module that has one, else None."""
    if isinstance(f, nn.Module):
        base, settings = _BY_MODULE.get(type(f), (None, {}))
        same = all(getattr(f, name) == value for name, value in settings.items())
        return base if same else None
    try:
        return _BY_FUNCTION.get(f)
    except TypeError:  # an unhashable callable
        return None


def derivative(f: Function) -> Function:
    """The derivative of an elementwise function, itself differentiable, by reverse mode (`torch.func.grad`).

    Reverse mode because a user's `torch.autograd.Function` seldom has a forward-mode rule.
    """
    return torch.func.grad(lambda z: f(z).sum())


def slope(f: Any, z: Tensor) -> Tensor:
    """f'(z). An object may give its own by a method `first_two_derivatives(z) -> (f'(z), f''(z))`."""
    base = closed_form(f)
    if base is not None:
        return base.slope(z)
    return f.first_two_derivatives(z)[0] if hasattr(f, "first_two_derivatives") else derivative(f)(z)


def slopes(f: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """f'(z) and f''(z)."""
    base = closed_form(f)
    if base is not None:
        return base.slope(z), torch.zeros_like(z) if base.curvature is None else base.curvature(z)
    if hasattr(f, "first_two_derivatives"):
        return f.first_two_derivatives(z)
    first = derivative(f)
    return first(z), derivative(first)(z)
