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


_CUBIC = 0.044715


def _gelu_tanh(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


def _gelu_tanh_parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tanh u, its derivative in u and u' for u = sqrt(2 / pi) (z + 0.044715 z^3)."""
    t = z.clamp(-40.0, 40.0)
    u = math.sqrt(2 / math.pi) * (t + _CUBIC * t**3)
    return torch.tanh(u), _tanh_slope(u), math.sqrt(2 / math.pi) * (1 + 3 * _CUBIC * t * t)


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    value, rate, inner = _gelu_tanh_parts(z)
    return 0.5 * (1 + value) + 0.5 * z * rate * inner


def _gelu_tanh_curvature(z: Tensor) -> Tensor:
    value, rate, inner = _gelu_tanh_parts(z)
    bend = math.sqrt(2 / math.pi) * 6 * _CUBIC * z  # u''
    return rate * (inner + 0.5 * z * (bend - 2 * value * inner * inner))


def _elu_slope(z: Tensor) -> Tensor:
    return torch.where(z > 0, 1.0, torch.exp(z.clamp(max=0.0)))


def _elu_curvature(z: Tensor) -> Tensor:
    return torch.where(z > 0, 0.0, torch.exp(z.clamp(max=0.0)))


def _leaky_slope(z: Tensor) -> Tensor:
    return torch.where(z > 0, 1.0, torch.full_like(z, 0.01))


def _hard_sigmoid(z: Tensor) -> Tensor:
    return F.relu6(z + 3) / 6  # F.hardsigmoid has no second derivative in torch


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
    "gelu_tanh": Base(_gelu_tanh, _gelu_tanh_slope, _gelu_tanh_curvature),
    "hardsigmoid": Base(_hard_sigmoid, _hard_sigmoid_slope, None),
}

_BY_FUNCTION: dict[Any, str] = {
    torch.relu: "relu",
    F.sigmoid: "sigmoid",
    F.tanh: "tanh",
    F.hardsigmoid: "hardsigmoid",
    **{base.value: name for name, base in BASES.items()},
}
# Module classes with the settings under which they are the function of that name.
_BY_MODULE: dict[type[nn.Module], tuple[str, dict[str, Any]]] = {
    nn.ReLU: ("relu", {}),
    nn.LeakyReLU: ("leaky_relu", {"negative_slope": 0.01}),
    nn.SiLU: ("silu", {}),
    nn.Tanh: ("tanh", {}),
    nn.Sigmoid: ("sigmoid", {}),
    nn.Softplus: ("softplus", {"beta": 1.0, "threshold": 20.0}),
    nn.ELU: ("elu", {"alpha": 1.0}),
    nn.Hardsigmoid: ("hardsigmoid", {}),
}


def name_of(f: Any) -> str | None:
    """The name in `BASES` of a torch function or module that has closed forms, else None."""
    if isinstance(f, nn.Module):
        if type(f) is nn.GELU:
            return "gelu" if f.approximate == "none" else "gelu_tanh"
        name, settings = _BY_MODULE.get(type(f), (None, {}))
        return name if all(getattr(f, key) == value for key, value in settings.items()) else None
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
    name = name_of(f)
    if name is not None:
        return BASES[name].slope(z)
    return f.first_two_derivatives(z)[0] if hasattr(f, "first_two_derivatives") else derivative(f)(z)


def slopes(f: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """f'(z) and f''(z)."""
    name = name_of(f)
    if name is not None:
        _, first, second = BASES[name]
        return first(z), torch.zeros_like(z) if second is None else second(z)
    if hasattr(f, "first_two_derivatives"):
        first_and_second: tuple[Tensor, Tensor] = f.first_two_derivatives(z)
        return first_and_second
    rate = derivative(f)
    return rate(z), derivative(rate)(z)
