"""The importance of a weight (Eq. 10) and the bound on the output it comes from (Eq. 7), arXiv 2404.13648."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paperworks.efficiency.dimap.masks import stored_weight

__all__ = ["distortion_bound", "importance", "sorted_importance", "sorted_magnitudes"]


def _check(weight: Tensor, name: str) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name}: got {type(weight).__name__}, wanted a tensor")
    if weight.is_quantized or not weight.is_floating_point():
        raise TypeError(f"{name}: got {weight.dtype}, wanted a floating-point tensor")
    if weight.is_meta:
        raise TypeError(f"{name}: got a meta tensor, wanted one with values")


def sorted_magnitudes(weight: Tensor, name: str = "weight") -> Tensor:
    """|w| of all entries in ascending order, (numel,), float64 for float64 weights, else float32.

    Raises TypeError for quantised, integer or meta tensors, ValueError for values that are not finite.
    """
    _check(weight, name)
    flat = weight.detach().abs().flatten()
    if flat.dtype not in (torch.float32, torch.float64):
        flat = flat.float()
    if flat.device.type == "cpu":
        # NumPy sorts numbers with vector instructions, about ten times as fast as torch.sort, which carries indices
        flat.numpy().sort()
        ordered = flat
    else:
        ordered = flat.sort().values
    # infinities and NaN sort last
    if len(ordered) and not torch.isfinite(ordered[-1]):
        raise ValueError(f"{name}: got values that are not finite, wanted finite weights")
    return ordered


def sorted_importance(magnitudes: Tensor) -> Tensor:
    """Eq. 10 of magnitudes in ascending order, (n,), float64: ascending too. Zeros have importance 0."""
    if not len(magnitudes):
        return magnitudes.double()
    # by a power of two: nothing is rounded, and no square that matters leaves the range of float64
    exponent = max(-1022, min(1022, math.frexp(float(magnitudes[-1]))[1]))
    squares = magnitudes.to(torch.float64, copy=True).mul_(math.ldexp(1.0, -exponent)).square_()
    # from the largest down: the difference of two ascending sums would cancel where it matters most
    remaining = squares.flip(0).cumsum_(0).flip(0)
    return squares.div_(remaining).nan_to_num_(nan=0.0)


def importance(weight: Tensor) -> Tensor:
    """Imp(w_j) = w_j^2 / sum of w_i^2 over w_j and all larger ones (Eq. 10): one layer's weights, any shape.

    It is the relative distortion of removing w_j once all smaller weights are gone, in (0, 1]; the largest weight has 1
    and zeros have 0. Among equal magnitudes the one that comes first in memory order counts as the smaller.

    Returns:
        float64 of the same shape, whatever the weights' type: half precision cannot rank a million scores.

    Raises:
        TypeError: quantised, integer or meta tensors.
        ValueError: values that are not finite.
    """
    _check(weight, "weight")
    flat = weight.detach().abs().flatten()
    if not torch.isfinite(flat).all():
        raise ValueError("weight: got values that are not finite, wanted finite weights")
    ordered, index = flat.sort(stable=True)
    scores = torch.empty(flat.shape, dtype=torch.float64, device=flat.device)
    scores[index] = sorted_importance(ordered.double())
    return scores.view(weight.shape)


def distortion_bound(
    model_or_weights: nn.Module | Sequence[Tensor],
    masks: Mapping[str, Tensor] | Sequence[Tensor | None],
) -> float:
    """Largest change of the output of a plain ReLU stack over all inputs of norm at most 1 (Eq. 7).

    sum_l ||W_l - M_l W_l||_F * prod_{j != l} ||W_j||_F over the pruned layers l.

    Args:
        model_or_weights: matrices in layer order, of f(x) = W_L relu(... relu(W_1 x)); or an `nn.Sequential` of
            `nn.Linear` without bias and `nn.ReLU`.
        masks: one a matrix, True = kept, None = an untouched layer; with a Sequential a mapping of parameter names.

    Raises:
        ValueError: other layers or biases, masks that do not fit.
        TypeError: `model_or_weights` or `masks` of another kind.
    """
    if isinstance(model_or_weights, nn.Module):
        weights, kept = _stack(model_or_weights, masks)
    else:
        if isinstance(masks, Mapping) or not isinstance(model_or_weights, Sequence):
            got = f"{type(model_or_weights).__name__} with {type(masks).__name__}"
            raise TypeError(f"masks: got {got}, wanted two sequences, or an nn.Sequential and a mapping")
        weights, kept = list(model_or_weights), list(masks)
    if len(weights) != len(kept):
        raise ValueError(f"masks: got {len(kept)}, wanted one a weight, {len(weights)}")
    norms = [float(w.detach().double().norm()) for w in weights]
    terms = []
    for layer, (weight, mask) in enumerate(zip(weights, kept, strict=True)):
        if mask is None:
            continue
        if mask.shape != weight.shape:
            raise ValueError(f"masks[{layer}]: got shape {tuple(mask.shape)}, wanted {tuple(weight.shape)}")
        removed = float(weight.detach().double().masked_fill(mask.to(weight.device), 0).norm())
        terms.append(removed * math.prod(norms[:layer] + norms[layer + 1 :]))
    return math.fsum(terms)


def _stack(
    model: nn.Module, masks: Mapping[str, Tensor] | Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor | None]]:
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks: got {type(masks).__name__}, wanted a mapping of parameter names with a model")
    if not isinstance(model, nn.Sequential):
        raise ValueError(f"model: got {type(model).__name__}, wanted an nn.Sequential of Linear and ReLU")
    weights: list[Tensor] = []
    kept: list[Tensor | None] = []
    for name, layer in model.named_children():
        if isinstance(layer, nn.ReLU):
            continue
        if not isinstance(layer, nn.Linear) or layer.bias is not None:
            raise ValueError(f"model: layer {name!r} is {layer}, wanted nn.Linear without bias or nn.ReLU")
        weights.append(stored_weight(layer, f"{name}.weight"))
        kept.append(masks.get(f"{name}.weight"))
    if unknown := set(masks) - {f"{name}.weight" for name, _ in model.named_children()}:
        raise ValueError(f"masks: got {sorted(unknown)}, which the model does not have")
    return weights, kept
