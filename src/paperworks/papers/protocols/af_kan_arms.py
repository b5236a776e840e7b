"""Networks that AF-KAN's paper compares: builders `(in_features, num_classes, *, width, ...) -> nn.Module`.

The layers of the other Kolmogorov-Arnold networks are built here from the shared bases, with the parameters that their
public implementations train; frozen grids are no parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.kan.af_kan import AFKAN, AFKANLayer, ReLUKANLayer
from paperworks.kan.af_kan.functional import Options, Parameters, hidden_composite
from paperworks.kan.bases import BSplineBasis, GaussianBasis

FUNCTIONS = 8  # of every basis: grid 5 and order 3


class EfficientKANLayer(nn.Module):
    """B-splines of grid 5 and order 3 on [-1, 1], a scale an edge, and a SiLU term: 10 D O parameters."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.basis = BSplineBasis(FUNCTIONS)
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.spline_weight = nn.Parameter(torch.empty(out_features, in_features, FUNCTIONS))
        self.spline_scaler = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.base_weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.spline_scaler, a=math.sqrt(5))
        nn.init.uniform_(self.spline_weight, -0.01, 0.01)  # noise of 0.1 / grid, as wide as the public fit to noise

    def forward(self, x: Tensor) -> Tensor:
        spline = (self.spline_weight * self.spline_scaler[..., None]).flatten(1)
        return functional.linear(functional.silu(x), self.base_weight) + self.basis(x).flatten(1) @ spline.T


class FastKANLayer(nn.Module):
    """LayerNorm, 8 Gaussians on [-2, 2], and a linear term of SiLU with bias: 9 D O + O + 2 D parameters."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.basis = GaussianBasis(FUNCTIONS)
        self.spline = nn.Linear(in_features * FUNCTIONS, out_features, bias=False)
        self.base = nn.Linear(in_features, out_features)
        nn.init.trunc_normal_(self.spline.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.spline(self.basis(self.norm(x) / 2).flatten(1)) + self.base(functional.silu(x))


class FasterKANLayer(nn.Module):
    """LayerNorm and 8 reflectional switches 1 - tanh^2 with centres on [-1.2, 0.2]: 8 D O + 2 D parameters."""

    centres: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.register_buffer("centres", torch.linspace(-1.2, 0.2, FUNCTIONS))
        self.spline = nn.Linear(in_features * FUNCTIONS, out_features, bias=False)
        nn.init.xavier_uniform_(self.spline.weight)

    def forward(self, x: Tensor) -> Tensor:
        switches = 1 - torch.tanh(self.norm(x)[..., None] - self.centres).square()
        return self.spline(switches.flatten(1))


class BSRBFLayer(nn.Module):
    """LayerNorm, the sum of B-splines and Gaussians on [-1.5, 1.5], and a SiLU term: 9 D O + 2 D parameters."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.splines, self.gaussians = BSplineBasis(FUNCTIONS), GaussianBasis(FUNCTIONS)
        self.spline = nn.Linear(in_features * FUNCTIONS, out_features, bias=False)
        self.base = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        u = n / 1.5
        return self.base(functional.silu(n)) + self.spline((self.splines(u) + self.gaussians(u)).flatten(1))


class StraightforwardLayer(AFKANLayer):
    """AF-KAN equation by equation: the same function by way of tensors of (..., D, G)."""

    def hidden(self, rows: Tensor, p: Parameters, options: Options) -> Tensor:
        return hidden_composite(rows, p, options)


def two_layers(layer: Callable[[int, int], nn.Module], in_features: int, num_classes: int, width: int) -> nn.Module:
    """in_features - width - num_classes, nothing between."""
    return nn.Sequential(layer(in_features, width), layer(width, num_classes))


def af_kan(in_features: int, num_classes: int, *, width: int = 32, **layer_options: Any) -> nn.Module:
    """AF-KAN with the options of `AFKANLayer`."""
    return AFKAN([in_features, width, num_classes], **layer_options)


def straightforward_af_kan(in_features: int, num_classes: int, *, width: int = 32) -> nn.Module:
    """AF-KAN of the paper's options, not fused."""
    return two_layers(StraightforwardLayer, in_features, num_classes, width)


def relu_kan(in_features: int, num_classes: int, *, width: int = 32) -> nn.Module:
    """ReLU-KAN of grid 3 and order 3."""
    return two_layers(ReLUKANLayer, in_features, num_classes, width)


def efficient_kan(in_features: int, num_classes: int, *, width: int = 32) -> nn.Module:
    """EfficientKAN of grid 5 and order 3."""
    return two_layers(EfficientKANLayer, in_features, num_classes, width)


def fast_kan(in_features: int, num_classes: int, *, width: int = 32) -> nn.Module:
    """FastKAN of 8 Gaussians."""
    return two_layers(FastKANLayer, in_features, num_classes, width)


def faster_kan(in_features: int, num_classes: int, *, width: int = 32) -> nn.Module:
    """FasterKAN of 8 switches."""
    return two_layers(FasterKANLayer, in_features, num_classes, width)


def bsrbf_kan(in_features: int, num_classes: int, *, width: int = 32) -> nn.Module:
    """BSRBF-KAN of 8 functions."""
    return two_layers(BSRBFLayer, in_features, num_classes, width)


def layer_norm_mlp(in_features: int, num_classes: int, *, width: int = 32) -> nn.Module:
    """LayerNorm and a matrix, twice, with SiLU between: 2 D + D O parameters a layer."""
    return nn.Sequential(
        nn.LayerNorm(in_features), nn.Linear(in_features, width, bias=False), nn.SiLU(),
        nn.LayerNorm(width), nn.Linear(width, num_classes, bias=False),
    )  # fmt: skip
