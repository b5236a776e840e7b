"""Squeeze and excitation (Hu et al., 1709.01507) on the last map of a Swin, or after each of its stages.

s = mean of x over positions; e = sigmoid(W2 ReLU(W1 s + b1) + b2); x' = x e. The block of the paper stands between
the encoder's last norm and the mean over tokens. There it is a gate of the pooled vector on itself, since the mean of
x e is the mean of x, times e.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SqueezeExcite", "add_squeeze_excite", "remove_squeeze_excite"]


class SqueezeExcite(nn.Module):
    """x sigmoid(fc2(ReLU(fc1(mean of x over positions)))).

    Args:
        dim: channels.
        reduction: `dim` over the width of the bottleneck.
        channels_last: the input is (B, ..., dim), else (B, dim, ...).
        residual_init: start as almost the identity, at a gate of sigmoid(4) = 0.982 for every input.

    Raises ValueError where `reduction` leaves no unit, TypeError where a size is no whole number.
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 16,
        *,
        channels_last: bool = True,
        residual_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("reduction", reduction)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: got {type(value).__name__}, wanted a whole number")
            if value < 1:
                raise ValueError(f"{name}: got {value}, wanted 1 or more")
        if reduction > dim:
            raise ValueError(f"reduction: got {reduction}, wanted at most the {dim} channels")
        self.dim, self.reduction, self.channels_last = dim, reduction, channels_last
        self.fc1 = nn.Linear(dim, dim // reduction, device=device, dtype=dtype)
        self.fc2 = nn.Linear(dim // reduction, dim, device=device, dtype=dtype)
        if residual_init:
            nn.init.zeros_(self.fc2.weight)
            nn.init.constant_(self.fc2.bias, 4.0)

    def extra_repr(self) -> str:
        """Sizes and layout."""
        return f"dim={self.dim}, reduction={self.reduction}, channels_last={self.channels_last}"

    def gate(self, x: Tensor) -> Tensor:
        """The excitation e of each sample, (B, dim), in (0, 1)."""
        axis = -1 if self.channels_last else 1
        if x.dim() < 2 or x.shape[axis] != self.dim:
            wanted = f"(B, ..., {self.dim})" if self.channels_last else f"(B, {self.dim}, ...)"
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted {wanted}")
        places = tuple(range(1, x.dim() - 1) if self.channels_last else range(2, x.dim()))
        squeezed = x.mean(places) if places else x
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(squeezed))))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, each channel of each sample times its gate."""
        gate = self.gate(x)
        ones = (1,) * (x.dim() - 2)
        shape = (len(x), *ones, self.dim) if self.channels_last else (len(x), self.dim, *ones)
        return x * gate.view(shape)


class _Excite:
    """A forward hook that gates a module's output. An object, so that a deep copy of the model has its own block."""

    def __init__(self, block: SqueezeExcite) -> None:
        self.block = block

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.block(output[0]), *output[1:])
        return self.block(output)


# package and class of a network: path of its last norm, and of its stages
_PLACES = {
    ("timm", "SwinTransformer"): ("norm", "layers"),
    ("timm", "SwinTransformerV2"): ("norm", "layers"),
    ("torchvision", "SwinTransformer"): ("norm", "features"),
    ("transformers", "SwinModel"): ("layernorm", "encoder.layers"),
    ("transformers", "SwinForImageClassification"): ("swin.layernorm", "swin.encoder.layers"),
    ("transformers", "Swinv2Model"): ("layernorm", "encoder.layers"),
    ("transformers", "Swinv2ForImageClassification"): ("swinv2.layernorm", "swinv2.encoder.layers"),
    ("paperworks", "SwinClassifier"): ("norm", "backbone.stages"),
    ("paperworks", "SwinBackbone"): ("norms", "stages"),
}


def _places(model: nn.Module) -> tuple[str, str]:
    for cls in type(model).__mro__:
        found = _PLACES.get((cls.__module__.split(".")[0], cls.__name__))
        if found is not None:
            return found
    known = ", ".join(f"{package}'s {name}" for package, name in _PLACES)
    raise TypeError(f"model: got {type(model).__name__}, wanted {known}, or where= the path of a norm")


def _stage_ends(model: nn.Module) -> list[nn.Module]:
    """The last block of each stage. Not the stage itself: in some libraries it merges patches after its blocks."""
    stages: Any = model.get_submodule(_places(model)[1])
    if any(cls.__module__.split(".")[0] == "torchvision" for cls in type(model).__mro__):
        stages = list(stages)[1::2]  # patches and merging stand between the stages
    return [(stage.blocks if hasattr(stage, "blocks") else stage)[-1] for stage in stages]


def _width(module: nn.Module, name: str) -> tuple[int, bool]:
    """Channels of a norm, and whether they come last."""
    shape = getattr(module, "normalized_shape", None)
    if shape is not None:
        if len(shape) != 1:
            raise ValueError(f"where: {name!r} normalises over {tuple(shape)}, wanted channels alone")
        return int(shape[0]), not type(module).__name__.endswith("2d")
    for attribute in ("num_features", "num_channels"):
        if isinstance(getattr(module, attribute, None), int):
            return int(getattr(module, attribute)), False
    raise TypeError(f"where: {name!r} is a {type(module).__name__}, wanted a layer, batch or group norm")


def _targets(model: nn.Module, where: str) -> list[tuple[nn.Module, int, bool]]:
    """The modules whose output is gated, with channels and layout."""
    if where == "stages":
        ends = []
        for block in _stage_ends(model):
            norm = next(m for m in block.modules() if isinstance(m, nn.LayerNorm))
            ends.append((block, *_width(norm, where)))
        return ends
    name = where
    if where == "final":
        name = _places(model)[0]
        if name == "norms":
            norms: Any = model.get_submodule(name)
            if not len(norms):
                raise ValueError("where: got 'final' for a backbone without norms, wanted one with out_norm='affine'")
            name = f"norms.{len(norms) - 1}"
    try:
        place = model.get_submodule(name)
    except AttributeError:
        wanted = "'final', 'stages' or the path of a norm"
        raise ValueError(f"where: got {where!r}, no module of {type(model).__name__}; wanted {wanted}") from None
    return [(place, *_width(place, name))]


def add_squeeze_excite(
    model: nn.Module, reduction: int = 16, where: str = "final", residual_init: bool = False
) -> nn.Module:
    """Put squeeze-and-excitation into someone's Swin, in place; its own weights keep their names, `se.*` is added.

    Args:
        model: a Swin of timm, torchvision, transformers (`SwinModel`, `SwinForImageClassification` and their second
            version) or paperworks (`SwinClassifier`, `SwinBackbone`); with a path in `where`, any network.
        reduction: of `SqueezeExcite`.
        where: ``"final"``, after the last norm, as `model.se`; ``"stages"``, after every stage and before its merging,
            as a list `model.se`; or the path of a norm, as in ``model.get_submodule``.
        residual_init: of `SqueezeExcite`; a pretrained network then begins almost unchanged.

    Returns the model. The new weights are on the device and of the dtype of the norm.

    Raises TypeError for a network that is not known, ValueError for a place that is not there or a name that is taken.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, wanted an nn.Module")
    if hasattr(model, "se"):
        raise ValueError(f"model: {type(model).__name__} has an attribute `se`; remove_squeeze_excite takes ours out")
    targets, blocks = _targets(model, where), []
    for module, dim, channels_last in targets:
        like = next(module.parameters(), next(model.parameters(), torch.empty(0)))
        blocks.append(
            SqueezeExcite(
                dim, reduction, channels_last=channels_last, residual_init=residual_init,
                device=like.device, dtype=like.dtype,
            )
        )  # fmt: skip
    for (module, _, _), block in zip(targets, blocks, strict=True):
        block.train(module.training)
        module.register_forward_hook(_Excite(block))
    model.se = nn.ModuleList(blocks) if where == "stages" else blocks[0]
    return model


def remove_squeeze_excite(model: nn.Module) -> nn.Module:
    """Take out what `add_squeeze_excite` put in, in place. Raises ValueError where there is nothing of it."""
    own = getattr(model, "se", None)
    blocks = {id(block) for block in (own.modules() if isinstance(own, nn.Module) else ())}
    found = [
        (module, key)
        for module in model.modules()
        for key, hook in module._forward_hooks.items()
        if isinstance(hook, _Excite) and id(hook.block) in blocks
    ]
    if not found:
        raise ValueError(f"model: got {type(model).__name__} without squeeze-and-excitation, wanted one with it")
    for module, key in found:
        del module._forward_hooks[key]
    del model.se
    return model
