"""Bases from an activation shifted from both sides: K combinations of a(v - low_j) and a(high_j - v).

    low_j = (j - k) / g,   high_j = low_j + (k + 1) / g,   j = 0 .. K - 1,   K = g + k

ReLU-KAN squares the product of two shifted ReLUs and scales the peak to 1; AF-KAN lets other activations and other
combinations take their place. Here v = (u + 1) / 2, so that the grid 0 .. 1 covers u in [-1, 1], and the phases are
fixed: a layer that trains its phases keeps them itself and calls `COMBINATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from paperworks.kan.families import Basis

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "selu": functional.selu,
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}

COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda p, q: p + q,
    "prod": lambda p, q: p * q,
    "sum_prod": lambda p, q: p + q + p * q,
    "quad1": lambda p, q: (p * q).square(),
    "quad2": lambda p, q: p * q + p.square() + q.square(),
    "cubic1": lambda p, q: (p + q) * (p.square() + q.square()),
    "cubic2": lambda p, q: (p * q) ** 3,
}


def phases(
    grid_size: int, order: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """low and high, each of shape (grid_size + order,). Raises ValueError for grid_size < 1 or order < 0."""
    if grid_size < 1:
        raise ValueError(f"grid_size: got {grid_size!r}, wanted an integer >= 1")
    if order < 0:
        raise ValueError(f"order: got {order!r}, wanted an integer >= 0")
    low = torch.arange(-order, grid_size, device=device, dtype=dtype or torch.get_default_dtype()) / grid_size
    return low, low + (order + 1) / grid_size


class PairBasis(Basis):
    """`COMBINATIONS[function]` of `ACTIVATIONS[activation]` at fixed phases, K = grid_size + order functions.

    Raises ValueError for an unknown activation or function (the message lists those that exist), and where
    `num_functions` does not exceed `order`.
    """

    def __init__(
        self, num_functions: int = 8, *, activation: str = "silu", function: str = "quad1", order: int = 3
    ) -> None:
        super().__init__(num_functions)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: got {activation!r}, wanted one of {', '.join(ACTIVATIONS)}")
        if function not in COMBINATIONS:
            raise ValueError(f"function: got {function!r}, wanted one of {', '.join(COMBINATIONS)}")
        if order < 0 or num_functions <= order:
            raise ValueError(f"num_functions: got {num_functions}, wanted more than order = {order} >= 0")
        self.activation, self.function, self.order = activation, function, order

    def forward(self, u: Tensor) -> Tensor:
        low, high = phases(self.num_functions - self.order, self.order, device=u.device, dtype=u.dtype)
        v, a = (u[..., None] + 1) / 2, ACTIVATIONS[self.activation]
        return COMBINATIONS[self.function](a(v - low), a(high - v))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.activation}_{self.function}, order={self.order}"


class ReLUPowerBasis(PairBasis):
    """ReLU-KAN's functions: r^2 (relu(v - low) relu(high - v))^2, r = 4 g^2 / (k + 1)^2, so that the peak is 1."""

    def __init__(self, num_functions: int = 8, *, order: int = 3) -> None:
        super().__init__(num_functions, activation="relu", function="quad1", order=order)

    def forward(self, u: Tensor) -> Tensor:
        scale = (2 * (self.num_functions - self.order) / (self.order + 1)) ** 4
        return scale * super().forward(u)
