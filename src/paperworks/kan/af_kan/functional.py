"""The AF-KAN layer up to its matrix, in plain tensor operations.

F_dj = f(a(x_d - low_j), a(high_j - x_d))                 shifted pairs, j = 1 .. G
N    = (F - min F) / max(max F - min F, 1e-8)             over a sample, or over the whole call
global_attn:   l_d = sum_j w_j N_dj + b,  A = softmax over d of l / max(T, T_min),  s_d = A_d sum_j N_dj
spatial_attn:  l_j = depthwise convolution of N_.j along d (3 taps),  A = softmax over j,  s_d = sum_j A_dj N_dj
multistep:     s_d = sum_j w_j N_dj + b
z    = a(LayerNorm(s))
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from paperworks.kan.pairs import ACTIVATIONS, COMBINATIONS

Reduction = Literal["global_attn", "spatial_attn", "multistep"]
FeatureNorm = Literal["sample", "batch"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
FEATURE_NORMS: tuple[str | None, ...] = (*get_args(FeatureNorm), None)
SMALLEST_RANGE = 1e-8


class Options(NamedTuple):
    """What a layer computes, beside its parameters."""

    activation: str = "silu"
    function: str = "quad1"
    reduction: str = "global_attn"
    feature_norm: str | None = "sample"
    epsilon: float = 1e-5


class Parameters(NamedTuple):
    """Tensors of a layer: phases and weight (G), or weight (G, 1, 3) and bias (G) for spatial_attn.

    `bias` has one element elsewhere, `temperature` is (), already bounded below; `gain` and `offset` are (D) or None
    without layer normalisation. `temperature` is None for multistep.
    """

    low: Tensor
    high: Tensor
    weight: Tensor
    bias: Tensor
    temperature: Tensor | None
    gain: Tensor | None
    offset: Tensor | None


def pair_terms(x: Tensor, low: Tensor, high: Tensor, activation: str = "silu", function: str = "quad1") -> Tensor:
    """F before its normalisation: x (...) and phases that broadcast with (..., G) -> (..., G)."""
    a = ACTIVATIONS[activation]
    return COMBINATIONS[function](a(x[..., None] - low), a(high - x[..., None]))


def min_max(terms: Tensor, feature_norm: str | None) -> Tensor:
    """(rows, D, G) brought to [0, 1] by least and largest of each row ("sample"), of all rows ("batch"), or as it is.

    The published step before it, division by the L2 norm, cancels here. Equal values throughout give 0.
    Raises ValueError for "batch" where there is one value in all.
    """
    if feature_norm is None or terms.numel() == 0:
        return terms
    if feature_norm == "batch" and terms.numel() == 1:
        raise ValueError("feature_norm='batch': got one feature value in all, nothing to spread; wanted two or more")
    over = (1, 2) if feature_norm == "sample" else (0, 1, 2)
    least, largest = terms.amin(over, keepdim=True), terms.amax(over, keepdim=True)
    return (terms - least) / (largest - least).clamp(min=SMALLEST_RANGE)


def reduce_terms(terms: Tensor, reduction: str, p: Parameters) -> Tensor:
    """s (rows, D) of the normalised terms (rows, D, G)."""
    if reduction == "spatial_attn":
        assert p.temperature is not None
        scores = functional.conv1d(terms.transpose(1, 2), p.weight, p.bias, padding=1, groups=len(p.weight))
        return (terms.transpose(1, 2) * torch.softmax(scores / p.temperature, 1)).sum(1)
    scores = terms @ p.weight + p.bias
    if reduction == "multistep":
        return scores
    assert p.temperature is not None
    return terms.sum(2) * torch.softmax(scores / p.temperature, 1)


def normalised_activation(s: Tensor, activation: str, p: Parameters, epsilon: float) -> Tensor:
    """z = a(LayerNorm(s)) over the last dimension, or a(s) without `gain`."""
    if p.gain is not None:
        s = functional.layer_norm(s, s.shape[-1:], p.gain, p.offset, epsilon)
    return ACTIVATIONS[activation](s)


def hidden_composite(x: Tensor, p: Parameters, options: Options) -> Tensor:
    """z (rows, D) of x (rows, D), equation by equation, by way of (rows, D, G): any derivative, any transform."""
    terms = min_max(pair_terms(x, p.low, p.high, options.activation, options.function), options.feature_norm)
    s = reduce_terms(terms, options.reduction, p)
    return normalised_activation(s, options.activation, p, options.epsilon)


def extent_of(extremes: Tensor, feature_norm: str | None) -> Tensor:
    """m and M of every row (rows, 2), from those of its terms (rows, G, 2); 0 and 1 where F is not normalised."""
    if feature_norm is None:
        return extremes.new_tensor([0.0, 1.0]).expand(len(extremes), 2).contiguous()
    over = (1,) if feature_norm == "sample" else (0, 1)
    found = torch.stack([extremes[..., 0].amin(over), extremes[..., 1].amax(over)], -1)
    return found.expand(len(extremes), 2).contiguous()


def sums_composite(x: Tensor, low: Tensor, high: Tensor, weight: Tensor, options: Options) -> tuple[Tensor, ...]:
    """L, S (rows, D) and m, M (rows, 2) of the terms that are not normalised yet."""
    terms = pair_terms(x, low, high, options.activation, options.function)
    if options.feature_norm is None:
        return terms @ weight, terms.sum(2), extent_of(terms, None)
    over = (1, 2) if options.feature_norm == "sample" else (0, 1, 2)
    extent = torch.stack([terms.amin(over), terms.amax(over)], -1).expand(len(x), 2)
    return terms @ weight, terms.sum(2), extent


def finish_composite(weighted: Tensor, sums: Tensor, extent: Tensor, p: Parameters, options: Options) -> Tensor:
    """z (rows, D) from L, S and m, M, for global_attn and multistep: the normalisation is affine, so it comes last."""
    least, largest = extent[:, :1], extent[:, 1:]
    scale = (largest - least).clamp(min=SMALLEST_RANGE)
    s = (weighted - least * p.weight.sum()) / scale + p.bias
    if options.reduction == "global_attn":
        assert p.temperature is not None
        s = (sums - len(p.weight) * least) / scale * torch.softmax(s / p.temperature, 1)
    return normalised_activation(s, options.activation, p, options.epsilon)
