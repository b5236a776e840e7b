"""How much the loss rises within a small radius of the weights: what sharpness-aware minimisation keeps low."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from paperworks.swin.swin_se_fer.sam import climb, frozen_norm_stats

__all__ = ["loss_along_climb", "sharpness"]

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_along_climb(
    model: nn.Module, loss_fn: Loss, batch: tuple[Tensor, Tensor], radii: Sequence[float], adaptive: bool = False
) -> list[float]:
    """The loss at w + rho g / |g| for each rho of `radii`, with g the gradient at w; a negative rho goes downhill.

    Args:
        model, loss_fn: the loss is ``loss_fn(model(inputs), target)``, in the mode the model is in; where it draws
            masks, the same ones for every radius.
        batch: (inputs, target), on the model's device.
        radii: distances from w.
        adaptive: measure relative to the weights, as in `SAM`.

    Weights, gradients, running statistics and random state are afterwards, bit by bit, what they were.
    """
    inputs, target = batch
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})

    def loss() -> Tensor:
        with torch.random.fork_rng(devices):
            return loss_fn(model(inputs), target)

    kept = [p.detach().clone() for p in parameters]
    found = []
    with frozen_norm_stats(model):
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
        used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        moved, slopes = [p for p, _ in used], [g for _, g in used]
        try:
            for rho in radii:
                climb(moved, slopes, [float(rho)] * len(moved), [adaptive] * len(moved))
                with torch.no_grad():
                    found.append(float(loss()))
                    torch._foreach_copy_(parameters, kept)
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, kept)
    return found


def sharpness(
    model: nn.Module, loss_fn: Loss, batch: tuple[Tensor, Tensor], rho: float = 0.05, adaptive: bool = False
) -> float:
    """L(w + e) - L(w) with e the climb of length `rho` along the gradient (Eq. 1 of SAM, to first order).

    See `loss_along_climb`. Raises ValueError for a negative `rho`.
    """
    if not rho >= 0:
        raise ValueError(f"rho: got {rho}, wanted a number, 0 or more")
    here, there = loss_along_climb(model, loss_fn, batch, (0.0, rho), adaptive)
    return there - here
