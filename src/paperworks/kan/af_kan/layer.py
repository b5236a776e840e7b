"""`AFKANLayer` in place of `nn.Linear`, and `AFKAN`, a network of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.kan.af_kan.functional import (
    FEATURE_NORMS,
    REDUCTIONS,
    FeatureNorm,
    Options,
    Parameters,
    Reduction,
    min_max,
    pair_terms,
)
from paperworks.kan.af_kan.fused import hidden
from paperworks.kan.linear import check_input, check_sizes
from paperworks.kan.pairs import ACTIVATIONS, COMBINATIONS, phases


def check_grid(grid_size: int, spline_order: int) -> None:
    """Raise ValueError for a grid size below 1 or an order below 0."""
    check_sizes(grid_size=grid_size)
    if isinstance(spline_order, bool) or not isinstance(spline_order, int) or spline_order < 0:
        raise ValueError(f"spline_order: got {spline_order!r}, wanted an integer >= 0")


def check_choice(name: str, value: Any, allowed: Any) -> None:
    """Raise ValueError that lists what is allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(map(repr, allowed))}")


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off for the device of `x`: the terms grow like x^2 to x^6 and are always computed in float32 or more."""
    if not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class AFKANLayer(nn.Module):
    """G shifted activation pairs of each input, reduced to one number, then a matrix: x (..., D) -> (..., O).

        F_dj = f(a(x_d - low_j), a(high_j - x_d)),  min-max normalised,  reduced over j to s_d
        y = W a(LayerNorm(s))

    AF-KAN (arXiv 2503.06112). G = grid_size + spline_order pairs of trainable phases are shared by all inputs, so the
    layer has 2 D + 4 G + ... parameters beside its O D weights: those of a linear layer with LayerNorm. On CPU and CUDA
    in float32 and below, the first two reductions run fused, without a tensor of (..., D, G); `torch.compile`,
    `torch.func`, forward mode and second derivatives use plain tensor operations.

    Parameters: phase_low, phase_high (G); reduce.weight, reduce.bias: (1, G), (1), or (G, 1, 3), (G) for spatial_attn;
    temperature () for the two attentions; norm.weight, norm.bias (D) with layer_norm; weight (O, D). Nothing is created
    that is not used.

    Args:
        in_features, out_features: D and O.
        grid_size, spline_order: g >= 1 and k >= 0; phases low_j = (j - k) / g, high_j = low_j + (k + 1) / g at first.
        activation: silu, relu, leaky_relu, elu, gelu, selu, softplus, sigmoid or tanh; both of the pairs and of s.
        function: how a pair u, v is combined: sum u+v, prod uv, sum_prod u+v+uv, quad1 (uv)^2, quad2 uv+u^2+v^2,
            cubic1 (u+v)(u^2+v^2), cubic2 (uv)^3.
        reduction: "global_attn" (softmax over the features), "spatial_attn" (softmax over the pairs of scores from
            neighbouring features) or "multistep" (a weighted sum).
        feature_norm: "sample" brings the terms of each leading index to [0, 1]; "batch", as published, those of the
            whole call, so that an output depends on what else is in the batch; None leaves them.
        layer_norm: LayerNorm of s.
        train_phases: False keeps the phases as they are.
        temperature_min: lower bound of the temperature, which starts at sqrt(D).

    Raises:
        ValueError: an unknown name (the message lists those that exist), a size below its least; when called, a last
            dimension other than D, or feature_norm="batch" with one feature value in the whole call.
        TypeError: when called on an integer tensor.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        grid_size: int = 3,
        spline_order: int = 3,
        activation: str = "silu",
        function: str = "quad1",
        reduction: Reduction = "global_attn",
        feature_norm: FeatureNorm | None = "sample",
        layer_norm: bool = True,
        train_phases: bool = True,
        temperature_min: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        check_grid(grid_size, spline_order)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("function", function, COMBINATIONS)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("feature_norm", feature_norm, FEATURE_NORMS)
        if not temperature_min > 0:
            raise ValueError(f"temperature_min: got {temperature_min!r}, wanted a number > 0")
        self.in_features, self.out_features = in_features, out_features
        self.grid_size, self.spline_order = grid_size, spline_order
        self.activation, self.function, self.reduction = activation, function, reduction
        self.feature_norm, self.temperature_min = feature_norm, temperature_min
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        terms = grid_size + spline_order
        self.phase_low = nn.Parameter(torch.empty(terms, **where), requires_grad=train_phases)
        self.phase_high = nn.Parameter(torch.empty(terms, **where), requires_grad=train_phases)
        self.reduce: nn.Linear | nn.Conv1d
        if reduction == "spatial_attn":
            self.reduce = nn.Conv1d(terms, terms, 3, padding=1, groups=terms, **where)
        else:
            self.reduce = nn.Linear(terms, 1, **where)
        self.temperature: nn.Parameter | None = None
        if reduction != "multistep":
            self.temperature = nn.Parameter(torch.empty((), **where))
        self.norm = nn.LayerNorm(in_features, **where) if layer_norm else None
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **where))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Phases and temperature as published, weights kaiming uniform (the bound of `nn.Linear`)."""
        low, high = phases(self.grid_size, self.spline_order, dtype=torch.float64)
        with torch.no_grad():
            self.phase_low.copy_(low)
            self.phase_high.copy_(high)
            if self.temperature is not None:
                self.temperature.fill_(math.sqrt(self.in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        for part in (self.reduce, self.norm):
            if part is not None:
                part.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., O), in the dtype of `x` (in autocast's where it is on)."""
        check_input(x, self.in_features)
        rows = x.reshape(-1, self.in_features)
        dtype = torch.promote_types(x.dtype, torch.float32)
        with without_autocast(x):
            z = self.hidden(rows.to(dtype), self.parameters_as(dtype), self.options())
        if torch.is_autocast_enabled(x.device.type):
            y = functional.linear(z, self.weight)
        else:
            y = functional.linear(z.to(self.weight.dtype), self.weight).to(x.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)

    def features(self, x: Tensor) -> Tensor:
        """F after its normalisation: (..., D) -> (..., D, G), float32 or more."""
        check_input(x, self.in_features)
        rows, p = x.reshape(-1, self.in_features), self.parameters_as(torch.promote_types(x.dtype, torch.float32))
        with without_autocast(x):
            terms = pair_terms(rows.to(p.low.dtype), p.low, p.high, self.activation, self.function)
            return min_max(terms, self.feature_norm).reshape(*x.shape, len(p.low))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone: it would pull them to where nothing is."""
        names = {"phase_low", "phase_high"}
        return names | {"temperature"} if self.temperature is not None else names

    def hidden(self, rows: Tensor, p: Parameters, options: Options) -> Tensor:
        """z, what the matrix is given: (rows, D) -> (rows, D)."""
        return hidden(rows, p, options)

    def options(self) -> Options:
        """The layer's choices, as the functions of `functional` take them."""
        epsilon = 0.0 if self.norm is None else self.norm.eps
        return Options(self.activation, self.function, self.reduction, self.feature_norm, epsilon)

    def parameters_as(self, dtype: torch.dtype) -> Parameters:
        """The layer's parameters but its matrix, as the functions of `functional` take them."""
        assert self.reduce.bias is not None
        weight, bias = self.reduce.weight.to(dtype), self.reduce.bias.to(dtype)
        if self.reduction != "spatial_attn":
            weight = weight[0]
        temperature = gain = offset = None
        if self.temperature is not None:
            temperature = self.temperature.to(dtype).clamp(min=self.temperature_min)
        if self.norm is not None:
            gain, offset = self.norm.weight.to(dtype), self.norm.bias.to(dtype)
        return Parameters(self.phase_low.to(dtype), self.phase_high.to(dtype), weight, bias, temperature, gain, offset)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, grid_size={self.grid_size}, spline_order={self.spline_order}, "
            f"{self.activation}, {self.function}, {self.reduction}, feature_norm={self.feature_norm!r}"
        )


class AFKAN(nn.Sequential):
    """`AFKANLayer`s of the given widths in a row, nothing between them and nothing after the last.

    Args:
        widths: sizes from input to output, at least two.
        layer_kwargs: keyword arguments of every layer.

    Raises ValueError for fewer than two widths, and what `AFKANLayer` raises.
    """

    def __init__(self, widths: Sequence[int], **layer_kwargs: Any) -> None:
        if len(widths) < 2:
            raise ValueError(f"widths: got {list(widths)!r}, wanted at least an input and an output size")
        super().__init__(*(AFKANLayer(i, o, **layer_kwargs) for i, o in pairwise(widths)))
