"""Networks of S-KAN layers, and the three stages of their training: all families, towards one, one.

Any module with `SKANLinear` or `SKANConv2d` layers in it can be trained in these stages: `SelectionSchedule` and
`compacted` find the layers by type.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.kan.conv import SKANConv2d
from paperworks.kan.selection import Selecting, SelectionError, SKANLinear
from paperworks.surgery.recording import Recorder

STAGES = ("full", "selective", "prune")


def selecting_layers(model: nn.Module) -> list[Selecting]:
    """The S-KAN layers of a model in the order of its tree, a shared one once."""
    return [module for module in model.modules() if isinstance(module, Selecting)]


@torch.no_grad()
def layer_inputs(model: nn.Module, x: Tensor) -> dict[Selecting, Tensor]:
    """What each S-KAN layer gets when `model` is called on `x`, in evaluation mode (running statistics stay).

    Raises RuntimeError for a layer that the model does not call.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Selecting)}
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with Recorder(model, list(layers)) as recorder:
            model(x)
    finally:
        for module, mode in modes.items():
            module.training = mode
    found = {layers[name]: parts for name, parts in recorder.values.items()}
    return {layer: parts[0] if len(parts) == 1 else torch.cat(parts) for layer, parts in found.items()}


def select_all(model: nn.Module, x: Tensor | None = None) -> list[Tensor]:
    """Let every S-KAN layer of `model` select: by contribution on what it gets from `x`, or without x by weight.

    Returns the choices (D,), a layer each. Raises ValueError where the model has no S-KAN layer, SelectionError
    where a layer has selected before (then no layer has changed).
    """
    layers = selecting_layers(model)
    if not layers:
        raise ValueError("model: has no S-KAN layer to select in")
    if any(layer.choice is not None for layer in layers):
        raise SelectionError("select: a layer of this model has selected its families already")
    inputs = {} if x is None else layer_inputs(model, x)
    return [layer.select(x=inputs.get(layer)) for layer in layers]


def compacted(model: nn.Module) -> nn.Module:
    """A copy of `model` with every S-KAN layer replaced by its `compact()`. Raises SelectionError before selection."""
    made: dict[int, Any] = {}
    for layer in selecting_layers(model):
        assert isinstance(layer, SKANLinear | SKANConv2d)
        made[id(layer)] = layer.compact()
    # A deep copy that meets a layer in its memory takes what stands there instead of copying the layer.
    return copy.deepcopy(model, made)


class SKAN(nn.Module):
    """S-KAN of the given widths: (..., widths[0]) -> (..., widths[-1]).

    The first layer clamps its inputs to [-1, 1] (scale them), later ones take tanh, unless `squash` is given.

    Args:
        widths: two or more sizes.
        **kw: options of every `SKANLinear`.

    Attributes:
        layers: `SKANLinear` layers; in what `compact` returns, `PrunedSKANLinear` layers.
    """

    def __init__(self, widths: Sequence[int], **kw: Any) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths: got {tuple(widths)}, wanted two or more sizes")
        squash = kw.pop("squash", None)
        self.layers = nn.ModuleList(
            SKANLinear(i, o, squash=squash or ("tanh" if at else "clamp"), **kw)
            for at, (i, o) in enumerate(pairwise(widths))
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def select(self, x: Tensor | None = None) -> list[Tensor]:
        """Select in every layer by its contribution on `x`, or without x by its weights; the choices."""
        return select_all(self, x)

    def compact(self) -> SKAN:
        """The same net of pruned layers. Raises SelectionError before `select`."""
        net = compacted(self)
        assert isinstance(net, SKAN)
        return net


class SConvKAN(nn.Module):
    """S-ConvKAN for small images: (N, C, H, W) -> (N, num_classes).

    For each width BatchNorm and a 3x3 `SKANConv2d` with padding 1; max pooling by 2 after all but the last, a global
    average after it, a linear head.

    Args:
        in_channels, num_classes: sizes of what comes in and out.
        widths: channels of the convolutions.
        **kw: options of every `SKANConv2d`.
    """

    def __init__(self, in_channels: int, num_classes: int, widths: Sequence[int] = (16, 32, 64), **kw: Any) -> None:
        super().__init__()
        if not len(widths):
            raise ValueError("widths: got none, wanted one or more sizes")
        like = {name: kw[name] for name in ("device", "dtype") if name in kw}
        sizes = [in_channels, *widths]
        self.norms = nn.ModuleList(nn.BatchNorm2d(i, **like) for i in sizes[:-1])
        self.layers = nn.ModuleList(SKANConv2d(i, o, 3, padding=1, **kw) for i, o in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], num_classes, **like)

    def forward(self, x: Tensor) -> Tensor:
        for at, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            x = layer(norm(x if at == 0 else nn.functional.max_pool2d(x, 2)))
        return self.head(x.mean((2, 3)))

    def select(self, x: Tensor | None = None) -> list[Tensor]:
        """Select in every layer by its contribution on `x`, or without x by its weights; the choices."""
        return select_all(self, x)

    def compact(self) -> SConvKAN:
        """The same net of pruned layers. Raises SelectionError before `select`."""
        net = compacted(self)
        assert isinstance(net, SConvKAN)
        return net


class SelectionSchedule:
    """The three stages over a number of optimiser steps.

    full: everything is trained at tau = 1. selective: tau falls geometrically to `tau_end`, so that the mixture turns
    one-hot while all parameters adapt. prune: every layer selects, the rest of the steps trains what is chosen (make a
    new optimiser: the old one holds the state of dropped parameters).

    Args:
        model: any module with S-KAN layers.
        total_steps: optimiser steps in all.
        full, selective: parts of the steps; what is left is the third stage.
        tau_end: temperature at the end of the second stage, and at which alpha is folded.
        score: ``"contribution"`` on the inputs given to `step`, or ``"weight"``.

    Attributes:
        stage: that of the next optimiser step.
        taken: optimiser steps taken.
        choices: (D,) a layer, once the third stage has begun.
        weights: alpha (D, M) a layer, as they were when it began.

    Raises ValueError for parts outside [0, 1] or beyond 1 together, tau_end outside (0, 1], no steps, a model without
    S-KAN layers, an unknown score.
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        full: float = 0.35,
        selective: float = 0.25,
        tau_end: float = 0.02,
        score: str = "contribution",
    ) -> None:
        if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
            raise ValueError(f"total_steps: got {total_steps!r}, wanted an integer >= 1")
        if not (0 <= full <= 1 and 0 <= selective <= 1 and full + selective <= 1 + 1e-12):
            raise ValueError(f"full, selective: got {full}, {selective}, wanted parts of 1 that sum to 1 at most")
        if not 0 < tau_end <= 1:
            raise ValueError(f"tau_end: got {tau_end!r}, wanted 0 < tau_end <= 1")
        if score not in ("contribution", "weight"):
            raise ValueError(f"score: got {score!r}, wanted 'contribution' or 'weight'")
        if not selecting_layers(model):
            raise ValueError("model: has no S-KAN layer to select in")
        self.model, self.total_steps, self.tau_end, self.score = model, total_steps, tau_end, score
        self.full_steps = round(full * total_steps)
        self.selective_steps = round((full + selective) * total_steps) - self.full_steps
        self.taken = 0
        self.choices: list[Tensor] = []
        self.weights: list[Tensor] = []
        self._set_tau()

    @property
    def stage(self) -> str:
        """The stage that the next optimiser step belongs to."""
        ends = (self.full_steps, self.full_steps + self.selective_steps)
        return STAGES[sum(self.taken >= end for end in ends)]

    @property
    def tau(self) -> float:
        """The temperature of the next optimiser step."""
        fallen = self.taken - self.full_steps + 1
        return self.tau_end ** (min(max(fallen, 0), self.selective_steps) / max(self.selective_steps, 1))

    def step(self, x: Tensor) -> str:
        """After each optimiser step: set tau; on entering the third stage select, with the inputs that come of x.

        Returns the stage that the next step belongs to.
        """
        self.taken += 1
        if self.stage == "prune":
            if not self.choices:
                self._set_tau()
                self.weights = [layer.weights().detach().clone() for layer in selecting_layers(self.model)]
                self.choices = select_all(self.model, x if self.score == "contribution" else None)
        else:
            self._set_tau()
        return self.stage

    def _set_tau(self) -> None:
        for layer in selecting_layers(self.model):
            layer.tau = self.tau
