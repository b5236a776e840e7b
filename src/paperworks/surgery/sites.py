"""Activation sites of a network: where they are, how wide they are, and which linear layers stand before and after.

A site is found as in `paperworks.surgery.activations`: a parent module that holds an activation module as a child. Its
neighbours are read from structure where structure decides them (an `nn.Sequential`; a block that holds an up and a down
projection, or the gate, up and down projections of a gated MLP, and nothing else that could stand between), or from
the graph of one forward pass where a sample is given, which serves any network.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from paperworks.surgery.activations import replace_activations

__all__ = [
    "ActivationSite",
    "activation_sites",
    "as_call",
    "features",
    "freeze",
    "replace_site",
    "restore",
    "run_sample",
]

Targets = str | Sequence[str] | None

_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Mish,
    nn.Softplus, nn.Softsign, nn.Tanh, nn.PReLU, nn.Sigmoid, nn.Hardsigmoid,
)  # fmt: skip
_NOT_HIDDEN = (nn.Sigmoid, nn.Hardsigmoid)  # mostly gates and outputs: taken only when they are named
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class ActivationSite:
    """Where an activation module stands.

    Attributes:
        name: qualified name of the activation module in the model.
        width: hidden units, or None where neither structure nor a sample tells.
        dim: dimension of the units in the activation's input: -1 after linear layers, 1 after convolutions.
        before: qualified name of the layer that makes the pre-activations, where known.
        after: qualified name of the layer that alone reads the activations, each input feature a unit, so that a
            factor on a unit can move into its weights; None where there is none or it is not known.
        beside: in a gated MLP the layer whose output the activations are multiplied with on their way to `after`;
            `before` is the gate's projection then.
        adjacent: the activation alone reads what `before` makes, as it is, so that a unit can be taken out of both.
    """

    name: str
    width: int | None = None
    dim: int = -1
    before: str | None = None
    after: str | None = None
    beside: str | None = None
    adjacent: bool = False


def features(layer: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, a convolution or a `Conv1D` of transformers; None for anything else."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, _CONVOLUTIONS):
        return layer.in_channels, layer.out_channels
    weight = getattr(layer, "weight", None)
    if type(layer).__name__ == "Conv1D" and isinstance(weight, Tensor):
        return weight.shape[0], weight.shape[1]
    return None


def activation_sites(model: nn.Module, *, targets: Targets = None, sample: Any = None) -> list[ActivationSite]:
    """The activation sites of a model, in the order of its module tree.

    Args:
        model: any `nn.Module` with activation modules inside.
        targets: None takes all sites (sigmoids, which are mostly gates, only where they are named); a string is a
            regular expression for the whole qualified name; a list holds names, whole or from their end (`mlp.act`).
        sample: one input of the model (a tensor, a tuple of positional or a dict of keyword arguments). The neighbours
            are then read from the graph of a forward pass in eval mode; without it, from structure.

    Raises:
        TypeError: `model` is no `nn.Module`.
        ValueError: `targets` matches nothing (the nearest names are listed), or what it matches is a function that
            cannot be replaced (it is named), or a site sees several widths in one pass of the sample.
    """
    candidates: dict[str, Any] = {}

    def look(name: str, value: Any) -> bool:
        candidates[name] = value
        return False

    replace_activations(model, lambda old: old, types=_ACTIVATIONS, include=look)
    modules = {
        name: value
        for name, value in candidates.items()
        if name and isinstance(value, nn.Module) and _is_child(model, name)
    }
    functions = [name for name in candidates if name and name not in modules]
    names = _selected(list(modules), functions, targets)
    if targets is None:
        names = [name for name in names if not isinstance(modules[name], _NOT_HIDDEN)] or names
    sites = [_from_structure(model, name) for name in _one_name_each(model, names)]
    if sample is None:
        return sites
    from paperworks.surgery.site_graph import traced_sites

    return traced_sites(model, sites, sample)


def replace_site(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` at a site and return what was there. The module takes its parent's train/eval mode."""
    parent = model.get_submodule(name.rpartition(".")[0])
    old = model.get_submodule(name)
    parent.add_module(name.rpartition(".")[2], module.train(parent.training))
    return old


def freeze(model: nn.Module) -> dict[str, bool]:
    """Take every parameter out of training; returns what `restore` wants: by name, whether it was trained."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    return before


def restore(model: nn.Module, trained: dict[str, bool]) -> None:
    """Undo `freeze`. Raises ValueError for a parameter that the model has and `trained` does not."""
    for name, parameter in model.named_parameters():
        if name not in trained:
            raise ValueError(f"trained: got no entry for {name!r}, wanted what freeze() returned for this model")
        parameter.requires_grad_(trained[name])


def as_call(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A sample as positional and keyword arguments: a tensor or tuple is positional, a mapping is by keyword."""
    if hasattr(sample, "keys") and hasattr(sample, "items"):
        return (), dict(sample.items())
    return (tuple(sample) if isinstance(sample, list | tuple) else (sample,)), {}


def run_sample(model: nn.Module, sample: Any) -> Any:
    """The model's output for one input: a tensor, a tuple of positional or a dict of keyword arguments."""
    args, kwargs = as_call(sample)
    return model(*args, **kwargs)


# --- which sites ---


def _is_child(model: nn.Module, name: str) -> bool:
    parent, _, key = name.rpartition(".")
    try:
        return key in model.get_submodule(parent)._modules
    except AttributeError:  # a module inside a plain list or dict, which registers nothing
        return False


def _one_name_each(model: nn.Module, names: list[str]) -> list[str]:
    """One name for each place: a block held under two names has its sites under both."""
    places: dict[tuple[int, str], str] = {}
    for name in names:
        parent, _, key = name.rpartition(".")
        places.setdefault((id(model.get_submodule(parent)), key), name)
    return list(places.values())


def _selected(names: list[str], functions: list[str], targets: Targets) -> list[str]:
    patterns = None if targets is None else [targets] if isinstance(targets, str) else list(targets)

    def match(pattern: str, name: str) -> bool:
        if isinstance(targets, str):
            return re.fullmatch(pattern, name) is not None
        return name == pattern or name.endswith(f".{pattern}")

    held = [n for n in functions if patterns is None or any(match(p, n) for p in patterns)]
    found = [n for n in names if patterns is None or any(match(p, n) for p in patterns)]
    if held and (patterns is not None or not found):
        raise ValueError(f"targets: {held[0]!r} is a function or is in a plain list, wanted an activation module there")
    if held:
        warnings.warn(f"{held} are functions or in plain lists, not modules: they are left as they are", stacklevel=3)
    for pattern in patterns or ():
        if not any(match(pattern, name) for name in found):
            near = difflib.get_close_matches(pattern, names, 5, 0.3) or names[:5]
            raise ValueError(f"targets: {pattern!r} matches no activation module; near: {', '.join(near) or 'none'}")
    if not found:
        raise ValueError("model: got one without activation modules, wanted at least one")
    return found


# --- neighbours from structure ---


def _from_structure(model: nn.Module, name: str) -> ActivationSite:
    parent = model.get_submodule(name.rpartition(".")[0])
    if not _is_sequential(parent):
        return _in_block(model, name)
    before, after = _scan(model, name, -1), _scan(model, name, +1)
    adjacent = before is not None and before == _scan(model, name, -1, norms=False)
    width = dim = None
    if before is not None:
        layer = model.get_submodule(before)
        width, dim = features(layer)[1], unit_dim(layer)  # type: ignore[index]
    if after is not None:
        layer = model.get_submodule(after)
        inputs = features(layer)[0]  # type: ignore[index]
        if width is None:
            width, dim = inputs, unit_dim(layer)
        if inputs != width or getattr(layer, "groups", 1) != 1 or unit_dim(layer) != dim:
            after = None
    return ActivationSite(name, width, -1 if dim is None else dim, before, after, adjacent=adjacent)


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """As `named_children`, which passes over a module that stands twice."""
    return [(key, child) for key, child in module._modules.items() if child is not None]


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def unit_dim(layer: nn.Module) -> int:
    """Dimension of the units in what a layer makes: 1 for convolutions, else -1."""
    return 1 if isinstance(layer, _CONVOLUTIONS) else -1


def _scan(model: nn.Module, name: str, step: int, norms: bool = True) -> str | None:
    """The first layer before (-1) or after (+1) a child of nested `nn.Sequential`s, if only what lets units through
    stands between: on the way back norms and dropout, on the way forth dropout (a norm mixes or rescales units)."""
    passed = (*_DROPOUTS, nn.Identity, *(_NORMS if step < 0 and norms else ()), *((nn.Flatten,) if step > 0 else ()))

    def layers(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if _is_sequential(module):
            for key, child in _children(module)[::step]:
                yield from layers(f"{prefix}.{key}", child)
        else:
            yield prefix, module

    while name:
        parent_name, _, key = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        if not _is_sequential(parent):
            return None
        children = _children(parent)
        at = [k for k, _ in children].index(key)
        for sibling, child in children[at + 1 :] if step > 0 else children[:at][::-1]:
            for found, layer in layers(f"{parent_name}.{sibling}".lstrip("."), child):
                if features(layer) is not None:
                    return found
                if not isinstance(layer, passed):
                    return None
        if not parent_name:
            return None
        name = parent_name
    return None


def _in_block(model: nn.Module, name: str) -> ActivationSite:
    """A block with an up and a down projection, with a gate beside them, or with an up projection whose down
    projection is in the next block (BERT). Where norms or other layers share the block, only the width is taken."""
    parent_name, _, key = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    prefix = f"{parent_name}." if parent_name else ""
    found = {k: f for k, child in parent.named_children() if (f := features(child)) is not None}
    keys = list(found)
    for i in range(len(keys) - 1, 0, -1):
        down = keys[i]
        width = found[down][0]
        ups = [k for k in keys[:i] if found[k][1] == width]
        fused = [k for k in keys[:i] if found[k][1] == 2 * width]
        if not ups and not fused:
            continue
        gate = next((k for k in ups if "gate" in k or k in ("w1", "wi_0")), (ups or fused)[0])
        others = [c for k, c in parent.named_children() if k not in found and k != key]
        plain = all(isinstance(c, (*_DROPOUTS, nn.Identity)) for c in others) and len(ups or fused) == len(keys) - 1
        dim = unit_dim(parent.get_submodule(down))
        plain = plain and dim == -1 and len(keys) <= 3
        beside = next((prefix + k for k in ups if k != gate), None)
        after = prefix + down if plain else None
        return ActivationSite(name, width, dim, prefix + gate, after, beside, adjacent=plain and bool(ups))
    if len(keys) != 1:
        return ActivationSite(name)
    layer = parent.get_submodule(keys[0])
    inputs, width = found[keys[0]]
    after = _in_next_block(model, parent_name, inputs, width)
    return ActivationSite(name, width, unit_dim(layer), prefix + keys[0], after, adjacent=after is not None)


def _in_next_block(model: nn.Module, block: str, inputs: int, width: int) -> str | None:
    if not block:
        return None
    above, _, key = block.rpartition(".")
    siblings = [k for k, _ in model.get_submodule(above).named_children()]
    following = siblings[siblings.index(key) + 1 : siblings.index(key) + 2]
    for sibling in following:
        name = f"{above}.{sibling}".lstrip(".")
        layers = [(k, features(child)) for k, child in model.get_submodule(name).named_children()]
        matching = [k for k, f in layers if f == (width, inputs)]
        if key == "intermediate" and sibling == "output" and len(matching) == 1:
            return f"{name}.{matching[0]}"
    return None
