"""What a training step keeps for its backward pass, in bytes, each storage once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["MemoryReport", "stored_activations"]


@dataclass(frozen=True)
class MemoryReport:
    """Stored activations.

    Attributes:
        bytes: of all storages that the graph keeps.
        rows: (qualified module name, bytes) of those a module stored first, in the order of the forward pass; the
            model's own functions are under "", what the loss stores under "loss".
    """

    bytes: int
    rows: list[tuple[str, int]]


def stored_activations(model: nn.Module, inputs: Any, *, loss: Callable[[Any], Tensor] | None = None) -> MemoryReport:
    """Run one forward pass in the mode that `model` is in and count what autograd saves.

    Storages are counted, not tensors: views, expanded tensors and tensors saved by two operations count once. The
    model's parameters and buffers are left out, as are tensors on them (a transposed weight), for they are there
    anyway. What was saved and freed again while the pass ran (inside checkpointed parts) does not count.

    Args:
        model: any module.
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments.
        loss: function of the model's output; what it saves counts too. None: the forward pass alone.
    """
    owned = {t.untyped_storage()._cdata for t in chain(model.parameters(), model.buffers())}
    sizes: dict[int, int] = {}
    holders: dict[int, str] = {}
    alive: list[Tensor] = []  # so that no storage is freed and its identity given to another
    stack: list[str] = [""]

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in owned and key not in sizes:
            sizes[key] = tensor.untyped_storage().nbytes()
            holders[key] = stack[-1]
            alive.append(tensor.detach())
        return tensor

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
            handles.append(module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True))
    try:
        with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
            output = _call(model, inputs)
            if loss is not None:
                stack.append("loss")
                output = loss(output)
    finally:
        for handle in handles:
            handle.remove()
    rows: dict[str, int] = {}
    for key, holder in holders.items():
        rows[holder] = rows.get(holder, 0) + sizes[key]
    del output
    return MemoryReport(sum(sizes.values()), list(rows.items()))


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
