"""ReLU-KAN's layer, the baseline that AF-KAN starts from.

F_dj = (r relu(n_d - low_dj) relu(high_dj - n_d))^2,  n = LayerNorm(x),  r = 4 g^2 / (k + 1)^2
y_o  = sum_dj W_o,dj F_dj + b_o
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.kan.af_kan.functional import pair_terms
from paperworks.kan.af_kan.layer import check_grid, without_autocast
from paperworks.kan.linear import check_input, check_sizes
from paperworks.kan.pairs import phases


class ReLUKANLayer(nn.Module):
    """ReLU-KAN with LayerNorm of the input, as AF-KAN's paper compares it: x (..., D) -> (..., O).

    Parameters: phase_low, phase_high (D, G), one pair an input and term; weight (O, D G), in the order of
    `F.flatten(-2)`; bias (O); norm.weight, norm.bias (D) with layer_norm. A published convolution over the reshaped
    (not transposed) F, weight (O, 1, G, D), is this weight after `reshape(O, -1)`.

    Raises ValueError for a size below its least, and when called for a last dimension other than D; TypeError for an
    integer input.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        grid_size: int = 3,
        spline_order: int = 3,
        layer_norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        check_grid(grid_size, spline_order)
        self.in_features, self.out_features = in_features, out_features
        self.grid_size, self.spline_order = grid_size, spline_order
        terms = grid_size + spline_order
        self.phase_low = nn.Parameter(torch.empty(in_features, terms, device=device, dtype=dtype))
        self.phase_high = nn.Parameter(torch.empty(in_features, terms, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(out_features, in_features * terms, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.norm = nn.LayerNorm(in_features, device=device, dtype=dtype) if layer_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The same phases for every input; weight and bias as a linear layer of D G inputs."""
        low, high = phases(self.grid_size, self.spline_order, dtype=torch.float64)
        with torch.no_grad():
            self.phase_low.copy_(low.expand_as(self.phase_low))
            self.phase_high.copy_(high.expand_as(self.phase_high))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.bias, -bound, bound)
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., O), in the dtype of `x` (in autocast's where it is on)."""
        f = self.features(x).flatten(-2)
        if torch.is_autocast_enabled(x.device.type):
            return functional.linear(f, self.weight, self.bias)
        return functional.linear(f.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """F: (..., D) -> (..., D, G), float32 or more."""
        check_input(x, self.in_features)
        dtype = torch.promote_types(x.dtype, torch.float32)
        with without_autocast(x):
            n = x.to(dtype)
            if self.norm is not None:
                gain, offset = self.norm.weight.to(dtype), self.norm.bias.to(dtype)
                n = functional.layer_norm(n, (self.in_features,), gain, offset, self.norm.eps)
            scale = 4 * self.grid_size**2 / (self.spline_order + 1) ** 2
            return scale**2 * pair_terms(n, self.phase_low.to(dtype), self.phase_high.to(dtype), "relu", "quad1")

    def extra_repr(self) -> str:
        sizes = f"{self.in_features}, {self.out_features}"
        return f"{sizes}, grid_size={self.grid_size}, spline_order={self.spline_order}"
