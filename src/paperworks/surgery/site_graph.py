"""The neighbours of activation sites, read from the graph of one forward pass: for networks of any structure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from paperworks.surgery.recording import Recorder
from paperworks.surgery.sites import ActivationSite, features, replace_site, restore, run_sample, unit_dim

__all__ = ["traced_sites"]

# Operations that a factor on a unit passes through. A view is checked by the number of features at the layer's input.
_KEEPS_UNITS = re.compile(
    r"(Mul|NativeDropout|FusedDropout|ToCopy|View|UnsafeView|ReshapeAlias|Clone|Alias"
    r"|AvgPool\dD|AdaptiveAvgPool\dD)Backward\d"
)
_STEPS_BACK = 8  # from an activation's input to the layer that made it: a norm, a view, a chunk


def traced_sites(model: nn.Module, sites: Sequence[ActivationSite], sample: Any) -> list[ActivationSite]:
    """The sites with width, dimension and neighbours as one forward pass in eval mode shows them.

    During the pass a copy stands at every site, one operation with one input, so that an activation made of several
    operations does not look like several readers. The model is left as it was.

    Args:
        model: the model of the sites.
        sites: as `paperworks.surgery.sites.activation_sites` gives them.
        sample: one input: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        ValueError: a site sees several widths in the pass.
    """
    names = [site.name for site in sites]
    layers = [name for name, module in model.named_modules() if features(module) is not None]
    with _prepared(model, names), ExitStack() as stack:
        recorders: dict[tuple[str, str], Recorder] = {}
        ats: tuple[Literal["input"], Literal["output"]] = ("input", "output")
        for name in (*names, *layers):
            for at in ats:
                recorders[name, at] = stack.enter_context(Recorder(model, [name], at=at))
        output = run_sample(model, sample)
        seen = _Seen(layers, {key: _tensors(recorder, key[0]) for key, recorder in recorders.items()}, output)
        return [_with_neighbours(model, site, seen) for site in sites]


class _Copy(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.clone()


@contextmanager
def _prepared(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Eval mode, every parameter with a graph, a copy at every site; all of it undone afterwards."""
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    training = [(module, module.training) for module in model.modules()]
    held = {name: replace_site(model, name, _Copy()) for name in names}
    try:
        for module in model.modules():
            module.training = False
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.enable_grad():
            yield
    finally:
        for name, module in held.items():
            replace_site(model, name, module)
        restore(model, trained)
        for module, mode in training:
            module.training = mode


def _tensors(recorder: Recorder, name: str) -> list[Tensor]:
    try:
        return recorder.values[name]
    except RuntimeError:  # a module that this sample does not reach
        return []


class _Seen:
    """What one pass showed: tensors at sites and layers, and which node of the graph reads which."""

    def __init__(self, layers: list[str], tensors: dict[tuple[str, str], list[Tensor]], output: Any) -> None:
        self.tensors = tensors
        self.makers = {t.grad_fn: name for name in layers for t in tensors[name, "output"]}
        self.reads: dict[Any, list[str]] = {}
        for name in layers:
            for t in tensors[name, "input"]:
                self.reads.setdefault(t.grad_fn, []).append(name)
        self.readers: dict[Any, list[Any]] = {}
        leaves = _pytree.tree_leaves(dict(output) if hasattr(output, "keys") else output)
        waiting = [t.grad_fn for t in leaves if isinstance(t, Tensor) and t.grad_fn is not None]
        done = set(waiting)
        while waiting:
            node = waiting.pop()
            for source, _ in node.next_functions:
                if source is None:
                    continue
                self.readers.setdefault(source, []).append(node)
                if source not in done:
                    done.add(source)
                    waiting.append(source)


def _with_neighbours(model: nn.Module, site: ActivationSite, seen: _Seen) -> ActivationSite:
    inputs, outputs = seen.tensors[site.name, "input"], seen.tensors[site.name, "output"]
    if not inputs:
        return replace(site, after=None, beside=None, adjacent=False)
    node, before = inputs[0].grad_fn, None
    for _ in range(_STEPS_BACK):
        before = seen.makers.get(node)
        if before is not None or node is None or not node.next_functions:
            break
        node = node.next_functions[0][0]
    made = inputs[0].grad_fn
    adjacent = len(inputs) == 1 and made in seen.makers and len(seen.readers.get(made, [])) == 1
    before = before or site.before
    dim = unit_dim(model.get_submodule(before)) if before else 1 if inputs[0].ndim >= 4 else -1
    widths = sorted({t.shape[dim] for t in inputs})
    if len(widths) > 1:
        raise ValueError(
            f"model: {site.name!r} sees {widths} units in one pass, wanted one width: leave it out of targets"
        )
    found = ActivationSite(site.name, widths[0], dim, before, adjacent=adjacent)
    return _followed(model, found, outputs[0].grad_fn, seen) if len(outputs) == 1 else found


def _followed(model: nn.Module, site: ActivationSite, node: Any, seen: _Seen) -> ActivationSite:
    """Follow the activations while one operation alone reads them and keeps units apart, up to a layer's input."""
    beside = None
    while node is not None and len(readers := seen.readers.get(node, [])) == 1:
        if node in seen.reads:
            [name, *others] = seen.reads[node]
            layer = model.get_submodule(name)
            whole = features(layer)[0] == site.width and getattr(layer, "groups", 1) == 1  # type: ignore[index]
            once = not others and len(seen.tensors[name, "input"]) == 1
            fits = whole and once and unit_dim(layer) == site.dim
            return replace(site, after=name, beside=beside) if fits else site
        [reader] = readers
        if not _KEEPS_UNITS.fullmatch(reader.name()):
            return site
        if reader.name().startswith("Mul"):
            factors = [source for source, _ in reader.next_functions if source is not node and source is not None]
            beside = seen.makers.get(factors[0]) if factors else beside
        node = reader
    return site
