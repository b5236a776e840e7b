"""Bytes that eager tensor code reads and writes: the floor of what is bound by memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Traffic", "bytes_touched"]


@dataclass(frozen=True)
class Traffic:
    """Bytes moved by a call.

    Attributes:
        read: of the inputs of all operations.
        written: of their outputs.
        rows: (operation, bytes read and written), the largest first.
    """

    read: int
    written: int
    rows: list[tuple[str, int]]

    @property
    def total(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.read = self.written = 0
        self.by_operation: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            written = {_place(t): _bytes(t) for t in _tensors(output)}
            inputs = {_place(t): _bytes(t) for t in _tensors((args, kwargs))}
            # The destination of an in-place or `out=` operation is written; whether it is read too, the schema
            # does not say of all, so it counts as read only where the operation is in place.
            if func._schema.name.endswith(("_out", ".out")) or func._overloadname.endswith("out"):
                inputs = {place: size for place, size in inputs.items() if place not in written}
            self.read += sum(inputs.values())
            self.written += sum(written.values())
            name = func._schema.name.removeprefix("aten::")
            moved = sum(inputs.values()) + sum(written.values())
            self.by_operation[name] = self.by_operation.get(name, 0) + moved
        return output


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements: an expanded dimension is one."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride or not size else 1
    return elements * tensor.element_size()


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def bytes_touched(fn: Callable[[], object]) -> Traffic:
    """Bytes that the operations inside `fn()` read and write, its backward pass included if it runs one.

    Every operation counts its distinct inputs and outputs once, as if nothing stayed in a cache between operations
    and none were fused: the traffic of eager code, and an upper bound of a compiler's. Views move nothing. An
    operation that reads part of an input (indexing, an embedding) counts the whole input; code outside PyTorch (a
    native kernel) is not seen. A sparse or quantised tensor counts as its dense shape.
    """
    counter = _Counter()
    with counter:
        result = fn()
    del result
    rows = sorted(counter.by_operation.items(), key=lambda row: -row[1])
    return Traffic(counter.read, counter.written, [(name, size) for name, size in rows if size])
