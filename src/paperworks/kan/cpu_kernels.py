"""The C loops of `fused.c` and the matrix products around them, for float32 on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from paperworks import native

SILU = 0
"""The number of the base term's function in the kernels."""
Codes = tuple[tuple[int, Tensor | None], ...]
"""Runs as the kernels take them: the family's number and the columns (int32), None for all inputs."""

_TILE = 1 << 20  # floats of one block of the basis matrix
_SHARE = 1 << 14  # functions of one input that are worth a thread
_FEW = 16  # outputs up to which a layer can be small
_LANES = 1 << 13  # weights up to which it can: eight lanes of each stay in the second cache
_WORK = 1 << 23  # multiply-adds up to which it can: beyond, threads pay


@cache
def cpu_kernels() -> Loops | None:
    """The compiled loops, or None where there is no compiler."""
    p, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    tile = [p, size, size, p, size, number, number, size, p]
    sums = [size, size, number, size, p, p, p, size, p]
    types = {
        "kan_tile": [*tile, number],
        "kan_tile_backward": [*tile, p, number],
        "kan_sum": [p, *sums],
        "kan_sum_backward": [p, p, *sums, p, p],
    }
    library = native.load(Path(__file__).with_name("fused.c"), types)
    return None if library is None else Loops(library)


def _is_small(x: Tensor, weights: Sequence[Tensor]) -> bool:
    each = sum(w.numel() for w in weights)
    return weights[0].shape[0] <= _FEW and each <= _LANES and each * x.shape[0] <= _WORK


class _Small:
    """The terms of a small layer as the C function takes them; keeps alive what it points to."""

    def __init__(self, x: Tensor, plan: Sequence[Codes], weights: Sequence[Tensor]) -> None:
        terms, width = len(plan), x.shape[1]
        self._weights = [w.detach().contiguous() for w in weights]
        self._families = (ctypes.c_int32 * (terms * width))()
        for t, runs in enumerate(plan):
            for code, columns in runs:
                for d in range(width) if columns is None else columns.tolist():
                    self._families[t * width + d] = code
        self._functions = (ctypes.c_int64 * terms)(*(w.shape[2] if w.ndim == 3 else 1 for w in weights))
        self._pointers = (ctypes.c_void_p * terms)(*(w.data_ptr() for w in self._weights))
        self.arguments = (terms, self._functions, self._families, self._pointers, weights[0].shape[0])


class Loops:
    """The C loops: a small layer as a whole; of a large one the basis matrix, between matrix products."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._tile, self._tile_backward = library.kan_tile, library.kan_tile_backward
        self._sum, self._sum_backward = library.kan_sum, library.kan_sum_backward

    def forward(self, x: Tensor, plan: Sequence[Codes], weights: Sequence[Tensor], squash: int) -> Tensor:
        """y (N, O) of x (N, D), the runs of each term and its weights."""
        y = x.new_empty(x.shape[0], weights[0].shape[0])
        if _is_small(x, weights):
            small = _Small(x, plan, weights)
            self._sum(x.data_ptr(), *x.shape, squash, *small.arguments, y.data_ptr())
            return y
        matrices = [w.detach().flatten(1).t() for w in weights]
        widths = [m.shape[0] for m in matrices]
        for start, count, tile in _blocks(x, widths):
            out = y.narrow(0, start, count)
            for i, (runs, matrix) in enumerate(zip(plan, matrices, strict=True)):
                block = tile[: count * widths[i]].view(count, widths[i])
                self.expand(x, start, count, runs, squash, block)
                torch.addmm(out, block, matrix, beta=float(i > 0), out=out)
        return y

    def backward(
        self,
        x: Tensor,
        g: Tensor,
        plan: Sequence[Codes],
        weights: Sequence[Tensor],
        squash: int,
        wanted: Sequence[bool],
    ) -> list[Tensor | None]:
        """Gradients of x and of each weight for g (N, O), contiguous; None where not wanted."""
        dx = torch.zeros_like(x) if wanted[0] else None
        if _is_small(x, weights):
            small, sizes = _Small(x, plan, weights), [w.numel() for w in weights]
            room, dw = x.new_zeros(8 * sum(sizes)), x.new_empty(sum(sizes))
            ends = (None if dx is None else dx.data_ptr(), room.data_ptr(), dw.data_ptr())
            self._sum_backward(x.data_ptr(), g.data_ptr(), *x.shape, squash, *small.arguments, *ends)
            parts = zip(dw.split(sizes), weights, wanted[1:], strict=True)
            return [dx, *(part.view_as(w) if needed else None for part, w, needed in parts)]
        matrices = [w.detach().flatten(1) for w in weights]
        widths = [m.shape[1] for m in matrices]
        grads = [torch.empty_like(m) if needed else None for m, needed in zip(matrices, wanted[1:], strict=True)]
        for start, count, tile in _blocks(x, widths):
            dy = g.narrow(0, start, count)
            for i, (runs, matrix, d_matrix) in enumerate(zip(plan, matrices, grads, strict=True)):
                block = tile[: count * widths[i]].view(count, widths[i])
                if d_matrix is not None:
                    self.expand(x, start, count, runs, squash, block)
                    torch.addmm(d_matrix, dy.t(), block, beta=float(start > 0), out=d_matrix)
                if dx is not None:
                    torch.mm(dy, matrix, out=block)
                    self.contract(x, start, count, runs, squash, block, dx)
        return [dx, *(None if d is None else d.view_as(w) for d, w in zip(grads, weights, strict=True))]

    def expand(self, x: Tensor, start: int, count: int, runs: Codes, squash: int, block: Tensor) -> None:
        """Fill `block` (count, D K) with the basis functions of `count` rows of x (N, D) from row `start` on."""
        width, to = x.shape[1], block.data_ptr()
        k, at = block.shape[1] // width, x.data_ptr() + 4 * start * width
        for code, columns in runs:
            pointer, n = _columns(columns, width)
            self._tile(at, count, width, pointer, n, code, squash, k, to, _threads(count * n * k))

    def contract(self, x: Tensor, start: int, count: int, runs: Codes, squash: int, block: Tensor, dx: Tensor) -> None:
        width, source, offset = x.shape[1], block.data_ptr(), 4 * start * x.shape[1]
        k, at, to = block.shape[1] // width, x.data_ptr() + offset, dx.data_ptr() + offset
        for code, columns in runs:
            pointer, n = _columns(columns, width)
            self._tile_backward(at, count, width, pointer, n, code, squash, k, source, to, _threads(count * n * k))


def _columns(columns: Tensor | None, width: int) -> tuple[int | None, int]:
    return (None, width) if columns is None else (columns.data_ptr(), columns.shape[0])


def _threads(work: int) -> int:
    return max(1, min(torch.get_num_threads(), work // _SHARE))


def _blocks(x: Tensor, widths: Sequence[int]) -> Iterator[tuple[int, int, Tensor]]:
    """First row and number of rows, a block at a time, and room for the widest basis matrix of that many rows."""
    total, widest = x.shape[0], max(widths)
    rows = min(total, max(64, _TILE // widest))
    tile = x.new_empty(rows * widest)
    for start in range(0, total, rows):
        yield start, min(rows, total - start), tile
