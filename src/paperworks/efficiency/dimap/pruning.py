"""One ratio, one shot: which weights of the three modules go (section 3 of arXiv 2404.13648)."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from paperworks.efficiency.dimap.importance import sorted_importance, sorted_magnitudes
from paperworks.efficiency.dimap.masks import Masks
from paperworks.surgery.swin_parts import MODULES, PATTERNS, Patterns, find_modules, parent_of, stage_of

__all__ = ["dimap_masks", "dimap_prune"]

Grouping = Literal["module", "model", "layer", "stage"]
GROUPINGS = ("module", "model", "layer", "stage")
CRITERIA = ("dimap", "magnitude")
Ratio = float | Mapping[str, float]


@dataclass(frozen=True)
class _Layer:
    """Weights that are scored as one matrix: a linear layer, or the query, key and value of one attention."""

    kind: str
    linears: tuple[tuple[str, nn.Linear], ...]

    def group(self, grouping: str) -> str:
        """The name of the ranking this layer takes part in."""
        first = self.linears[0][0]
        if grouping == "stage":
            return f"{stage_of(first)} {self.kind}".strip()
        return {"module": self.kind, "model": "model"}.get(grouping) or "+".join(name for name, _ in self.linears)


def dimap_masks(
    model: nn.Module,
    ratio: Ratio,
    *,
    grouping: Grouping = "module",
    criterion: Literal["dimap", "magnitude"] = "dimap",
    patterns: Patterns | None = None,
    semi_structured: tuple[int, int] | None = None,
) -> Masks:
    """Masks of the attention projections and MLPs that keep the most important weights. The model is left as it is.

    In each group, round(ratio * size) weights with the smallest scores go, ties by layer order and position. Where
    query, key and value are separate layers, those of one attention are scored as the one matrix they are elsewhere.

    Args:
        model: holds the layers that `find_modules` finds.
        ratio: part of the weights to remove, in [0, 1); or one by module, where a module not named stays whole (only
            with ``grouping="module"``).
        grouping: what is ranked together. "module": each of qkv, proj and mlp, as in the paper. "model": all. "layer":
            every layer by itself, which is uniform pruning. "stage": each module of each stage, which removes the same
            part of the multiply-adds as of the weights.
        criterion: "dimap" (Eq. 10), or "magnitude" (|w|).
        patterns: see `find_modules`.
        semi_structured: (n, m) keeps at most n of any m neighbours in a row, those of largest magnitude; what else
            goes for the ratio is ranked among the rest. (2, 4) is what sparse tensor cores read.

    Raises:
        ValueError: a ratio out of range or smaller than (n, m) removes, an unknown name, no prunable layer, a row that
            m does not divide, weights that are not finite.
        TypeError: quantised, integer or meta weights.
    """
    if grouping not in GROUPINGS:
        raise ValueError(f"grouping: got {grouping!r}, wanted one of {', '.join(GROUPINGS)}")
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: got {criterion!r}, wanted one of {', '.join(CRITERIA)}")
    ratios = _ratios(ratio, grouping)
    groups: dict[str, list[_Layer]] = {}
    for layer in _layers(model, patterns):
        groups.setdefault(layer.group(grouping), []).append(layer)
    masks: dict[str, Tensor] = {}
    thresholds = {}
    for name, layers in groups.items():
        made, thresholds[name] = _prune_group(layers, ratios[layers[0].kind], criterion, semi_structured)
        masks |= made
    order = [f"{name}.weight" for name, _ in model.named_modules() if f"{name}.weight" in masks]
    return Masks({name: masks[name] for name in order}, thresholds)


def dimap_prune(
    model: nn.Module,
    ratio: Ratio,
    *,
    grouping: Grouping = "module",
    criterion: Literal["dimap", "magnitude"] = "dimap",
    permanent: bool = False,
    patterns: Patterns | None = None,
    semi_structured: tuple[int, int] | None = None,
) -> Masks:
    """Prune `model` in place by `dimap_masks` and return the masks.

    Args:
        permanent: zero the weights themselves; parameter names stay as they are. Otherwise each weight gets a
            parametrisation with the buffer `weight_mask` (`torch.nn.utils.parametrize`) and keeps its dense values:
            `Masks.remove` ends either way.
        model, ratio, grouping, criterion, patterns, semi_structured: as in `dimap_masks`, with its errors.
    """
    masks = dimap_masks(
        model, ratio, grouping=grouping, criterion=criterion, patterns=patterns, semi_structured=semi_structured
    )
    if permanent:
        masks.apply(model)
    else:
        masks.attach(model)
    return masks


def _ratios(ratio: Ratio, grouping: str) -> dict[str, float]:
    if isinstance(ratio, Mapping):
        if grouping != "module":
            raise ValueError(f"ratio: got one a module with grouping={grouping!r}, wanted grouping='module'")
        if unknown := set(ratio) - set(MODULES):
            raise ValueError(f"ratio: got {sorted(map(str, unknown))}, wanted some of {', '.join(MODULES)}")
        ratios = {**dict.fromkeys(MODULES, 0.0), **ratio}
    else:
        ratios = dict.fromkeys(MODULES, ratio)
    for value in ratios.values():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"ratio: got {value!r}, wanted a number in [0, 1)")
        if not 0 <= value < 1:
            raise ValueError(f"ratio: got {value!r}, wanted a number in [0, 1)")
    return ratios


def _layers(model: nn.Module, patterns: Patterns | None) -> list[_Layer]:
    """The prunable layers in model order."""
    found = find_modules(model, patterns)
    layers: dict[str, _Layer] = {}
    for kind, linears in found.items():
        for name, linear in linears:
            key = f"{parent_of(name)} {kind}" if kind == "qkv" else name
            together = layers[key].linears if key in layers else ()
            layers[key] = _Layer(kind, (*together, (name, linear)))
    if not layers:
        raise ValueError(f"model: got {type(model).__name__} without {_what_is_prunable(model, patterns)}")
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return sorted(layers.values(), key=lambda layer: order[layer.linears[0][0]])


def _what_is_prunable(model: nn.Module, patterns: Patterns | None) -> str:
    for name, module in model.named_modules():
        # a quantised Linear is no nn.Linear, and its weight is a method
        if "Linear" in type(module).__name__ and callable(getattr(module, "weight", None)):
            raise TypeError(f"model: {name!r} is a quantised {type(module).__name__}, wanted floating-point weights")
    used = patterns or PATTERNS
    return f"a prunable layer, wanted nn.Linear modules whose names match {dict(used)}"


def _prune_group(
    layers: list[_Layer], ratio: float, criterion: str, semi_structured: tuple[int, int] | None
) -> tuple[dict[str, Tensor], float]:
    """Masks by parameter name, and the smallest score kept.

    Within a layer the score grows with the magnitude, so that a layer is a sorted list: a group is cut by a search over
    the sorted lists, and a layer then loses its smallest magnitudes. No list of all scores of a group is ever sorted.
    """
    scores, forced = [], 0
    for layer in layers:
        magnitudes = sorted_magnitudes(_weights(layer, semi_structured), layer.linears[0][0])
        scores.append(sorted_importance(magnitudes) if criterion == "dimap" else magnitudes.double())
        if semi_structured is not None:
            n, m = semi_structured
            forced += len(magnitudes) * (m - n) // m
    total = sum(len(s) for s in scores)
    remove = round(ratio * total)
    if remove < forced:
        raise ValueError(
            f"ratio: got {ratio}, wanted at least {forced / total:g} with semi_structured={semi_structured}"
        )
    removed, threshold = smallest_of_sorted(scores, remove)
    del scores
    masks = {}
    for layer, count in zip(layers, removed, strict=True):
        mask = _without_smallest(_weights(layer, semi_structured).abs(), count)
        sizes = [linear.weight.numel() for _, linear in layer.linears]
        for (name, linear), part in zip(layer.linears, mask.split(sizes), strict=True):
            masks[f"{name}.weight"] = part.view(linear.weight.shape)
    return masks, threshold


def _weights(layer: _Layer, semi_structured: tuple[int, int] | None) -> Tensor:
    """The layer's weights as one vector, with 0 where semi-structured sparsity forbids one."""
    parts = []
    for name, linear in layer.linears:
        weight = linear.weight.detach()
        if weight.is_meta or weight.is_quantized or not weight.is_floating_point():
            got = "meta" if weight.is_meta else weight.dtype
            raise TypeError(f"model: {name!r} has {got} weights, wanted floating-point weights with values")
        if semi_structured is not None:
            weight = weight.masked_fill(~_block_mask(weight, *semi_structured, name), 0)
        parts.append(weight.flatten())
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _block_mask(weight: Tensor, n: int, m: int, name: str) -> Tensor:
    """True for the n largest magnitudes of each m neighbours of a row."""
    if not 0 < n < m:
        raise ValueError(f"semi_structured: got ({n}, {m}), wanted 0 < n < m")
    if weight.shape[1] % m:
        raise ValueError(f"semi_structured: {name!r} has rows of {weight.shape[1]}, which {m} does not divide")
    blocks = weight.abs().reshape(-1, m)
    kept = torch.zeros(blocks.shape, dtype=torch.bool, device=weight.device)
    # stable, ascending: of equal ones the later stay, as everywhere
    kept.scatter_(1, blocks.sort(dim=1, stable=True).indices[:, m - n :], True)
    return kept.view(weight.shape)


def smallest_of_sorted(lists: list[Tensor], k: int) -> tuple[list[int], float]:
    """How many of the k smallest values of ascending float64 lists each list holds, and the smallest value that is not.

    Ties go by the order of the lists. The second result is NaN where nothing is left. Values are >= 0.
    """

    def at_most(bits: int) -> list[int]:
        return [_count(values, bits) for values in lists]

    total = sum(len(values) for values in lists)
    if k == 0:
        removed = [0] * len(lists)
    else:
        # non-negative float64 are ordered as their bits are: 63 halvings reach the k-th smallest value exactly
        low, high = -1, (0x7FF << 52) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if sum(at_most(middle)) >= k else (middle, high)
        removed, upto = at_most(high - 1) if high > 0 else [0] * len(lists), at_most(high)
        for i, most in enumerate(upto):
            removed[i] += min(most - removed[i], k - sum(removed))
    rest = [float(values[count]) for values, count in zip(lists, removed, strict=True) if count < len(values)]
    return removed, min(rest) if k < total else float("nan")


def _count(values: Tensor, bits: int) -> int:
    """How many values of an ascending list are at most the float64 with these bits."""
    bound = torch.tensor([bits], dtype=torch.int64).view(torch.float64).to(values.device)
    return int(torch.searchsorted(values, bound, right=True))


def _without_smallest(magnitudes: Tensor, count: int) -> Tensor:
    """False at the `count` smallest magnitudes, of equal ones at the first."""
    if count == 0:
        return torch.ones(magnitudes.shape, dtype=torch.bool, device=magnitudes.device)
    cut = _kth_smallest(magnitudes, count)
    mask = magnitudes >= cut
    ties = torch.nonzero(magnitudes == cut).flatten()
    mask[ties[: count - int((~mask).sum())]] = False
    return mask


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # several times as fast as torch.kthvalue, which carries indices
        return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])
    return torch.kthvalue(values, k).values
