"""Find the inverted residual blocks of a network by their structure, whatever library built it.

A block is a 1x1 convolution that widens (missing at expansion 1), a depthwise convolution, an optional squeeze-excite
gate and a 1x1 convolution that narrows, each of the three convolutions followed by a norm, the last one by no
activation. So the blocks of MobileNetV2, V3, MnasNet, ProxylessNAS and EfficientNet are found in torchvision, timm,
transformers and MONAI. The order of the module tree is taken for the order of the forward pass, as it is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

__all__ = ["InvertedResidual", "Stage", "activation_kind", "find_inverted_residuals", "inverted_residuals", "is_norm"]

Leaf = tuple[str, nn.Module]

_KINDS = {
    "relu": "relu",
    "relu6": "relu6",
    "hardswish": "hardswish",
    "hardswishme": "hardswish",
    "hswish": "hardswish",
    "silu": "silu",
    "siluactivation": "silu",
    "swish": "silu",
    "swishme": "silu",
    "memoryefficientswish": "silu",
}
_NO_ACTIVATION = re.compile(r"identity|drop|pool|pad|depth|conv|linear|norm|flatten", re.IGNORECASE)


@dataclass(frozen=True)
class Stage:
    """A convolution and what follows it, by qualified names in the model.

    Attributes:
        convolution, norm: names of the two.
        activation: name of the activation after the norm; None where there is none or the norm holds it.
    """

    convolution: str
    norm: str
    activation: str | None


@dataclass(frozen=True)
class InvertedResidual:
    """One block.

    Attributes:
        name: qualified name in the model, "" for the model itself.
        module: the block.
        inner: the stages at the wide channels: expansion (if there is one) and depthwise.
        project: the stage that narrows; it has no activation.
        gate: names of the convolutions or linear layers of the squeeze-excite, empty without one.
        shared_activation: name of the one activation that the block's forward calls wherever it needs one, the
            squeeze-excite included, as in MONAI; None where each stage has its own.
    """

    name: str
    module: nn.Module
    inner: tuple[Stage, ...]
    project: Stage
    gate: tuple[str, ...]
    shared_activation: str | None = None


def find_inverted_residuals(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(qualified name, module) of every inverted residual block, first block first; empty where there is none."""
    return [(block.name, block.module) for block in inverted_residuals(model)]


def inverted_residuals(model: nn.Module) -> list[InvertedResidual]:
    """Every inverted residual block with its parts, first block first.

    Of nested modules that hold one and the same block, the innermost counts that is no `nn.Sequential`: its forward
    adds the input. A block used under two names is found once.

    Raises:
        TypeError: `model` is no `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
    found = _blocks_below("", model, set())
    return list({id(block.module): block for block in found}.values())


def activation_kind(module: nn.Module) -> str | None:
    """The kind of an activation module: "relu", "relu6", "hardswish" or "silu"; None for any other."""
    if any(True for _ in module.parameters()):
        return None
    if isinstance(module, nn.Hardtanh):
        return "relu6" if (module.min_val, module.max_val) == (0, 6) else None
    return _KINDS.get(type(module).__name__.replace("_", "").lower())


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises channels: torch's norms, and what has their `num_features` and `eps`.

    `num_features` alone is no sign of a norm: timm's networks have it.
    """
    like_a_norm = isinstance(getattr(module, "num_features", None), int) and hasattr(module, "eps")
    return isinstance(module, nn.GroupNorm) or like_a_norm


def _blocks_below(name: str, module: nn.Module, above: set[int]) -> list[InvertedResidual]:
    if id(module) in above or is_norm(module):
        return []
    found = []
    for key, child in module.named_children():
        found += _blocks_below(f"{name}.{key}" if name else key, child, above | {id(module)})
    if len(found) > 1 or (found and not isinstance(found[0].module, nn.Sequential)):
        return found
    if found and isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return found
    block = _parsed(name, module)
    return found if block is None else [block]


def leaves(name: str, module: nn.Module) -> Iterator[Leaf]:
    """(qualified name, module) of the parts that do the work, in order; a norm counts as one, whatever it holds."""
    children = [] if is_norm(module) else list(module.named_children())
    if not children:
        yield name, module
    for key, child in children:
        yield from leaves(f"{name}.{key}" if name else key, child)


def _parsed(name: str, module: nn.Module) -> InvertedResidual | None:
    """The parts of a block that is all there is in `module`, or None."""
    parts = list(leaves(name, module))
    weighted = [i for i, (_, m) in enumerate(parts) if isinstance(m, nn.Conv2d | nn.Linear)]
    depthwise = [i for i in weighted if _is_depthwise(parts[i][1])]
    if len(depthwise) != 1 or len(weighted) < 2 or len(weighted) > 8:
        return None
    at = weighted.index(depthwise[0])
    before, gate, last = weighted[:at], weighted[at + 1 : -1], weighted[-1]
    width = _width(parts[depthwise[0]][1])
    if at + 1 == len(weighted) or len(before) > 1 or len(gate) == 1:
        return None
    if any(_pointwise(parts[i][1]) is None for i in (*before, *gate, last)):
        return None
    ends = [_pointwise(parts[i][1]) for i in (*before, *gate[-1:])]
    starts = [_pointwise(parts[i][1]) for i in (*gate[:1], last)]
    if any(p is None or p[1] != width for p in ends) or any(p is None or p[0] != width for p in starts):
        return None
    main = [*before, depthwise[0], last]
    norms = [i for i, (_, m) in enumerate(parts) if is_norm(m)]
    return _with_stages(name, module, parts, main, norms, tuple(parts[i][0] for i in gate))


def _with_stages(
    name: str, module: nn.Module, parts: list[Leaf], main: list[int], norms: list[int], gate: tuple[str, ...]
) -> InvertedResidual | None:
    ends = [*main[1:], len(parts)]
    if len(norms) != len(main) or not all(a < n < b for a, n, b in zip(main, norms, ends, strict=True)):
        return None
    following = [_activation_after(parts, i) for i in norms]
    holds = [_holds_activation(parts[i][1]) for i in norms]
    if holds[-1]:
        return None
    if following[-1] is not None and (any(following[:-1]) or any(holds)):
        return None  # an activation after the narrow norm: a separable convolution of MobileNetV1's kind
    shared = following.pop()
    following.append(None)
    stages = [Stage(parts[c][0], parts[n][0], act) for c, n, act in zip(main, norms, following, strict=True)]
    return InvertedResidual(name, module, tuple(stages[:-1]), stages[-1], gate, shared)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def _width(module: nn.Module) -> int:
    return module.out_channels if isinstance(module, nn.Conv2d) else 0


def _pointwise(module: nn.Module) -> tuple[int, int] | None:
    """Channels in and out of a 1x1 convolution without groups or of a linear layer."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1:
        return module.in_channels, module.out_channels
    return None


def _activation_after(parts: list[Leaf], norm: int) -> str | None:
    following = parts[norm + 1 : norm + 2]
    return next((name for name, m in following if not _NO_ACTIVATION.search(type(m).__name__)), None)


def _holds_activation(norm: nn.Module) -> bool:
    """Whether a norm applies an activation of its own, as timm's `BatchNormAct2d` does."""
    act = getattr(norm, "act", None)
    return isinstance(act, nn.Module) and not isinstance(act, nn.Identity)
