"""Find the gated feed-forward networks of a language model: down_proj(act_fn(gate_proj(x)) * up_proj(x)).

That is the MLP of Llama, Mistral, Qwen2, Qwen3, Gemma and their kin in transformers, and of any module that holds its
parts under the same four names.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class GatedMLP(NamedTuple):
    """Where a gated MLP stands: its qualified name, empty for the model itself, and the module."""

    name: str
    module: nn.Module


def find_gated_mlps(model: nn.Module) -> list[GatedMLP]:
    """The gated MLPs of `model` in the order of its modules, each module once.

    A gated MLP holds modules named `gate_proj`, `up_proj` and `down_proj` and a callable `act_fn`. The projections may
    be anything: linear layers, quantised ones, adapters around them.

    Raises:
        TypeError: `model` is no `nn.Module`.
        ValueError: it has no gated MLP; the message says what was looked for and which MLPs are there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, wanted an nn.Module")
    found = [GatedMLP(name, module) for name, module in model.named_modules() if _is_gated(module)]
    if not found:
        kinds = sorted({type(m).__name__ for m in model.modules() if "mlp" in type(m).__name__.lower()})
        raise ValueError(
            f"model: got {type(model).__name__} without gated MLPs, wanted modules such as LlamaMLP, with "
            f"{', '.join(PROJECTIONS)} and act_fn; MLPs in it: {', '.join(kinds) or 'none'}"
        )
    return found


def _is_gated(module: nn.Module) -> bool:
    projections = all(isinstance(getattr(module, name, None), nn.Module) for name in PROJECTIONS)
    return projections and callable(getattr(module, "act_fn", None))
