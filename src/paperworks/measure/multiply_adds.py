"""Multiply-adds of a model under one rule, layer by layer, with what a mask leaves of them.

The rule ("multiply-adds"): every matrix product and convolution counts one for each multiply-add, so a linear layer
of (N, D) -> (N, O) counts N D O and a FLOP count of it is twice that. Additions of biases, norms, activations,
softmax and indexing count nothing. Padding counts as if it were data, as the literature does. Products that happen
outside a linear or convolution layer (attention, `einsum`) stand under the module whose forward does them.

Where shapes are all that matters, run on the meta device: nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["RULE", "LayerCall", "MultiplyAdds", "Row", "count_multiply_adds", "layer_calls"]

RULE = "multiply-adds: one a multiply-add of matrix products and convolutions, attention included, nothing else"

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer.

    Attributes:
        name: qualified name of the module.
        module: the module.
        input_shape, output_shape: of its first argument and of its (first) result.
        macs: multiply-adds of a linear or convolution layer; 0 of any other.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int


@dataclass(frozen=True)
class Row:
    """Multiply-adds of one module's own products, all and what the masks leave. A module used twice has one row."""

    name: str
    macs: int
    macs_kept: float


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds of one forward pass.

    Attributes:
        rule: what counts, in words.
        rows: in the order of the first call.
    """

    rows: list[Row]
    rule: str = field(default=RULE)

    @property
    def macs(self) -> int:
        """All multiply-adds."""
        return sum(row.macs for row in self.rows)

    @property
    def macs_kept(self) -> float:
        """Multiply-adds with weights that the masks keep."""
        return sum(row.macs_kept for row in self.rows)


def _layer_macs(module: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
    if isinstance(module, nn.Linear):
        return math.prod(output_shape) * module.in_features
    if isinstance(module, _CONVOLUTIONS):
        return math.prod(output_shape) * module.weight[0].numel()
    if isinstance(module, _TRANSPOSED):
        return math.prod(input_shape) * module.weight[0].numel()
    return 0


def layer_calls(
    model: nn.Module, *args: Any, kinds: tuple[type[nn.Module], ...] | None = None, **kwargs: Any
) -> list[LayerCall]:
    """The calls of the layers of `model` in one forward pass without a graph, in order.

    Args:
        model: any module, on any device; on "meta" nothing is computed.
        *args, **kwargs: what it is called with.
        kinds: module classes; None takes every module without children (parametrisations are no children).
    """
    calls: list[LayerCall] = []

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            if inputs and isinstance(inputs[0], Tensor) and isinstance(first, Tensor):
                shapes = tuple(inputs[0].shape), tuple(first.shape)
                calls.append(LayerCall(name, module, *shapes, _layer_macs(module, *shapes)))

        return record

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, kinds) if kinds is not None else _is_leaf(name, module):
                stack.callback(module.register_forward_hook(hook(name)).remove)
        with torch.no_grad():
            model(*args, **kwargs)
    return calls


def _is_leaf(name: str, module: nn.Module) -> bool:
    """No children, the parametrisations of its own weights apart, and no part of a parametrisation."""
    children = [child for child, _ in module.named_children() if child != "parametrizations"]
    return not children and "parametrizations" not in name.split(".")


def count_multiply_adds(
    model: nn.Module, *args: Any, masks: Mapping[str, Tensor] | None = None, **kwargs: Any
) -> MultiplyAdds:
    """Multiply-adds of one forward pass of `model`, without a graph.

    Args:
        model: any module, on any device; on "meta" nothing is computed.
        *args, **kwargs: what it is called with.
        masks: by parameter name (``"layers.0.fc1.weight"``), True where a weight is kept. The kept part of a layer is
            its multiply-adds times the kept part of its weight: each weight of a linear or convolution layer is used
            equally often.

    Raises:
        ValueError: a mask is for no weight of a linear or convolution layer, or has another shape.
    """
    shares = _kept_shares(model, masks or {})
    own = _OwnCounts()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(own.enter(name), prepend=True).remove)
            stack.callback(module.register_forward_hook(own.leave, always_call=True).remove)
        with torch.no_grad(), own.counter:
            model(*args, **kwargs)
    return MultiplyAdds([Row(name, macs, macs * shares.get(name, 1.0)) for name, macs in own.counts.items() if macs])


class _OwnCounts:
    """Attributes each multiply-add to the innermost module whose forward is running."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
        self.counts: dict[str, int] = {}
        self._running: list[str] = []
        self._settled = 0

    def enter(self, name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self._settle()
            self._running.append(name)
            self.counts.setdefault(name, 0)

        return hook

    def leave(self, *_: object) -> None:
        self._settle()
        self._running.pop()

    def _settle(self) -> None:
        total = self.counter.get_total_flops() // 2
        if self._running:
            self.counts[self._running[-1]] += total - self._settled
        self._settled = total


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of softmax(Q K^T) V; torch's counter knows the kernels of accelerators, not this one."""
    *batch, queries, width = query
    return 2 * math.prod(batch) * queries * key[-2] * (width + value[-1])


_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def _kept_shares(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Kept part of the weight by module name."""
    modules = dict(model.named_modules(remove_duplicate=False))
    shares = {}
    for name, mask in masks.items():
        module_name, _, attribute = name.rpartition(".")
        module = modules.get(module_name)
        if not isinstance(module, _LAYERS) or attribute != "weight":
            raise ValueError(f"masks: got {name!r}, want the weight of a linear or convolution layer of the model")
        if mask.shape != module.weight.shape:
            raise ValueError(f"masks: {name!r} has shape {tuple(mask.shape)}, want {tuple(module.weight.shape)}")
        shares[module_name] = float(torch.count_nonzero(mask)) / max(1, mask.numel())
    return shares
