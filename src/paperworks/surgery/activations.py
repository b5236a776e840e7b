"""Find the activation sites of any `torch.nn` model and put another activation there.

A *site* is a place where a parent module holds an activation module as a child; it is written as the child's qualified
name (`encoder.layer.0.intermediate.act`). Sites are found by walking the module tree, so the same call serves plain
torch, transformers, MONAI, diffusers and timm models, activations inside norm layers included.

What a walk over modules cannot see is not touched: a function called inside `forward` (`F.gelu(x)`) leaves no trace;
a function that a module *holds* (`TransformerEncoderLayer.activation = F.relu`) is listed as not replaceable; one
module called several times under one name (`self.relu` used thrice in a block) is one site.
"""

import copy
import functools
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ReplacementReport", "Select", "replace_activations"]

Select = str | Sequence[str] | Callable[[str, Any], bool] | None
Held = tuple[str, Any]  # qualified name, value

_DEFAULT_TYPES: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)

# Libraries carry their own classes for torch's functions; they count as the torch type whose function they compute.
_SAME_AS: dict[str, type[nn.Module]] = {
    "timm.layers.activations.GELU": nn.GELU,
    "timm.layers.activations.GELUTanh": nn.GELU,
    "timm.layers.activations.QuickGELU": nn.GELU,
    "timm.layers.activations.Swish": nn.SiLU,
    "timm.layers.activations.HardSwish": nn.Hardswish,
    "timm.layers.activations_me.SwishMe": nn.SiLU,
    "timm.layers.activations_me.HardSwishMe": nn.Hardswish,
    "monai.networks.blocks.activation.Swish": nn.SiLU,
    "monai.networks.blocks.activation.MemoryEfficientSwish": nn.SiLU,
    "transformers.models.bloom.modeling_bloom.BloomGelu": nn.GELU,
    "transformers.models.lxmert.modeling_lxmert.GeLU": nn.GELU,
    "diffusers.models.activations.FP32SiLU": nn.SiLU,
    "diffusers.models.controlnets.controlnet_union.QuickGELU": nn.GELU,
    "diffusers.models.transformers.t5_film_transformer.NewGELUActivation": nn.GELU,
}

# In transformers' table of activations, but no activation of a hidden layer: the identity and a router's score.
_NOT_HIDDEN = {"LinearActivation", "SqrtSoftplusActivation"}

_FUNCTION_TYPES: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU,
    F.relu_: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    F.relu6: nn.ReLU6,
    F.silu: nn.SiLU,
    F.gelu: nn.GELU,
    F.hardswish: nn.Hardswish,
    F.hardtanh: nn.Hardtanh,
    F.hardsigmoid: nn.Hardsigmoid,
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.celu: nn.CELU,
    F.selu: nn.SELU,
    F.mish: nn.Mish,
    F.softplus: nn.Softplus,
    F.softsign: nn.Softsign,
    F.logsigmoid: nn.LogSigmoid,
    F.prelu: nn.PReLU,
    F.rrelu: nn.RReLU,
    F.tanh: nn.Tanh,
    torch.tanh: nn.Tanh,
    F.sigmoid: nn.Sigmoid,
    torch.sigmoid: nn.Sigmoid,
}

# A function unknown to the table is taken for an activation by the name of the attribute that holds it.
_ACTIVATION_ATTRIBUTE = re.compile(r"(?:\w*_)?(?:act|activation|nonlinearity)(?:_(?:fn|func|function))?\d*")

_MODULE_INTERNALS = frozenset(vars(nn.Module()))
_PARAMETER_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class ReplacementReport:
    """What `replace_activations` did. The lists hold qualified names in the order of the model's module tree.

    Attributes:
        model: the changed model: the one given, or a copy with `inplace_model=False`. A model that is itself an
            activation cannot be changed in place: then `model` is the new activation and its name is `""`.
        replaced: one name a site. A block held under two names has its sites under both.
        shared: those of `replaced` whose new module also stands under another name of `replaced`.
        not_replaceable: activations that a module holds without registering them as a child: bare functions, and
            modules inside a plain list, tuple or dict. They still act as before.
    """

    model: nn.Module
    replaced: list[str]
    shared: list[str]
    not_replaceable: list[str]


@dataclass
class _Slot:
    """One reference to an activation: `parent._modules[key]`, under all the names that lead to it."""

    path: tuple[nn.Module, ...]  # from the root to the activation itself
    key: str
    names: list[str] = field(default_factory=list)
    new: nn.Module | None = None

    @property
    def old(self) -> nn.Module:
        return self.path[-1]

    @property
    def parent(self) -> nn.Module | None:
        return self.path[-2] if len(self.path) > 1 else None


def replace_activations(
    model: nn.Module,
    factory: Callable[..., nn.Module],
    *,
    types: type[nn.Module] | tuple[type[nn.Module], ...] = _DEFAULT_TYPES,
    include: Select = None,
    exclude: Select = None,
    inplace_model: bool = True,
    unshare: bool = False,
) -> ReplacementReport:
    """Replace the activation modules of `model` by the ones `factory` makes.

    All new modules are made before the first is put in: a factory that raises leaves the model as it was. Each takes
    the device and dtype of the nearest floating-point parameter or buffer around its site, and its parent's
    train/eval mode. A new module is whatever the factory makes: a site that worked in place (`nn.ReLU(inplace=True)`)
    no longer overwrites its input. Weights keep their names, so old checkpoints load with `strict=False`.

    Args:
        model: any `nn.Module` that is not compiled by TorchScript.
        factory: a class or function giving a new activation. Called with the old module if it has a required
            positional parameter, else with no argument, so `ASH`, `lambda: ASH(alpha=2.0)` and
            `lambda old: Mine(inplace=old.inplace)` all work. Handing back the old module leaves that site alone.
        types: module classes to replace (subclasses too). A class of timm, MONAI, diffusers or of one transformers
            model that computes one of torch's functions (MONAI's `Swish`) counts as torch's class. The activations
            of transformers' own table (`NewGELUActivation`, `SiLUActivation`, ...) are replaced whatever `types`
            says; torch's classes in that table (`nn.Tanh`) go by `types`.
        include: which sites to take: a glob or several on the qualified name (`*` also matches dots; a glob that
            matches a module takes all sites inside it), or a callable `(name, activation) -> bool`. None: all.
        exclude: which sites to leave, in the same form; stronger than `include`. Both also select what is listed as
            not replaceable. A block held under several names is included by any of them and excluded by any of them.
        inplace_model: change `model` itself; False works on a deep copy.
        unshare: one module used at several sites is by default replaced by one new module at the same sites (one
            call of the factory). True gives each site in an `nn.Sequential` its own, which is safe there because
            only the container calls its children.

    Raises:
        TypeError: `model` is no `nn.Module` or is a TorchScript module; `types` holds something else than module
            classes; `factory` is no class or function, needs more than one argument, or made no `nn.Module`.
        ValueError: a glob of `include` matches nothing.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module (of a pipeline, pass one of its models)")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model: got a TorchScript module, whose children are compiled; replace before scripting")
    kinds = _checked_types(types)
    make = _maker(factory)
    root = model if inplace_model else copy.deepcopy(model)

    sites, held = _sites_and_held(root, kinds)
    _check_globs(include, [*sites, *(name for name, _ in held)])
    _check_globs(exclude)
    slots = [slot for slot in _once(sites.values()) if _taken(slot.names, slot.old, include, exclude)]
    _make_all(slots, make, unshare)
    for slot in slots:
        root = _put(slot, root)

    new = {name: id(slot.new) for name, slot in sites.items() if slot.new is not None}
    uses = Counter(new.values())
    return ReplacementReport(
        model=root,
        replaced=list(new),
        shared=[name for name in new if uses[new[name]] > 1],
        not_replaceable=[name for name, value in held if _taken([name], value, include, exclude)],
    )


def _checked_types(types: object) -> tuple[type[nn.Module], ...]:
    kinds = types if isinstance(types, tuple) else (types,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"types: got {kind!r}, want nn.Module classes (a class or a tuple of them)")
    return kinds


def _maker(factory: Callable[..., nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """`factory` as a function of the old module, with its result checked."""
    if isinstance(factory, nn.Module):
        name = type(factory).__name__
        raise TypeError(f"factory: got an instance of {name}, want the class or `lambda: {name}(...)`")
    if not callable(factory):
        raise TypeError(f"factory: got {type(factory).__name__}, want a class or function that returns an nn.Module")
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except ValueError:  # a callable of C code without a signature
        parameters = []
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
        names = ", ".join(p.name for p in required)
        raise TypeError(f"factory: needs the arguments ({names}), want none or one (the old module)")

    def make(old: nn.Module) -> nn.Module:
        new = factory(old) if required else factory()
        if not isinstance(new, nn.Module):
            raise TypeError(f"factory: returned {type(new).__name__}, want an nn.Module")
        return new

    return make


def _is_activation(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    if isinstance(module, kinds):
        return True
    cls = type(module)
    qualified = f"{cls.__module__}.{cls.__qualname__}"
    if qualified in _SAME_AS:
        return issubclass(_SAME_AS[qualified], kinds)
    return cls in _transformers_activations()


def _transformers_activations() -> set[type]:
    """transformers' own activation classes; empty while transformers is not imported, so that no model can hold one."""
    table = getattr(sys.modules.get("transformers.activations"), "ACT2CLS", {})
    classes = {entry[0] if isinstance(entry, tuple) else entry for entry in table.values()}
    return {c for c in classes if not c.__module__.startswith("torch.") and c.__name__ not in _NOT_HIDDEN}


def _descend(
    module: nn.Module, stop: Callable[[nn.Module], bool], above: tuple[nn.Module, ...] = (), name: str = ""
) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
    """(qualified name, path from the root) of `module` and all below, a shared one once a name.

    Does not go into a module for which `stop` is true, nor round a cycle.
    """
    path = (*above, module)
    yield name, path
    if stop(module):
        return
    for key, child in module._modules.items():
        if child is not None and all(child is not m for m in path):
            yield from _descend(child, stop, path, f"{name}.{key}" if name else key)


def _sites_and_held(root: nn.Module, kinds: tuple[type[nn.Module], ...]) -> tuple[dict[str, _Slot], list[Held]]:
    """The slot of every site by its name, in the order of the tree, and what is held without being registered."""
    slots: dict[tuple[int, str], _Slot] = {}
    sites: dict[str, _Slot] = {}
    held: list[Held] = []
    is_activation = functools.partial(_is_activation, kinds=kinds)
    for name, path in _descend(root, is_activation):
        if is_activation(path[-1]):
            key = name.rpartition(".")[2]
            parent = id(path[-2]) if len(path) > 1 else 0
            sites[name] = slots.setdefault((parent, key), _Slot(path, key))
            sites[name].names.append(name)
        else:
            held += [(f"{name}.{key}" if name else key, value) for key, value in _held(path[-1], kinds)]
    return sites, held


def _once(slots: Iterable[_Slot]) -> list[_Slot]:
    return list({id(slot): slot for slot in slots}.values())


def _held(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[Held]:
    """(attribute, value) of the activations that `module` holds without registering them."""
    for attribute, value in vars(module).items():
        if attribute in _MODULE_INTERNALS:
            continue
        items: list[Held] = [(attribute, value)]
        if isinstance(value, list | tuple):
            items = [(f"{attribute}.{i}", item) for i, item in enumerate(value)]
        elif isinstance(value, dict):
            items = [(f"{attribute}.{key}", item) for key, item in value.items()]
        for key, item in items:
            if isinstance(item, nn.Module):
                if _is_activation(item, kinds):
                    yield key, item
            elif _is_activation_function(attribute, item, kinds):
                yield key, item


def _is_activation_function(attribute: str, value: object, kinds: tuple[type[nn.Module], ...]) -> bool:
    function = value
    while isinstance(function, functools.partial):
        function = function.func
    if not callable(function) or isinstance(function, type):
        return False
    try:
        kind = _FUNCTION_TYPES.get(function)
    except TypeError:  # a callable object that cannot be hashed
        kind = None
    if kind is not None:
        return issubclass(kind, kinds)
    return _ACTIVATION_ATTRIBUTE.fullmatch(attribute) is not None


def _globs(select: Select) -> list[str]:
    if isinstance(select, str):
        return [select]
    return [] if select is None or callable(select) else list(select)


def _matches(glob: str, name: str) -> bool:
    """Whether `glob` matches `name` or a module that contains it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), glob) for n in range(1, len(parts) + 1))


def _check_globs(select: Select, names: list[str] | None = None) -> None:
    """Refuse what is no glob and, with `names`, a glob that matches none of them."""
    for glob in _globs(select):
        if not isinstance(glob, str):
            raise TypeError(f"include/exclude: got {glob!r}, want globs on qualified names, or one callable")
        if names is not None and not any(_matches(glob, name) for name in names):
            shown = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(f"include: {glob!r} matches no activation; the model has {len(names)}: {shown or 'none'}")


def _selects(select: Select, name: str, value: object) -> bool:
    if callable(select):
        return bool(select(name, value))
    return any(_matches(glob, name) for glob in _globs(select))


def _taken(names: list[str], value: object, include: Select, exclude: Select) -> bool:
    if include is not None and not any(_selects(include, name, value) for name in names):
        return False
    return exclude is None or not any(_selects(exclude, name, value) for name in names)


def _make_all(slots: list[_Slot], make: Callable[[nn.Module], nn.Module], unshare: bool) -> None:
    """Give each slot its new module, one for each old one; a slot whose old module was handed back keeps None."""
    made: dict[int, nn.Module] = {}
    for slot in slots:
        if unshare and _calls_each_child_once(slot.parent):
            new = make(slot.old)
        else:
            new = made[id(slot.old)] if id(slot.old) in made else make(slot.old)
            made[id(slot.old)] = new
        slot.new = None if new is slot.old else new


def _calls_each_child_once(parent: nn.Module | None) -> bool:
    return isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward


def _put(slot: _Slot, root: nn.Module) -> nn.Module:
    """Put the slot's new module in its place; the root after it."""
    new = slot.new
    if new is None:
        return root
    for tensor in chain.from_iterable(chain(m.parameters(), m.buffers()) for m in reversed(slot.path)):
        if tensor.dtype in _PARAMETER_DTYPES:
            new.to(device=tensor.device, dtype=tensor.dtype)
            break
    new.train(slot.old.training if slot.parent is None else slot.parent.training)
    if slot.parent is None:
        return new
    slot.parent.add_module(slot.key, new)
    if slot.key == "activation" and hasattr(slot.parent, "activation_relu_or_gelu"):
        _leave_fast_path(slot.parent, slot.path)
    return root


def _leave_fast_path(layer: nn.Module, path: tuple[nn.Module, ...]) -> None:
    """Keep torch's fused encoder from computing the old activation.

    `TransformerEncoderLayer` notes at construction that its activation is ReLU or GELU and in inference calls a
    kernel with that function built in, without looking at the module again; `TransformerEncoder` then packs padded
    batches into nested tensors, which only that kernel can take.
    """
    layer.activation_relu_or_gelu = 0  # type: ignore[assignment]
    for module in path:
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
