"""Put Kolmogorov-Arnold layers in the place of a model's `nn.Linear` layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from paperworks.measure.parameters import count_parameters

Select = str | Iterable[str] | Callable[[str, nn.Linear], bool] | None


@dataclass
class LinearReplacementReport:
    """What `replace_linear` did.

    Attributes:
        model: the model with its new layers (the new layer itself where the model was one `nn.Linear`).
        replaced: qualified names of the layers that were replaced, in the order of the tree.
        left: qualified names of the linear layers that stayed.
        parameters_before, parameters_after: of the whole model, shared ones once.
    """

    model: nn.Module
    replaced: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    parameters_before: int = 0
    parameters_after: int = 0


def replace_linear(
    model: nn.Module,
    factory: Callable[[int, int], nn.Module],
    include: Select = None,
    exclude: Select = None,
) -> LinearReplacementReport:
    """Replace the `nn.Linear` layers of `model`, in place, by `factory(in_features, out_features)`.

    A layer held under several names is replaced by one new layer at all of them. New layers take device, dtype and
    train/eval mode of the old; weights are not carried over. Subclasses of `nn.Linear` stay: other code reaches into
    them (`NonDynamicallyQuantizableLinear` of `nn.MultiheadAttention`). All layers are made before the first is put in.

    Args:
        model: any `nn.Module`.
        factory: a class such as `AFKANLayer` or `KANLinear`, or a function of the two sizes.
        include: which to take: a glob or several on qualified names (`*` also matches dots; a glob that matches a
            module takes what is inside it), or a function `(name, layer) -> bool`. None: all.
        exclude: which to leave, in the same form; stronger than `include`.

    Raises:
        TypeError: `model` is no module, `factory` cannot be called or made no module.
        ValueError: a glob of `include` matches no linear layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, wanted an nn.Module")
    if not callable(factory) or isinstance(factory, nn.Module):
        raise TypeError(f"factory: got {type(factory).__name__}, wanted a callable (in_features, out_features)")
    sites = {n: m for n, m in model.named_modules(remove_duplicate=False) if type(m) is nn.Linear}
    chosen = _chosen(sites, include) if include is not None else set(sites)
    spared = {id(sites[name]) for name in _chosen(sites, exclude, strict=False)}
    before = count_parameters(model)
    made: dict[int, nn.Module] = {}
    for name, old in sites.items():
        if name in chosen and id(old) not in made and id(old) not in spared:
            made[id(old)] = _made(factory, old)
    replaced = [name for name, old in sites.items() if id(old) in made]
    for name in replaced:
        new = made[id(sites[name])]
        parent, _, key = name.rpartition(".")
        if not key:
            model = new
        else:
            setattr(model.get_submodule(parent), key, new)
    left = [name for name in sites if name not in replaced]
    return LinearReplacementReport(model, replaced, left, before, count_parameters(model))


def _made(factory: Callable[[int, int], nn.Module], old: nn.Linear) -> nn.Module:
    new = factory(old.in_features, old.out_features)
    if not isinstance(new, nn.Module):
        raise TypeError(f"factory: returned {type(new).__name__}, wanted an nn.Module")
    return new.to(device=old.weight.device, dtype=old.weight.dtype).train(old.training)


def _chosen(sites: dict[str, nn.Linear], select: Select, strict: bool = True) -> set[str]:
    if callable(select):
        return {name for name, layer in sites.items() if select(name, layer)}
    globs = [select] if isinstance(select, str) else list(select or ())
    chosen: set[str] = set()
    for glob in globs:
        found = {name for name in sites if _matches(glob, name)}
        if strict and not found:
            known = ", ".join(map(repr, list(sites)[:5])) or "none"
            raise ValueError(f"include: {glob!r} matches no nn.Linear; the model has {len(sites)}: {known}")
        chosen |= found
    return chosen


def _matches(glob: str, name: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), glob) for n in range(1, len(parts) + 1))
