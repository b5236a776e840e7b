"""Gains moved into the weights of the following layers: W diag(gain), and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paperworks.efficiency.dopamine.activation import GatedActivation
from paperworks.surgery.sites import ActivationSite

__all__ = ["Folding", "scaled_inputs"]


def scaled_inputs(layer: nn.Module, gain: Tensor) -> Tensor:
    """The weight of a linear layer, convolution or `Conv1D` with each input feature multiplied by its gain."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    dim = 0 if type(layer).__name__ == "Conv1D" and weight.ndim == 2 else 1
    shape = [1] * weight.ndim
    shape[dim] = -1
    wide = torch.promote_types(weight.dtype, gain.dtype)
    return (weight.detach().to(wide) * gain.detach().to(weight.device, wide).view(shape)).to(weight.dtype)


class Folding:
    """The gains of one mode in the weights of the following layers; keeps those weights to undo it.

    Raises:
        ValueError: a site without a following layer of its own, a layer that shares its weight, or another mode that
            would be divided by a gain of 0. Nothing is changed then.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[ActivationSite], gates: Mapping[str, GatedActivation], row: int
    ) -> None:
        owners: dict[int, int] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        for site in sites:
            gain = gates[site.name].gain
            if site.after is None:
                raise ValueError(
                    f"model: no linear layer is known that alone reads {site.name!r}, so its gains cannot be folded; "
                    "give fold_gains a sample if there is one"
                )
            if owners[id(model.get_submodule(site.after).weight)] > 1:
                raise ValueError(f"model: {site.after!r} shares its weight with another layer; its gains stay outside")
            if len(gain) > 1 and bool((gain[row] == 0).any()):
                raise ValueError(f"model: the other modes of {site.name!r} cannot be divided by a gain of 0")
        self.weights: dict[str, Tensor] = {}
        for site in sites:
            assert site.after is not None
            layer, gain = model.get_submodule(site.after), gates[site.name].gain
            folded = gain.detach()[row].clone()
            self.weights[site.after] = layer.weight.detach().clone()  # type: ignore[operator]
            layer.weight.data.copy_(scaled_inputs(layer, folded))  # type: ignore[operator]
            for i in range(len(gain)):
                gain.data[i] = 1.0 if i == row else gain.detach()[i] / folded

    def undo(self, model: nn.Module) -> None:
        """Put the layers' own weights back, bit by bit."""
        for name, weight in self.weights.items():
            model.get_submodule(name).weight.data.copy_(weight)  # type: ignore[operator]
