"""Similarity and nearest distance to a training set: exact, without sorting and without a top-k limit.

With the failing points of a query (those whose own prediction is wrong or differs from the query's) the count of
consecutive nearest matches (Eq. 5) is

    d_fail = min distance over failing points,    q = #{matching points with distance < d_fail},

one matrix product and two reductions.  The product |b|^2 - 2 a.b cancels for close points, so every comparison that
its rounding could decide is made again on the difference a - b in float64: q and d_nearest do not depend on the
chunking, the number of threads or the dtype of the product, and a duplicate is at distance 0.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

_BLOCK = 1 << 25  # entries of one block of the distance matrix
_PAIRS = 1 << 22  # entries of the differences that are held at once


def _integers(values: ArrayLike | Tensor, name: str, size: int, device: torch.device) -> Tensor:
    tensor = torch.as_tensor(values)
    if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.is_complex():
        raise TypeError(f"{name} must hold integer classes, got {tensor.dtype}")
    if tensor.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(tensor.shape)}")
    return tensor.to(device=device, dtype=torch.int64)


def _largest_entry(t: Tensor, name: str) -> float:
    """max |t|, and the check that every entry is finite, in one pass."""
    low, high = (float(end) for end in torch.aminmax(t)) if t.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return max(-low, high)


def _count_rows(mask: Tensor) -> Tensor:
    # NumPy counts the True of a row ten times faster than a sum over a CPU tensor of bools.
    if mask.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1).astype(np.int64))
    return mask.sum(1)


class SupportIndex:
    """The labelled exemplars of D_tr with their own predictions.

    Args:
        exemplars: h' of the training points, (N, M) floating point, finite.
        labels: true classes (N,), integers.
        predictions: classes the current model gives to those points (N,), integers.
        backend: what `neighbours` searches with: "torch", or "faiss" (a flat L2 index).  `query` is the same in both.
        chunk: most query rows in one block.

    Raises:
        ValueError: shapes that do not fit, no exemplars, non-finite exemplars, unknown backend.
        TypeError: exemplars that are not floating point, classes that are not integers.
        ImportError: backend "faiss" without faiss.
    """

    def __init__(
        self,
        exemplars: ArrayLike | Tensor,
        labels: ArrayLike | Tensor,
        predictions: ArrayLike | Tensor,
        *,
        backend: Literal["torch", "faiss"] = "torch",
        chunk: int = 4096,
    ) -> None:
        e = torch.as_tensor(exemplars).detach()
        if not e.is_floating_point():
            raise TypeError(f"exemplars must be floating point, got {e.dtype}")
        if e.ndim != 2 or 0 in e.shape:
            raise ValueError(f"exemplars must have shape (N, M) with N, M >= 1, got {tuple(e.shape)}")
        self._largest = _largest_entry(e, "exemplars")
        if backend not in ("torch", "faiss"):
            raise ValueError(f"backend must be 'torch' or 'faiss', got {backend!r}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.exemplars = e.contiguous()
        self.labels = _integers(labels, "labels", len(e), e.device)
        self.predictions = _integers(predictions, "predictions", len(e), e.device)
        self.backend, self.chunk = backend, chunk
        # Exemplars of one "rightly predicted class" lie together, so that the matching and the failing points of a
        # query are slices and no mask is needed.
        group = torch.where(self.labels == self.predictions, self.predictions, torch.iinfo(torch.int64).min)
        self._group = group
        self._order = torch.argsort(group, stable=True)
        self._rank = torch.argsort(self._order)
        classes, counts = torch.unique_consecutive(group[self._order], return_counts=True)
        ends = counts.cumsum(0).tolist()
        self._bounds = {
            c: (end - n, end) for c, n, end in zip(classes.tolist(), counts.tolist(), ends, strict=True) if c >= 0
        }
        self._center = e.mean(0, dtype=torch.float64)
        self._coarse = e.dtype == torch.float64
        self._blocks: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        self._centred(torch.float64 if self._coarse else torch.float32)
        self._faiss = self._faiss_index() if backend == "faiss" else None

    def __len__(self) -> int:
        return len(self.exemplars)

    # -- the product and its error ---------------------------------------------------------------------------------

    def _centred(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The exemplars in group order, moved to their mean, and their squared norms."""
        if dtype not in self._blocks:
            b = torch.empty(self.exemplars.shape, dtype=dtype, device=self.exemplars.device)
            squares = torch.empty(len(b), dtype=dtype, device=b.device)
            for rows in torch.arange(len(b), device=b.device).split(1024):
                part = self.exemplars[self._order[rows]].double() - self._center
                b[rows], squares[rows] = part.to(dtype), torch.linalg.vecdot(part, part).to(dtype)
            self._blocks[dtype] = (b, squares)
        return self._blocks[dtype]

    def _product(self, h: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """|b|^2 - 2 a.b, equal to the squared distance up to a constant of the row, and a bound on its error (B,)."""
        b, squares = self._centred(dtype)
        a = h.double() - self._center
        norm = a.square().sum(1) + squares.max().double()
        roundoff = torch.finfo(dtype).eps / 2
        error = 2 * (h.shape[1] + 16) * roundoff * norm + torch.finfo(dtype).tiny
        return torch.addmm(squares[None], a.to(dtype), b.T, alpha=-2), error.to(dtype)[:, None]

    def _resolutions(self, h: Tensor) -> list[torch.dtype]:
        """float32 first where its range suffices and it has not yet proved too coarse, then float64."""
        if self._coarse or max(_largest_entry(h, "h"), self._largest) > 1e17:
            return [torch.float64]
        return [torch.float32, torch.float64]

    def _exact(self, h: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Squared distances of the pairs (row of h, column in group order) in float64."""
        step = max(1, _PAIRS // h.shape[1])
        out = [
            (h[r].double() - self.exemplars[self._order[c]].double()).square().sum(1)
            for r, c in zip(rows.split(step), columns.split(step), strict=True)
        ]
        return torch.cat(out) if out else torch.zeros(0, dtype=torch.float64, device=h.device)

    # -- queries ---------------------------------------------------------------------------------------------------

    def _checked(self, h: ArrayLike | Tensor) -> Tensor:
        t = torch.as_tensor(h).detach().to(self.exemplars.device)
        if not t.is_floating_point():
            raise TypeError(f"h must be floating point, got {t.dtype}")
        if t.ndim != 2 or t.shape[1] != self.exemplars.shape[1]:
            raise ValueError(f"h must have shape (B, {self.exemplars.shape[1]}), got {tuple(t.shape)}")
        _largest_entry(t, "h")
        return t

    @torch.no_grad()
    def query(
        self, h: ArrayLike | Tensor, predictions: ArrayLike | Tensor, *, exclude_self: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Similarity q (Eq. 5) and distance to the nearest exemplar of every row of h.

        Args:
            h: exemplar vectors (B, M).
            predictions: their predicted classes (B,).
            exclude_self: row i of h is exemplar i (B <= N) and is not its own neighbour.

        Returns:
            q (B,) int64, the consecutive nearest neighbours that are rightly predicted and have the row's predicted
            class; a failing point at the same distance comes first.  d_nearest (B,), the distance (not squared), in
            the exemplars' dtype; infinite when no other point exists.
        """
        h = self._checked(h)
        predicted = _integers(predictions, "predictions", len(h), h.device)
        if exclude_self and len(h) > len(self):
            raise ValueError(f"exclude_self needs at most as many rows as exemplars: got {len(h)} rows, {len(self)}")
        if h.is_cuda and _has_triton():
            from .support_triton import fused_query

            return fused_query(h, predicted, self.exemplars, self._group, exclude_self=exclude_self)
        q = torch.empty(len(h), dtype=torch.int64, device=h.device)
        nearest = torch.empty(len(h), dtype=torch.float64, device=h.device)
        step = max(1, min(self.chunk, _BLOCK // len(self)))
        by_class = torch.argsort(predicted, stable=True)
        for rows in by_class.split(step) if len(h) else ():
            own = self._rank[rows] if exclude_self else None
            q[rows], nearest[rows] = self._query_block(h[rows], predicted[rows], own)
        return q, nearest.to(self.exemplars.dtype)

    def _query_block(self, h: Tensor, predicted: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """q and d_nearest of rows that are sorted by their prediction."""
        for dtype in self._resolutions(h):
            s, error = self._product(h, dtype)
            if own is not None:
                s[torch.arange(len(h), device=h.device), own] = math.inf
            count, fail, match = self._undecided(s, error, predicted)
            # Points crowded below float32's resolution: cheaper to repeat the product than to check each pair.
            if len(fail[0]) + len(match[0]) <= 64 * len(h) + len(self):
                break
            self._coarse = True
        infinite = torch.full((len(h),), math.inf, dtype=torch.float64, device=h.device)
        fail_squared = self._exact(h, *fail)
        d_fail = infinite.scatter_reduce(0, fail[0], fail_squared, "amin")
        match_squared = self._exact(h, match[0], match[1])
        nearest = d_fail.scatter_reduce(0, match[0], match_squared, "amin")
        count.index_add_(0, match[0], (match[2] & (match_squared < d_fail[match[0]])).to(count.dtype))
        return count, nearest.sqrt()

    def _undecided(
        self, s: Tensor, error: Tensor, predicted: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """What the product decides, and the pairs that need an exact distance.

        Returns the count of matching points that are nearer than any failing one beyond doubt; the failing pairs
        (rows, columns) that may be the nearest; the matching pairs (rows, columns, whether the count is open) that
        may be the nearest point or lie about the nearest failing one.
        """
        count = torch.zeros(len(s), dtype=torch.int64, device=s.device)
        fails, matches = [], []
        classes, sizes = torch.unique_consecutive(predicted, return_counts=True)
        start = 0
        for c, size in zip(classes.tolist(), sizes.tolist(), strict=True):
            rows = slice(start, start + size)
            first, last = self._bounds.get(c, (0, 0))
            band = 2 * error[rows]
            before, matching, after = s[rows, :first], s[rows, first:last], s[rows, last:]
            d_fail = torch.full_like(band, math.inf)
            for part in (before, after):
                if part.shape[1]:
                    d_fail = torch.minimum(d_fail, part.amin(1, keepdim=True))
            # Without a failing point but the excluded self nothing is a candidate.
            limit = torch.where(d_fail < math.inf, d_fail + band, -math.inf)
            for part, offset in ((before, 0), (after, last)):
                i, j = (part <= limit).nonzero(as_tuple=True)
                fails.append((i + start, j + offset))
            if matching.shape[1]:
                d_match = matching.amin(1, keepdim=True)
                count[rows] = _count_rows(matching < d_fail - band)
                i, j = ((matching >= d_fail - band) & (matching <= limit)).nonzero(as_tuple=True)
                matches.append((i + start, j + first, torch.ones_like(i, dtype=torch.bool)))
                # The nearest point, where it is not among the pairs above.
                nearest = torch.minimum(torch.minimum(d_fail, d_match) + band, d_fail - band)
                nearest = torch.where(d_match < math.inf, nearest, -math.inf)
                i, j = (matching < nearest).nonzero(as_tuple=True)
                matches.append((i + start, j + first, torch.zeros_like(i, dtype=torch.bool)))
            start += size
        none = torch.zeros(0, dtype=torch.int64, device=s.device)
        fail = tuple(torch.cat(x) for x in zip(*fails, strict=True)) if fails else (none, none)
        match = tuple(torch.cat(x) for x in zip(*matches, strict=True)) if matches else (none, none, none.bool())
        return count, fail, match  # type: ignore[return-value]

    # -- neighbours ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def neighbours(self, h: ArrayLike | Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest exemplars of every row of h, nearest first; equal distances in the order of the exemplars.

        Returns:
            indices (B, k) int64 and distances (B, k) in the exemplars' dtype.

        Raises:
            ValueError: k is not in [1, N].
        """
        h = self._checked(h)
        if not 1 <= k <= len(self):
            raise ValueError(f"k must be between 1 and the number of exemplars {len(self)}, got {k}")
        step = max(1, min(self.chunk, _BLOCK // len(self)))
        blocks = [self._neighbour_block(rows, k) for rows in h.split(step)] if len(h) else []
        if not blocks:
            return torch.zeros(0, k, dtype=torch.int64, device=h.device), h.new_zeros(0, k, dtype=self.exemplars.dtype)
        indices, distances = (torch.cat(x) for x in zip(*blocks, strict=True))
        return indices, distances.to(self.exemplars.dtype)

    def _neighbour_block(self, h: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self._faiss is not None:
            _, found = self._faiss.search(np.ascontiguousarray(h.cpu().float().numpy()), k)
            columns = self._rank[torch.from_numpy(found).to(h.device).ravel()]
            rows = torch.arange(len(h), device=h.device).repeat_interleave(k)
        else:
            for dtype in self._resolutions(h):
                s, error = self._product(h, dtype)
                kth = s.topk(k, dim=1, largest=False).values[:, -1:]
                rows, columns = (s <= kth + 2 * error).nonzero(as_tuple=True)
                if len(rows) <= (64 + 2 * k) * len(h) + len(self):
                    break
                self._coarse = True
        squared, indices = self._exact(h, rows, columns), self._order[columns]
        order = torch.from_numpy(np.lexsort((indices.cpu().numpy(), squared.cpu().numpy(), rows.cpu().numpy())))
        order = order.to(h.device)
        starts = torch.searchsorted(rows[order], torch.arange(len(h), device=h.device))
        take = order[starts[:, None] + torch.arange(k, device=h.device)]
        return indices[take], squared[take].sqrt()

    def _faiss_index(self) -> Any:
        try:
            import faiss
        except ImportError as error:
            raise ImportError("backend='faiss' needs faiss: pip install 'paperworks[peers]'") from error
        index = faiss.IndexFlatL2(self.exemplars.shape[1])
        index.add(np.ascontiguousarray(self.exemplars.cpu().float().numpy()))
        return index

    def __getstate__(self) -> dict[str, object]:
        # The faiss index holds memory of its library and cannot be pickled; it is rebuilt from the exemplars.
        return {**self.__dict__, "_faiss": None, "_blocks": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if self.backend == "faiss":
            self._faiss = self._faiss_index()


def _has_triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None
