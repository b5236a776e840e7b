"""Record what flows through the parts of a model, with its graph, so that a loss can be made of it.

A method that regularises activations (their L1 norm, their share of zeros) needs the tensors of the latest forward
pass, attached to the graph, for the tokens that are no padding. `Recorder` is a context manager over forward hooks.

Under gradient checkpointing the hooks run a second time in the backward pass, for tensors that were dropped; those
calls are passed over. What checkpointing with `use_reentrant=True` computes has no graph in the forward pass, so
nothing can be made of it: `Recorder.values` says so.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

__all__ = ["Recorder", "valid", "watching"]


class Recorder(AbstractContextManager["Recorder"]):
    """Keeps the input or output of the named modules of a model, in its latest forward pass, with graph.

    A module that is called several times in one pass (shared weights) has several tensors; so have the replicas of an
    `nn.DataParallel` that is itself given as `model`. What was recorded can be read after the block; the hooks are
    gone then. May be entered again.

    Args:
        model: the module whose forward call begins a pass: the one that is trained, or one inside its wrapper.
        names: qualified names of modules in `model`; "" is the model itself.
        at: "input" takes the first argument of each module, "output" what it returns (of a tuple the first entry).

    Raises:
        TypeError: `model` is no `nn.Module`, `names` is a string.
        ValueError: a name is not in the model, no name at all, or another `at`.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], *, at: Literal["input", "output"] = "input") -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, want an nn.Module")
        if isinstance(names, str):
            raise TypeError(f"names: got the string {names!r}, want a list of names")
        if at not in ("input", "output"):
            raise ValueError(f"at: got {at!r}, want 'input' or 'output'")
        self.model, self.names, self.at = model, list(names), at
        if not self.names:
            raise ValueError("names: got none, want at least one module to record")
        modules = dict(model.named_modules(remove_duplicate=False))
        if unknown := [name for name in self.names if name not in modules]:
            raise ValueError(f"names: got {unknown[0]!r}, which the model does not have")
        self._modules = {name: modules[name] for name in self.names}
        self._handles: list[RemovableHandle] = []
        self._values: dict[str, list[Tensor]] = {}
        self._cut_off: str | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Recorder:
        if self._handles:
            raise RuntimeError("this recorder is recording already")
        self._values = {}
        self._handles.append(self.model.register_forward_pre_hook(self._begin))
        for name, module in self._modules.items():
            if self.at == "input":
                self._handles.append(module.register_forward_pre_hook(self._take_input(name), with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._take_output(name)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def values(self) -> dict[str, list[Tensor]]:
        """The tensors of the latest pass by module name, in the order of `names`, one a call.

        Raises:
            RuntimeError: no pass yet, a module that was not called, or tensors cut off from the graph by reentrant
                checkpointing.
        """
        missing = [name for name in self.names if name not in self._values]
        if missing:
            raise RuntimeError(f"nothing recorded of {missing[0]!r}: run the model inside the block first")
        if self._cut_off is not None:
            raise RuntimeError(
                f"{self._cut_off!r} is computed without a graph by gradient checkpointing; turn that on with "
                "use_reentrant=False"
            )
        return {name: list(self._values[name]) for name in self.names}

    def _begin(self, *_: object) -> None:
        if not _in_backward():
            with self._lock:
                self._values, self._cut_off = {}, None

    def _keep(self, name: str, value: Any) -> None:
        if _in_backward():
            return
        if isinstance(value, tuple | list):
            value = value[0]
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got a {type(value).__name__} as {self.at}, want a tensor")
        with self._lock:
            self._values.setdefault(name, []).append(value)
            if not torch.is_grad_enabled() and _in_reentrant_checkpoint():
                self._cut_off = name

    def _take_input(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(name, args[0] if args else next(iter(kwargs.values()), None))

        return hook

    def _take_output(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self._keep(name, output)

        return hook


@contextmanager
def watching(modules: Mapping[str, nn.Module], visit: Callable[[str, nn.Module, Tensor], object]) -> Iterator[None]:
    """Inside the block call `visit(name, module, x)` with the first argument of each module before it is computed.

    For statistics of what flows, taken piece by piece, where keeping the tensors would take too much memory.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            hook = partial(_visit, visit, name)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _visit(visit: Callable[..., object], name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    visit(name, module, args[0] if args else next(iter(kwargs.values())))


def _in_backward() -> bool:
    """Whether this thread is inside a backward pass, where only recomputation calls modules."""
    return torch._C._current_graph_task_id() != -1


def _in_reentrant_checkpoint() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def valid(value: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The rows of (B, T, H) whose mask is not 0, as (N, H); all of them without a mask.

    Args:
        value: (..., H), or (B, T, H) where there is a mask.
        attention_mask: (B, T), 1 = valid, 0 = padding.

    Raises:
        ValueError: mask and value differ in (B, T).
    """
    if attention_mask is None:
        return value.flatten(0, -2)
    if attention_mask.shape != value.shape[:-1]:
        got, want = tuple(attention_mask.shape), tuple(value.shape[:-1])
        raise ValueError(f"attention_mask: got shape {got}, want {want}")
    return value[attention_mask.to(value.device) != 0]
