"""The vectors of all papers in memory, and the nearest of them by exact dot products.

One contiguous matrix, float32, or int8 with one scale a row where that many would be too large: a query reads each
vector once, so its time is the matrix's size over the bandwidth of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Vectors"]

Matrix = NDArray[np.float32]
Numbers = NDArray[np.int64]

BLOCK = 16_384
"""Rows of int8 that are made float32 at once: they stay in cache."""


@dataclass(frozen=True)
class _Held:
    """Rows up to `size`, by rising number; what lies beyond is room."""

    numbers: Numbers
    matrix: NDArray[np.float32] | NDArray[np.int8]
    scales: Matrix
    size: int


class Vectors:
    """Unit vectors by the paper's number. Reading threads may share them while one thread writes.

    Args:
        dimensions: of a vector.
        capacity: rows to make room for at once.
        int8: keep 8 bits a number and a scale a row: a quarter of the memory, dot products to about 0.5 %.
    """

    def __init__(self, dimensions: int, capacity: int = 0, *, int8: bool = False) -> None:
        self.dimensions, self.int8 = dimensions, int8
        self._held = self._room(capacity)

    def __len__(self) -> int:
        return self._held.size

    @property
    def nbytes(self) -> int:
        """Bytes of memory, room included."""
        held = self._held
        return held.numbers.nbytes + held.matrix.nbytes + held.scales.nbytes

    def _room(self, rows: int) -> _Held:
        matrix: NDArray[np.float32] | NDArray[np.int8]
        if self.int8:
            matrix = np.zeros((rows, self.dimensions), np.int8)
        else:
            matrix = np.zeros((rows, self.dimensions), np.float32)
        return _Held(np.zeros(rows, np.int64), matrix, np.ones(rows if self.int8 else 0, np.float32), 0)

    def put(self, numbers: Numbers, vectors: Matrix) -> None:
        """Keep the vectors of these papers, in the place of what was kept of them."""
        if vectors.shape != (len(numbers), self.dimensions):
            raise ValueError(f"vectors: got {vectors.shape}, wanted {(len(numbers), self.dimensions)}")
        order = np.argsort(numbers)
        numbers, vectors = numbers[order], vectors[order]
        held = self._held
        places = np.searchsorted(held.numbers[: held.size], numbers)
        known = places < held.size
        known[known] = held.numbers[places[known]] == numbers[known]
        self._write(held, places[known], vectors[known])
        numbers, vectors = numbers[~known], vectors[~known]
        if len(numbers) and held.size and numbers[0] < held.numbers[held.size - 1]:
            self._merge(numbers, vectors)
        elif len(numbers):
            self._append(numbers, vectors)

    def _append(self, numbers: Numbers, vectors: Matrix) -> None:
        held, size = self._held, self._held.size + len(numbers)
        if size > len(held.numbers):
            larger = self._room(size + size // 8)
            for old, new in zip(
                (held.numbers, held.matrix, held.scales), (larger.numbers, larger.matrix, larger.scales), strict=True
            ):
                new[: min(held.size, len(old))] = old[: held.size]
            held = larger
        held.numbers[size - len(numbers) : size] = numbers
        self._write(held, np.arange(size - len(numbers), size), vectors)
        self._held = _Held(held.numbers, held.matrix, held.scales, size)

    def _merge(self, numbers: Numbers, vectors: Matrix) -> None:
        """Papers whose numbers lie between those that are kept: rare, so that all rows may be moved."""
        held = self._held
        after = np.concatenate([held.numbers[: held.size], numbers])
        order = np.argsort(after, kind="stable")
        made = self._room(len(after))
        made.numbers[:] = after[order]
        made.matrix[np.searchsorted(made.numbers, held.numbers[: held.size])] = held.matrix[: held.size]
        if self.int8:
            made.scales[np.searchsorted(made.numbers, held.numbers[: held.size])] = held.scales[: held.size]
        self._write(made, np.searchsorted(made.numbers, numbers), vectors)
        self._held = _Held(made.numbers, made.matrix, made.scales, len(after))

    def _write(self, held: _Held, places: NDArray[np.intp], vectors: Matrix) -> None:
        if self.int8:
            scales = np.maximum(np.abs(vectors).max(axis=1, initial=0.0), 1e-12) / 127
            held.matrix[places] = np.rint(vectors / scales[:, None]).astype(np.int8)
            held.scales[places] = scales
        else:
            held.matrix[places] = vectors

    def drop(self, numbers: Numbers) -> None:
        """Forget these papers."""
        held = self._held
        kept = np.flatnonzero(~np.isin(held.numbers[: held.size], numbers))
        if len(kept) < held.size:
            scales = held.scales[kept] if self.int8 else held.scales
            self._held = _Held(held.numbers[kept], held.matrix[kept], scales, len(kept))

    def get(self, numbers: Numbers) -> Matrix:
        """The vectors of these papers, which must be known (KeyError), one a row."""
        held = self._held
        places = np.searchsorted(held.numbers[: held.size], numbers)
        if (places >= held.size).any() or (held.numbers[places] != numbers).any():
            raise KeyError(f"numbers: got {numbers.tolist()[:5]}, of which some have no vector")
        return self._rows(held, places)

    def _rows(self, held: _Held, places: NDArray[np.intp] | slice) -> Matrix:
        rows = held.matrix[places].astype(np.float32)
        return rows * held.scales[places][:, None] if self.int8 else rows

    def nearest(self, query: Matrix, limit: int, among: Numbers | None = None) -> list[tuple[int, float]]:
        """(number, dot product) of the nearest papers with a product above 0, best first, at most `limit`.

        Args:
            query: a vector of unit length; zeros are near to nothing.
            among: only these papers, by rising number.
        """
        held = self._held
        numbers = held.numbers[: held.size]
        if among is None:
            products = self._products(held, query)
        else:
            places = np.searchsorted(numbers, among)
            there = places < held.size
            there[there] = numbers[places[there]] == among[there]
            places = places[there]
            numbers = numbers[places]
            # reading a few rows is quicker than reading all
            few = len(places) < held.size // 4
            products = self._rows(held, places) @ query if few else self._products(held, query)[places]
        if len(products) > limit:
            best = np.argpartition(-products, limit)[:limit]
        else:
            best = np.arange(len(products))
        best = best[products[best] > 0]
        best = best[np.lexsort((numbers[best], -products[best]))]
        return [(int(numbers[place]), float(products[place])) for place in best]

    def _products(self, held: _Held, query: Matrix) -> Matrix:
        if not self.int8:
            found: Matrix = held.matrix[: held.size] @ query
            return found
        made = np.empty(held.size, np.float32)
        room = np.empty((min(BLOCK, held.size), self.dimensions), np.float32)
        for start in range(0, held.size, BLOCK):
            rows = held.matrix[start : min(start + BLOCK, held.size)]
            np.copyto(room[: len(rows)], rows)
            np.dot(room[: len(rows)], query, out=made[start : start + len(rows)])
        return made * held.scales[: held.size]
