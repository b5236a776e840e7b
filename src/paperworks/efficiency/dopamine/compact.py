"""Real speed from hard gates: units that stay closed leave the layers on both sides."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paperworks.efficiency.dopamine.activation import GatedActivation
from paperworks.efficiency.dopamine.folding import scaled_inputs
from paperworks.efficiency.dopamine.report import batch_inputs, recorded_pass
from paperworks.surgery.site_graph import traced_sites as _traced
from paperworks.surgery.sites import ActivationSite, features, replace_site

if TYPE_CHECKING:
    from paperworks.efficiency.dopamine.adapter import TauGateModel

__all__ = ["compacted", "traced_sites"]


def traced_sites(adapted: TauGateModel, sample: Any) -> list[ActivationSite]:
    """The sites of a gated model with the neighbours that a forward pass of one input batch shows."""
    return _traced(adapted.model, adapted.sites, sample)


@torch.no_grad()
def compacted(adapted: TauGateModel, loader: Iterable[Any]) -> nn.Module:
    """A copy of the model, in eval mode and frozen, that runs the active mode with hard gates on fewer units.

    A unit whose hard gate is closed on every sample of the loader is taken out of both adjacent linear layers (in a
    gated MLP, of both projections and the down projection): on those samples the output is that of the hard gates.
    Gains go into the following weights. Units that are left keep their threshold, except where a ReLU follows
    thresholds <= 0 and the gate is the identity: there the base's own activation stands again. Sites after
    convolutions, and those whose layers are read by something else too, keep all units and a hard gate.

    Args:
        adapted: the gated model; it is left as it is.
        loader: calibration batches, each inputs or (inputs, labels).

    Raises:
        ValueError: an empty loader, or no mode on by name.
    """
    mode = adapted.active
    if mode is None:
        raise ValueError("mode: the base or a mode for each sample is on, wanted one by name: set_mode(name)")
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise ValueError("loader: got no batch, wanted at least one")
    sites = traced_sites(adapted, batch_inputs(first)[0])
    used = _used_units(adapted, chain([first], batches))
    small = copy.deepcopy(adapted.model)
    small.__dict__.pop("train", None)
    small.eval().requires_grad_(False)
    row = adapted.modes.index(mode)
    for site in sites:
        gate = small.get_submodule(site.name)
        assert isinstance(gate, GatedActivation)
        tau, gain = gate.tau.detach()[row], gate.gain.detach()[row]
        keep = used[site.name]
        if _can_shrink(small, site, gate):
            _shrink(small, site, keep, gain)
            tau, gain = tau[keep], torch.ones_like(gain[keep])
        replace_site(small, site.name, _hard(gate, mode, tau, gain))
    return small


def _used_units(adapted: TauGateModel, batches: Iterable[Any]) -> dict[str, Tensor]:
    """By site the units whose hard gate opens at least once; the first unit where none does."""
    gates, training = adapted.gates, adapted.training
    before = {name: gate.hard for name, gate in gates.items()}
    used = {name: torch.zeros(gate.width, dtype=torch.bool, device=gate.tau.device) for name, gate in gates.items()}
    adapted.eval()
    adapted.harden()
    try:
        for batch in batches:
            for name, (z, _) in recorded_pass(adapted, batch_inputs(batch)[0]).items():
                used[name] |= (z > gates[name].rows()[0][0]).flatten(0, 1).any(0)
    finally:
        for name, gate in gates.items():
            gate.hard = before[name]
        adapted.train(training)
    for units in used.values():
        if not units.any():  # a layer without any unit is no layer
            units[0] = True
    return {name: torch.nonzero(units).flatten() for name, units in used.items()}


def _can_shrink(model: nn.Module, site: ActivationSite, gate: GatedActivation) -> bool:
    layers = [name for name in (site.before, site.beside) if name is not None]
    if site.after is None or not site.adjacent or site.dim != -1 or not layers:
        return False
    if any(features(model.get_submodule(name))[1] != gate.width for name in layers):  # type: ignore[index]
        return False
    return all(p.numel() == 1 for p in gate.activation.parameters())


def _shrink(model: nn.Module, site: ActivationSite, keep: Tensor, gain: Tensor) -> None:
    assert site.before is not None
    assert site.after is not None
    for name in (site.before, site.beside):
        if name is None:
            continue
        layer: Any = model.get_submodule(name)
        transposed = type(layer).__name__ == "Conv1D"
        layer.weight = _frozen(layer.weight[:, keep] if transposed else layer.weight[keep])
        if layer.bias is not None:
            layer.bias = _frozen(layer.bias[keep])
        setattr(layer, "nf" if transposed else "out_features", len(keep))
    layer = model.get_submodule(site.after)
    weight = scaled_inputs(layer, gain)
    transposed = type(layer).__name__ == "Conv1D"
    layer.weight = _frozen(weight[keep] if transposed else weight[:, keep])
    setattr(layer, "nx" if transposed else "in_features", len(keep))


def _frozen(t: Tensor) -> nn.Parameter:
    return nn.Parameter(t.detach().clone(), requires_grad=False)


def _hard(gate: GatedActivation, mode: str, tau: Tensor, gain: Tensor) -> nn.Module:
    """The activation with the hard gate of one mode, or the activation alone where that is the same."""
    if type(gate.activation) is nn.ReLU and bool((tau <= 0).all()) and bool((gain == 1).all()):
        return gate.activation
    place = {"device": tau.device, "dtype": tau.dtype}
    hard = GatedActivation(gate.activation, len(tau), (mode,), dim=gate.dim, hard=True, **place)  # type: ignore[arg-type]
    hard.tau.data[0], hard.gain.data[0] = tau, gain
    return hard.requires_grad_(False).eval()
