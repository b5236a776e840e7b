"""Find the parts of hierarchical vision transformers: attention projections and MLPs, by name and structure.

Understood: Swin and SwinV2 as timm, transformers and torchvision build them, and what follows the same names (PVT,
Twins, MaxViT and plain ViTs). What is never found: patch embedding, patch merging, heads, and the MLPs that make
position biases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

__all__ = ["MODULES", "PATTERNS", "Attention", "Mlp", "find_attentions", "find_mlps", "find_modules", "stage_of"]

MODULES = ("qkv", "proj", "mlp")
"""The three kinds of weights: into the attention, out of it, and both layers of the MLPs."""

Patterns = Mapping[str, str | Sequence[str]]

_ATTENTION = r"(?:attn|attention|self_attention|attention\.self|attention\.attention)"
PATTERNS: Mapping[str, tuple[str, ...]] = {
    "qkv": (rf"(?:^|\.){_ATTENTION}\.(?:qkv|q|k|v|kv|q_proj|k_proj|v_proj|query|key|value)$",),
    "proj": (r"(?:^|\.)(?:attn|attention|self_attention)\.(?:proj|o_proj|out_proj|output\.dense)$",),
    "mlp": (
        r"(?:^|\.)mlp\.(?:fc1|fc2|dense1|dense2|\d+)$",
        r"(?:^|\.)intermediate\.dense$",
        r"(?:^|\.)(?<!attention\.)output\.dense$",
    ),
}
"""Regular expressions searched in module names. `cpb_mlp` and `continuous_position_bias_mlp` match none of them."""

_NO_ACTIVATION = (nn.Linear, nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class Attention:
    """One attention: its module, query, key and value weights as stored (fused or apart), and the projection out."""

    name: str
    module: nn.Module
    qkv: tuple[tuple[str, nn.Linear], ...]
    proj: tuple[str, nn.Linear]


@dataclass(frozen=True)
class Mlp:
    """One MLP: fc2(activation(fc1(x))). `activation` is None where what stands between the two is not one module."""

    fc1: tuple[str, nn.Linear]
    fc2: tuple[str, nn.Linear]
    activation: nn.Module | None


def find_modules(model: nn.Module, patterns: Patterns | None = None) -> dict[str, list[tuple[str, nn.Linear]]]:
    """The linear layers of each of `MODULES`, in the order and under the names of ``model.named_modules()``.

    Args:
        model: any module.
        patterns: for some of "qkv", "proj", "mlp" a regular expression, or several, searched (`re.search`) in module
            names, instead of `PATTERNS`.

    Raises:
        TypeError: `model` is no `nn.Module`.
        ValueError: a key of `patterns` that is not in `MODULES`, a broken expression, or one layer in two modules.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, wanted an nn.Module")
    compiled = _compiled(patterns)
    found: dict[str, list[tuple[str, nn.Linear]]] = {kind: [] for kind in MODULES}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        kinds = [kind for kind, expressions in compiled.items() if any(e.search(name) for e in expressions)]
        if len(kinds) > 1:
            raise ValueError(f"patterns: {name!r} matches {' and '.join(kinds)}, wanted one module a layer")
        if kinds:
            found[kinds[0]].append((name, module))
    return found


def _compiled(patterns: Patterns | None) -> dict[str, list[re.Pattern[str]]]:
    patterns = patterns or {}
    if unknown := set(patterns) - set(MODULES):
        raise ValueError(f"patterns: got {sorted(unknown)}, wanted some of {', '.join(MODULES)}")
    compiled = {}
    for kind in MODULES:
        given = patterns.get(kind, PATTERNS[kind])
        try:
            compiled[kind] = [re.compile(text) for text in ([given] if isinstance(given, str) else given)]
        except re.error as error:
            raise ValueError(f"patterns[{kind!r}]: got {given!r}, wanted regular expressions ({error})") from error
    return compiled


def parent_of(name: str) -> str:
    """The name of the module that holds `name`; "" for the model itself."""
    return name.rpartition(".")[0]


def stage_of(name: str) -> str:
    """The stage a layer belongs to: its name up to the first number ("layers.0"); "" where it has none."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if first is None else ".".join(parts[: first + 1])


def find_attentions(model: nn.Module, patterns: Patterns | None = None) -> list[Attention]:
    """The attentions whose input and output weights are both found: query, key and value share a parent module."""
    found = find_modules(model, patterns)
    inputs: dict[str, list[tuple[str, nn.Linear]]] = {}
    for name, linear in found["qkv"]:
        inputs.setdefault(parent_of(name), []).append((name, linear))
    attentions = []
    for parent, qkv in inputs.items():
        # transformers' SwinV2 keeps query, key and value one level below the projection
        for holder in (parent, parent_of(parent)):
            proj = [(n, p) for n, p in found["proj"] if n.startswith(f"{holder}.")]
            if len(proj) == 1:
                attentions.append(Attention(holder, model.get_submodule(holder), tuple(qkv), proj[0]))
                break
    return attentions


def find_mlps(model: nn.Module, patterns: Patterns | None = None) -> list[Mlp]:
    """The pairs of consecutive MLP layers whose shapes fit, with the activation between them."""
    linears = find_modules(model, patterns)["mlp"]
    mlps, i = [], 0
    while i + 1 < len(linears):
        first, second = linears[i], linears[i + 1]
        fits = first[1].out_features == second[1].in_features and first[1].in_features == second[1].out_features
        if fits and stage_of(first[0]) == stage_of(second[0]):
            between = [
                child
                for child in model.get_submodule(parent_of(first[0])).children()
                if not isinstance(child, _NO_ACTIVATION)
            ]
            mlps.append(Mlp(first, second, between[0] if len(between) == 1 else None))
            i += 2
        else:
            i += 1
    return mlps
