"""Put gated retention in the place of the window attention of somebody else's Swin, with its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.surgery.swin_parts import Attention, find_attentions
from paperworks.swin.gated_swinrmt.attention import VARIANTS, GatedRetention, Variant
from paperworks.swin.gated_swinrmt.masks import AxisMasks
from paperworks.swin.gated_swinrmt.windows import MapWindows

__all__ = ["ClampedRetention", "ShiftedRetention", "convert_swin", "heal"]

OPEN = {"retention": 4.0, "swat": 1.278464542761074}
"""Bias of the gates at the start: sigmoid(4) = 0.98, and SiLU of the other is 1."""


class ClampedRetention(GatedRetention):
    """`GatedRetention` that also takes flat windows smaller than its own where they are square.

    Swin's reference implementations clamp a window to the map and hand over its tokens without their shape.
    """

    def _window(self, x: Tensor) -> tuple[int, int]:
        side = isqrt(x.shape[1]) if x.dim() == 3 else 0
        if side and side * side == x.shape[1] and side <= min(self.window_size):
            return super()._window(x.unflatten(1, (side, side)))
        return super()._window(x)


class _Returned(ClampedRetention):
    """Called as the attention of transformers' Swin, which wants a pair back."""

    def forward(self, x: Tensor, mask: Tensor | AxisMasks | None = None, **_: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        """(the attention's output, None): there is no one matrix of weights; see `attention_map`."""
        return super().forward(x, mask), None


class ShiftedRetention(GatedRetention):
    """`GatedRetention` called with a whole map, as torchvision's attention: it pads, rolls and cuts by itself.

    Args:
        shift_size: (h, w) by which the map is rolled, on axes with more than one window.
        others: of `GatedRetention`.
    """

    def __init__(self, dim: int, num_heads: int, shift_size: Sequence[int], *others: Any, **options: Any) -> None:
        super().__init__(dim, num_heads, *others, **options)
        self.shift_size = (int(shift_size[0]), int(shift_size[1]))

    def forward(self, x: Tensor, mask: None = None) -> Tensor:  # type: ignore[override]
        """(B, H, W, C) -> the same shape."""
        space = (x.shape[1], x.shape[2])
        h, w = (
            0 if window >= size else shift
            for window, size, shift in zip(self.window_size, space, self.shift_size, strict=True)
        )
        windows = MapWindows(space, (self.window_size[0], self.window_size[1]), (h, w))
        return windows.join(super().forward(windows.cut(x), windows.masks(x.device)))


def convert_swin(model: nn.Module, variant: Variant = "retention", copy_weights: bool = True) -> nn.Module:
    """Replace every window attention of a Swin by gated retention, in place.

    Understood by structure and names: timm's `WindowAttention` (and the official one, and paperworks' own),
    transformers' `SwinAttention` and torchvision's `ShiftedWindowAttention`.

    Args:
        model: the network; everything but its attentions stays.
        variant: ``"retention"`` or ``"swat"``.
        copy_weights: take the projections to queries, keys, values and out. Gates start open (a factor of 0.98 in
            "retention", 1 in "swat") and local enhancement at zero, so that the start is near the donor but for the
            two passes, the decay, the rotary angles, and the position bias, which is dropped. Without it, all is
            initialised as in a stand-alone module.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no module.
        ValueError: an unknown variant; no window attention found; one whose windows are not two-dimensional, whose
            positions are not those of Swin (SwinV2), or whose projections do not have C -> C each.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: got {variant!r}, wanted 'retention' or 'swat'")
    found = [(attention, _window_size(attention.module)) for attention in find_attentions(model)]
    windowed = [(attention, window) for attention, window in found if window is not None]
    if not windowed:
        raise ValueError(f"model: got {type(model).__name__} without window attention, wanted a Swin")
    made = [(attention, _made(attention, window, variant, copy_weights)) for attention, window in windowed]
    for attention, module in made:
        parent, _, name = attention.name.rpartition(".")
        setattr(model.get_submodule(parent), name, module)
    return model


def _window_size(attention: nn.Module) -> tuple[int, ...] | None:
    """The window of an attention, whatever its library calls it; None where it has none."""
    bias = getattr(attention, "relative_position_bias", None)
    for owner, name in (
        (attention, "window_size"),
        (attention, "window"),
        (bias, "window_size"),
        (attention, "bias"),
    ):
        value = getattr(owner, name, None)
        value = getattr(value, "window", value)
        if isinstance(value, int):
            return value, value
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(int(size) for size in value)
    return None


def _heads(attention: nn.Module) -> int:
    heads = getattr(attention, "num_heads", None) or getattr(attention, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise ValueError(f"model: {type(attention).__name__} does not tell its number of heads")
    return heads


def _made(attention: Attention, window: tuple[int, ...], variant: Variant, copy_weights: bool) -> GatedRetention:
    donor, (_, out) = attention.module, attention.proj
    if len(window) != 2:
        raise ValueError(f"model: {attention.name} has windows of {window}, wanted two axes")
    if hasattr(donor, "logit_scale") or hasattr(donor, "cpb_mlp"):
        raise ValueError(f"model: {attention.name} is SwinV2's cosine attention, wanted Swin's")
    dim = out.out_features
    if sum(linear.out_features for _, linear in attention.qkv) != 3 * dim or out.in_features != dim:
        raise ValueError(
            f"model: {attention.name} does not project {dim} channels to queries, keys and values of as many"
        )
    options: Any = {"device": out.weight.device, "dtype": out.weight.dtype}
    heads = _heads(donor)
    shift = getattr(donor, "shift_size", None)
    made: GatedRetention
    if isinstance(shift, Sequence):
        made = ShiftedRetention(dim, heads, shift, window, variant, **options)
    else:
        kind = _Returned if len(attention.qkv) == 3 and hasattr(donor, "config") else ClampedRetention
        made = kind(dim, heads, window, variant, **options)
    if copy_weights:
        _copy(attention, made)
    return made.train(donor.training)


@torch.no_grad()
def _copy(attention: Attention, made: GatedRetention) -> None:
    weights = torch.cat([linear.weight.detach() for _, linear in attention.qkv]).chunk(3)
    biases = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        for _, linear in attention.qkv
    ]
    for layer, weight, bias in zip(
        (made.q_proj, made.k_proj, made.v_proj), weights, torch.cat(biases).chunk(3), strict=True
    ):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    out = attention.proj[1]
    made.out_proj.weight.copy_(out.weight)
    made.out_proj.bias.copy_(torch.zeros_like(made.out_proj.bias) if out.bias is None else out.bias)
    nn.init.zeros_(made.lce.weight)
    if made.lce.bias is not None:
        nn.init.zeros_(made.lce.bias)
    for gate in (made.gate, made.v_gate):
        if gate is not None:
            nn.init.zeros_(gate.weight)
            nn.init.constant_(gate.bias, OPEN[made.variant])


def heal(model: nn.Module, donor: nn.Module, images: Iterable[Tensor], lr: float = 1e-3) -> list[float]:
    """Train the attentions of a converted network to answer as its donor does; everything else stays as it is.

    Adam on the mean squared difference of the outputs, one step a batch, at a rate that falls linearly to zero where
    `images` has a length.

    Args:
        model: what `convert_swin` gave; changed in place, left in the mode it was in.
        donor: the network before: a deep copy made beforehand.
        images: batches that both take; outputs are tensors, or have `logits`.
        lr: learning rate at the start.

    Returns:
        The difference before each step.

    Raises:
        ValueError: `model` has no gated retention.
    """
    attentions = [m for m in model.modules() if isinstance(m, GatedRetention)]
    if not attentions:
        raise ValueError(f"model: got {type(model).__name__} without gated retention, wanted a converted Swin")
    trained = [p for attention in attentions for p in attention.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr)
    steps = len(images) if isinstance(images, Sequence) else None
    was_training, donor_was_training = model.training, donor.training
    model.eval()
    donor.eval()
    losses = []
    for step, batch in enumerate(images):
        with torch.no_grad():
            wanted = donor(batch)
        found = model(batch)
        loss = (getattr(found, "logits", found) - getattr(wanted, "logits", wanted)).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps) if steps else lr
        for p, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            p.grad = gradient
        optimizer.step()
        losses.append(float(loss.detach()))
    optimizer.zero_grad()
    model.train(was_training)
    donor.train(donor_was_training)
    return losses
