"""The paper's accounting: what a block keeps for its backward pass, and the operations of a training step.

Both rules are reconstructed; they reproduce the published savings. Both count one image.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from paperworks.efficiency.mobiletl.activation import SignedActivation
from paperworks.efficiency.mobiletl.norm import ShiftOnlyNorm2d
from paperworks.measure.multiply_adds import LayerCall, layer_calls
from paperworks.surgery.inverted_residuals import activation_kind, inverted_residuals, is_norm

__all__ = ["TrainingFlops", "block_memory", "training_flops"]

METHODS = ("ft", "mobiletl")


def block_memory(
    c_in: int,
    c_out: int,
    expand: float,
    hw_in: int,
    hw_out: int,
    *,
    se: bool = False,
    act: str = "relu6",
    method: str = "ft",
) -> float:
    """32-bit floats that one inverted residual block keeps for one image.

    With E = expand c_in: the inputs of the three convolutions (c_in A_in, E A_in, E A_out), of the last norm
    (c_out A_out), of the two activations, and in fine-tuning of the two inner norms (E A_in, E A_out). An activation
    of n values keeps n (hard-swish) or 2 n bits (ReLU6) in fine-tuning and n bits in MobileTL. Squeeze-excite keeps its
    wide factor (E A_out) and 2.5 E pooled values. At expansion 1 there is no first convolution, norm and activation.

    Args:
        c_in, c_out: channels of the block's input and output.
        expand: ratio of the wide channels to c_in.
        hw_in, hw_out: areas H W before and after the stride, 196 for 14 x 14.
        se: whether the block has squeeze-excite.
        act: "relu6" or "hardswish".
        method: "ft" (fine-tuning) or "mobiletl".

    Raises:
        ValueError: another `act` or `method`, or a number that is not positive.
    """
    for name, value in {"c_in": c_in, "c_out": c_out, "expand": expand, "hw_in": hw_in, "hw_out": hw_out}.items():
        if not value > 0:
            raise ValueError(f"{name}: got {value!r}, want a number > 0")
    if act not in ("relu6", "hardswish"):
        raise ValueError(f"act: got {act!r}, want 'relu6' or 'hardswish'")
    _check_method(method)
    floats_a_value = 1 / 32 if method == "mobiletl" else 1.0 if act == "hardswish" else 2 / 32
    norm = 0.0 if method == "mobiletl" else 1.0
    wide = expand * c_in
    stored = wide * hw_out * (norm + floats_a_value + 1) + c_out * hw_out
    stored += wide * hw_in * (norm + floats_a_value + 1) + c_in * hw_in if expand != 1 else wide * hw_in
    return stored + (wide * hw_out + 2.5 * wide if se else 0.0)


@dataclass(frozen=True)
class TrainingFlops:
    """Floating-point operations of a training step on one image; a multiply-add is two.

    Attributes:
        forward, backward: of the two passes. The update of the weights is not counted.
    """

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Both passes."""
        return self.forward + self.backward


def training_flops(
    model: nn.Module,
    input_size: int,
    trained: Sequence[str] | None,
    *,
    method: str = "ft",
    elementwise: bool = True,
) -> TrainingFlops:
    """Operations of one training step of `model` on one image, stem, head and classifier included.

    A convolution or linear layer costs its forward once more for the gradient of its weight, if it trains, and once
    more for that of its input, if anything below trains. Elementwise, for each value: a norm 2 forward and 6 backward
    (2 where only its shift trains, 1 where it stands still in the gradient's way); hard-swish and SiLU 4 and 4; ReLU
    types 1 and 1; an activation by the sign rule 1 backward. Nothing is computed: the shapes come from a copy without
    memory.

    Args:
        model: a network as it is before or after `mobiletl`.
        input_size: side of the image in pixels.
        trained: names of the modules that train, with all that is in them; None for all.
        method: "mobiletl" counts the inner norms of the trained inverted residual blocks as shift-only and their
            activations by the sign rule.
        elementwise: False counts convolutions and linear layers only.

    Raises:
        ValueError: an unknown `method`, a name that the model does not have, or a model without a convolution.
    """
    _check_method(method)
    modules = dict(model.named_modules())
    for name in trained or ():
        if name not in modules:
            raise ValueError(f"trained: got {name!r}, which {type(model).__name__} does not have")
    cheap = _inner_parts(model, trained) if method == "mobiletl" else set()
    forward = backward = 0.0
    reached = False  # whether a gradient has to come this far down
    for call in _calls(model, input_size):
        trains = trained is None or any(_is_in(call.name, name) for name in trained)
        trains = trains and next(call.module.parameters(), None) is not None
        if call.macs:
            forward += 2 * call.macs
            backward += 2 * call.macs * (trains + reached)
        elif elementwise:
            values = 1
            for size in call.output_shape:
                values *= size
            up, down = _elementwise(call.module, call.name in cheap, trains)
            forward += values * up
            backward += values * down * (trains or reached)
        reached = reached or trains
    return TrainingFlops(forward, backward)


def _elementwise(module: nn.Module, cheap: bool, trains: bool) -> tuple[int, int]:
    """Operations a value of a norm or activation, forward and backward."""
    if isinstance(module, ShiftOnlyNorm2d):
        up, down = 2, 2
        if isinstance(module.act, SignedActivation):  # one pass for both: the activation is not called by itself
            more = _elementwise(module.act, cheap, trains)
            up, down = up + more[0], down + more[1]
        return up, down
    if is_norm(module):
        return 2, (2 if cheap else 6) if trains else 1
    kind = module.kind if isinstance(module, SignedActivation) else activation_kind(module)
    by_sign = cheap or (isinstance(module, SignedActivation) and module.backward_rule == "sign")
    return (4, 1 if by_sign else 4) if kind in ("hardswish", "silu") else (1, 1)


def _calls(model: nn.Module, input_size: int) -> list[LayerCall]:
    """The calls of layers, norms and activations for one image, on a copy without memory."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"model: no Conv2d in {type(model).__name__}")
    counted = {type(m) for m in model.modules() if _counts(m)}
    shapes = copy.deepcopy(model).to("meta").eval()
    image = torch.empty(1, first.in_channels, input_size, input_size, dtype=first.weight.dtype, device="meta")
    return layer_calls(shapes, image, kinds=tuple(counted))


def _counts(module: nn.Module) -> bool:
    known = isinstance(module, nn.Conv2d | nn.Linear | SignedActivation)
    return known or is_norm(module) or activation_kind(module) is not None


def _inner_parts(model: nn.Module, trained: Iterable[str] | None) -> set[str]:
    """Names of the inner norms and their activations in the inverted residual blocks that train."""
    found: set[str] = set()
    for block in inverted_residuals(model):
        if trained is None or any(_is_in(block.name, name) for name in trained):
            for stage in block.inner:
                found |= {stage.norm, f"{stage.norm}.act"} | ({stage.activation} if stage.activation else set())
            found |= {block.shared_activation} if block.shared_activation else set()
    return found


def _is_in(name: str, outer: str) -> bool:
    return outer == "" or name == outer or name.startswith(f"{outer}.")


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, want 'ft' or 'mobiletl'")
