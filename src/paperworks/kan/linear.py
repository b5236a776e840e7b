"""A Kolmogorov-Arnold layer whose edge functions share one basis.

y_o = sum_d ( b_od silu(x_d) + sum_k c_odk B_k(squash(x_d)) )
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paperworks.kan.families import Basis
from paperworks.kan.fused import Run, Tile, check_squash, kan_sum
from paperworks.kan.names import get_basis


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for a size that is not an integer >= 1, by its name."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: got {size!r}, wanted an integer >= 1")


def check_input(x: Tensor, in_features: int) -> None:
    """Raise ValueError where the last dimension of x is not `in_features`, TypeError where x is not floating."""
    if not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype}, wanted a floating point tensor")
    if x.ndim < 1 or x.shape[-1] != in_features:
        raise ValueError(f"x: got shape {tuple(x.shape)}, wanted {in_features} in the last dimension")


def reset_coefficients(
    coef: Tensor, base_weight: Tensor | None, fan_in: int, generator: torch.Generator | None
) -> None:
    """c ~ N(0, (0.1 / sqrt(fan_in))^2) and b uniform as in `nn.Linear`, in place."""
    with torch.no_grad():
        coef.normal_(0, 0.1 / math.sqrt(fan_in), generator=generator)
        if base_weight is not None:
            nn.init.kaiming_uniform_(base_weight, a=math.sqrt(5), generator=generator)


class KANLinear(nn.Module):
    """Kolmogorov-Arnold layer of one basis: (..., in_features) -> (..., out_features).

    On CPU in float32 the basis matrix is made block by block and never kept (`paperworks.kan.fused`).

    Args:
        in_features, out_features: D and O.
        basis: a name of `paperworks.kan.bases.get_basis`, or a `Basis` (yours too).
        num_functions: K, for a basis given by name.
        squash: ``"tanh"`` or ``"clamp"`` (to [-1, 1], for inputs that are scaled).
        base: ``"silu"``, or None for no base term.
        generator: for the initial weights; the global one if None.

    Attributes:
        coef: c (O, D, K).
        base_weight: b (O, D), or None.

    Raises ValueError for unknown names and sizes below 1; when called, for another last dimension than D.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        basis: str | Basis,
        *,
        num_functions: int = 8,
        squash: str = "tanh",
        base: str | None = "silu",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        if base not in ("silu", None):
            raise ValueError(f"base: got {base!r}, wanted 'silu' or None")
        self.in_features, self.out_features = in_features, out_features
        self.basis, self.squash, self.base = get_basis(basis, num_functions), check_squash(squash), base
        self.coef = nn.Parameter(
            torch.empty(out_features, in_features, self.basis.num_functions, device=device, dtype=dtype)
        )
        self.base_weight: nn.Parameter | None
        weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype)) if base else None
        self.register_parameter("base_weight", weight)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights anew."""
        reset_coefficients(self.coef, self.base_weight, self.in_features, generator)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.in_features)
        return kan_sum(x, self.base_weight, [Tile((Run(self.basis),), self.coef)], self.squash)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, squash={self.squash}, base={self.base}"
        )
