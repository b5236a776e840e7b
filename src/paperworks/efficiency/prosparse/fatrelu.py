"""FATReLU and its place in a model: steps 1 and 3 of ProSparse.

    sigma(x) = x  if x >= t,  else 0                                            (Eq. 3)

At t = 0 it is ReLU. It does not subtract t: what is kept is kept whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.surgery.gated_mlps import GatedMLP, find_gated_mlps

Threshold = float | Tensor
CONFIG_NAMES = ("hidden_act", "hidden_activation")


def fatrelu(x: Tensor, threshold: Threshold = 0.01) -> Tensor:
    """Eq. 3: a floating tensor (..., d_ff), with one threshold or one a channel, (d_ff,). NaN stays NaN.

    The gradient is 1 where x >= threshold, else 0; none flows to the threshold.
    """
    return x.masked_fill(x < threshold, 0.0)


def checked_threshold(threshold: Threshold) -> Tensor:
    """`threshold` as a tensor of shape () or (d_ff,). Raises ValueError where a value is negative or no number."""
    made = torch.as_tensor(threshold).detach()
    if made.ndim > 1:
        raise ValueError(f"threshold: got shape {tuple(made.shape)}, wanted one number or one a channel, (d_ff,)")
    if not made.is_meta and not bool((made >= 0).all() & made.isfinite().all()):
        least = float(made.min()) if made.ndim else float(made)
        raise ValueError(f"threshold: got {least:g}, wanted finite numbers >= 0")
    return made


class FATReLU(nn.Module):
    """`fatrelu` with its threshold as a buffer.

    Args:
        threshold: t >= 0, a number or a tensor (d_ff,). The paper's main models take 0.01.

    Raises ValueError for a negative threshold or one of more than one dimension.
    """

    threshold: Tensor

    def __init__(
        self,
        threshold: Threshold = 0.01,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        value = checked_threshold(threshold)
        if dtype is None:
            dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        self.register_buffer("threshold", value.to(device=device, dtype=dtype, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_ff) floating -> the same shape."""
        return fatrelu(x, self.threshold)

    def extra_repr(self) -> str:
        """The threshold, or how many there are."""
        if self.threshold.is_meta or self.threshold.ndim:
            return f"threshold={tuple(self.threshold.shape)}"
        return f"threshold={float(self.threshold):g}"


def relufy(model: nn.Module, threshold: float = 0.0) -> nn.Module:
    """Put FATReLU in the place of the activation of every gated MLP of `model`, in place: step 1 of the paper.

    The configuration says so afterwards: `hidden_act` is "relu" at threshold 0, else "fatrelu" with
    `hidden_act_param`, as in the published checkpoints. Each MLP holds a FATReLU of its own, on the device and in the
    dtype of its weights. On a model that has them already, only the threshold changes.

    Args:
        model: any model with gated MLPs (`paperworks.surgery.gated_mlps`), e.g. a causal language model of
            transformers.
        threshold: 0 for training; above 0 for step 3.

    Raises ValueError for a model without gated MLPs, or a negative threshold.
    """
    value = checked_threshold(threshold)
    mlps = find_gated_mlps(model)
    for mlp in mlps:
        if not isinstance(mlp.module.act_fn, FATReLU):
            weight = next((p for p in mlp.module.parameters() if p.is_floating_point()), None)
            place: dict[str, Any] = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
            mlp.module.act_fn = FATReLU(**place).train(mlp.module.training)
    _put(mlps, dict.fromkeys(range(len(mlps)), value))
    _describe(model, mlps)
    return model


def set_threshold(model: nn.Module, threshold: Threshold | Mapping[int, Threshold]) -> None:
    """Change the threshold of every gated MLP, or of those named by their index in the order of the model: step 3.

    Args:
        model: a model that went through `relufy`.
        threshold: one for all, or {index of a gated MLP: threshold}; those not named keep theirs. A threshold is a
            number >= 0 or a tensor of one a channel, (d_ff,).

    Raises ValueError for a model without FATReLU, an index that does not exist, or a negative threshold. Nothing is
    changed then.
    """
    mlps = find_gated_mlps(model)
    _activations(mlps)
    named = dict(threshold) if isinstance(threshold, Mapping) else dict.fromkeys(range(len(mlps)), threshold)
    for index in named:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(mlps):
            raise ValueError(f"threshold: got the index {index!r}, wanted 0 to {len(mlps) - 1}")
    _put(mlps, {index: checked_threshold(value) for index, value in named.items()})
    _describe(model, mlps)


def thresholds(model: nn.Module) -> list[Tensor]:
    """The thresholds of the gated MLPs in the order of the model, each of shape () or (d_ff,).

    Raises ValueError for a model in which one of them has no FATReLU.
    """
    return [activation.threshold for activation in _activations(find_gated_mlps(model))]


def _activations(mlps: list[GatedMLP]) -> list[FATReLU]:
    found = []
    for name, module in mlps:
        if not isinstance(module.act_fn, FATReLU):
            kind = type(module.act_fn).__name__
            raise ValueError(f"model: got {kind} in {name!r}, wanted FATReLU in every gated MLP: call relufy first")
        found.append(module.act_fn)
    return found


def _put(mlps: list[GatedMLP], named: Mapping[int, Tensor]) -> None:
    for index, value in named.items():
        width = getattr(mlps[index].module.gate_proj, "out_features", None)
        if value.ndim and width is not None and len(value) != width:
            raise ValueError(f"threshold: got {len(value)} for the {width} channels of {mlps[index].name!r}")
    activations = _activations(mlps)
    for index, value in named.items():
        held = activations[index]
        if held.threshold.shape == value.shape:
            held.threshold.copy_(value)  # the buffer stays the one that compiled graphs and wrappers hold
        else:
            held.threshold = value.to(device=held.threshold.device, dtype=held.threshold.dtype, copy=True)


def _describe(model: nn.Module, mlps: list[GatedMLP]) -> None:
    """Write activation and threshold into the configurations: a number, a list of one a layer, or None for channels."""
    values = [activation.threshold for activation in _activations(mlps)]
    parameter: float | list[float] | None = None
    if all(value.ndim == 0 and not value.is_meta for value in values):
        # seven digits: float32 and bfloat16 hold 0.01 only nearly
        numbers = [_readable(value) for value in values]
        parameter = numbers[0] if len(set(numbers)) == 1 else numbers
    for holder in (model, *(mlp.module for mlp in mlps)):
        config: Any = getattr(holder, "config", None)
        for name in CONFIG_NAMES:
            if hasattr(config, name):
                setattr(config, name, "relu" if parameter == 0.0 else "fatrelu")
                config.hidden_act_param = parameter


def _readable(value: Tensor) -> float:
    number = float(value)
    digits = max(1, math.floor(-math.log10(torch.finfo(value.dtype).eps)))
    return float(f"{number:.{digits}g}")
