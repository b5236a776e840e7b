"""Which weights stay: the masks of a model's linear layers, how they are put on it, taken off it, and stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paperworks.efficiency.bits import pack_bits, unpack_bits

__all__ = ["KeptWeights", "Masks"]


class KeptWeights(nn.Module):
    """Parametrisation of a weight: the weight where `weight_mask` is True, else exactly 0 with gradient 0."""

    weight_mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight_mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.weight_mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The stored weights are the dense ones, so that taking the mask away can bring them back."""
        return weight


def masked_by(linear: nn.Module) -> KeptWeights | None:
    """The parametrisation that `Masks.attach` put on a layer's weight, or None."""
    if not parametrize.is_parametrized(linear, "weight"):
        return None
    chain: Any = linear.parametrizations["weight"]  # type: ignore[index]
    return chain[0] if len(chain) == 1 and isinstance(chain[0], KeptWeights) else None


class Masks(Mapping[str, Tensor]):
    """Masks by parameter name ("layers.0.blocks.0.attn.qkv.weight"): bool tensors, True = kept.

    Args:
        masks: by parameter name, in layer order.
        thresholds: the smallest score that was kept, by group of the ranking.

    Raises:
        TypeError: a mask that is no bool tensor.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None, thresholds: Mapping[str, float] | None = None):
        self._masks = dict(masks or {})
        self.thresholds = dict(thresholds or {})
        for name, mask in self._masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"masks[{name!r}]: got {got}, wanted a bool tensor")

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        counts = self.counts().values()
        kept, total = (sum(pair[i] for pair in counts) for i in (0, 1))
        return f"Masks({len(self)} weights, {kept:,} of {total:,} kept)"

    def counts(self) -> dict[str, tuple[int, int]]:
        """(kept, total) by parameter name."""
        return {name: (int(mask.sum()), mask.numel()) for name, mask in self._masks.items()}

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device."""
        return Masks({name: mask.to(device) for name, mask in self._masks.items()}, self.thresholds)

    def layers(self, model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
        """(parameter name, its layer in `model`, mask on the layer's device).

        Raises ValueError for a name the model does not have and for a shape that differs.
        """
        for name, mask in self._masks.items():
            owner, _, leaf = name.rpartition(".")
            try:
                layer = model.get_submodule(owner)
            except AttributeError as error:
                raise ValueError(f"masks: the model has no layer {owner!r} for the mask {name!r}") from error
            weight = getattr(layer, leaf, None)
            if leaf != "weight" or not isinstance(weight, Tensor):
                raise ValueError(f"masks: got {name!r}, wanted the name of a layer's weight")
            if weight.shape != mask.shape:
                raise ValueError(f"masks[{name!r}]: got shape {tuple(mask.shape)}, wanted {tuple(weight.shape)}")
            yield name, layer, mask.to(weight.device)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set removed weights to 0 in place; under an attached mask, the stored dense weights too.

        Raises ValueError where the masks do not fit the model or a weight carries another parametrisation.
        """
        for name, layer, mask in list(self.layers(model)):
            stored_weight(layer, name).masked_fill_(~mask, 0)

    def attach(self, model: nn.Module) -> None:
        """Put the masks on the weights as parametrisations, in place of masks that are there; dense weights are kept.

        Raises ValueError where the masks do not fit the model or a weight carries another parametrisation.
        """
        for name, layer, mask in list(self.layers(model)):
            stored_weight(layer, name)
            if (present := masked_by(layer)) is not None:
                present.weight_mask = mask.clone()
            else:
                parametrize.register_parametrization(layer, "weight", KeptWeights(mask.clone()))

    def remove(self, model: nn.Module, keep_zeros: bool = True) -> None:
        """Take the parametrisations away: parameter names are again those of the dense model, in its order.

        Args:
            model: a model that `attach` (or `dimap_prune`) masked.
            keep_zeros: leave zeros where weights are masked; False brings the stored dense weights back.

        Raises ValueError for a layer that carries no mask.
        """
        layers = list(self.layers(model))
        for name, layer, _ in layers:
            if masked_by(layer) is None:
                raise ValueError(f"model: {name!r} carries no mask, wanted one put there by attach or dimap_prune")
        for name, layer, mask in layers:
            original = stored_weight(layer, name)
            if keep_zeros:
                with torch.no_grad():
                    original.masked_fill_(~mask, 0)
            _take_off(layer, original)

    def state_dict(self) -> dict[str, Tensor]:
        """By parameter name uint8 (ceil(numel / 8),), eight weights a byte, the first in the lowest bit."""
        return {name: pack_bits(mask) for name, mask in self._masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], model: nn.Module | None = None) -> None:
        """Take over what `state_dict` gave. Shapes are those of the present masks, or of the weights of `model`.

        Raises ValueError where names or sizes differ from the present ones.
        """
        if model is None:
            shapes = {name: mask.shape for name, mask in self._masks.items()}
        else:
            weights = {name: getattr(model.get_submodule(name.rpartition(".")[0]), "weight", None) for name in state}
            shapes = {name: weight.shape for name, weight in weights.items() if isinstance(weight, Tensor)}
        if set(shapes) != set(state):
            missing, unknown = sorted(set(shapes) - set(state)), sorted(set(state) - set(shapes))
            raise ValueError(f"state: missing {missing}, unknown {unknown}; wanted the names of these masks")
        for name, packed in state.items():
            numel = shapes[name].numel()
            if packed.dtype != torch.uint8 or packed.shape != (-(-numel // 8),):
                got = f"{packed.dtype} of shape {tuple(packed.shape)}"
                raise ValueError(f"state[{name!r}]: got {got}, wanted uint8 of shape ({-(-numel // 8)},)")
        self._masks = {name: unpack_bits(state[name], shape) for name, shape in shapes.items()}


def _take_off(layer: nn.Module, original: Tensor) -> None:
    """Make `original` the plain weight of a masked layer again, before its bias as in a dense one."""
    chains: Any = layer.parametrizations
    if len(chains) > 1:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    else:
        # torch's own removal deletes a property of the class, which copies of the layer share: they would break
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
        layer.register_parameter("weight", original)  # type: ignore[arg-type]
    if "bias" in layer._parameters:
        layer.register_parameter("bias", layer._parameters.pop("bias"))


def stored_weight(layer: nn.Module, name: str) -> Tensor:
    """The parameter behind a layer's weight: the dense weight under an attached mask.

    Raises ValueError where the weight carries another parametrisation, whose output cannot be set in place.
    """
    if not parametrize.is_parametrized(layer, "weight"):
        return layer.weight  # type: ignore[return-value]
    if masked_by(layer) is None:
        raise ValueError(f"model: {name!r} carries another parametrisation, wanted a plain weight; remove it first")
    return layer.parametrizations["weight"].original  # type: ignore[index,union-attr]
