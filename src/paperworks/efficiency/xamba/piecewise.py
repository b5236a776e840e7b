"""ActiBA's tables: an activation as a continuous piecewise-linear function (XAMBA, arXiv 2502.06924).

f(x) ~ a_k x + c_k on segment k, exact asymptotes outside (-bound, bound). The paper leaves the table to the compiler;
this one is fitted: knots with density sqrt|f''|, at which the errors |f''| h^2 / 8 of all segments are equal, then
the values at the knots that minimise the largest error (a linear programme, which puts f on both sides of the chords
and so about halves the error), and the knots once more moved towards the segments that still err most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Function = Callable[[np.ndarray], np.ndarray]
Line = tuple[float, float]
Values = TypeVar("Values", Tensor, np.ndarray)

CELLS = 1024
"""Knots lie on a grid of so many cells (more for many segments): a graph finds the segment by one floor and a table."""

_ROUNDS = 4
_POINTS_A_SEGMENT = 12


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


FUNCTIONS: dict[str, tuple[Function, tuple[Line, Line]]] = {
    "silu": (lambda x: x * _sigmoid(x), ((0.0, 0.0), (1.0, 0.0))),
    "softplus": (lambda x: np.logaddexp(0.0, x), ((0.0, 0.0), (1.0, 0.0))),
    "sigmoid": (_sigmoid, ((0.0, 0.0), (0.0, 1.0))),
}
"""By name: the function on float64 arrays, and its asymptotes (slope, intercept) to the left and to the right."""


class PiecewiseLinear:
    """A continuous piecewise-linear function with straight tails.

    Attributes:
        knots: (segments + 1,) float64, ascending, from -bound to bound.
        slopes, intercepts: (segments + 2,) float64: left tail, the segments, right tail.
    """

    def __init__(self, knots: np.ndarray, slopes: np.ndarray, intercepts: np.ndarray) -> None:
        self.knots, self.slopes, self.intercepts = (np.asarray(v, np.float64) for v in (knots, slopes, intercepts))
        if self.knots.ndim != 1 or len(self.knots) < 2 or not (np.diff(self.knots) > 0).all():
            raise ValueError(f"knots: got shape {self.knots.shape}, want two or more numbers in ascending order")
        for name in ("slopes", "intercepts"):
            if getattr(self, name).shape != (len(self.knots) + 1,):
                raise ValueError(f"{name}: got shape {getattr(self, name).shape}, want ({len(self.knots) + 1},)")

    @classmethod
    def fit(
        cls,
        f: str | Function,
        segments: int = 32,
        bound: float = 8.0,
        tails: tuple[Line, Line] | None = None,
    ) -> PiecewiseLinear:
        """Fit a table of least maximum error on [-bound, bound].

        Args:
            f: ``"silu"``, ``"softplus"`` or ``"sigmoid"``, or a function of float64 arrays.
            segments: between the outer knots, 2 or more.
            bound: where the tails begin, on either side of zero.
            tails: ((slope, intercept) left, right); known for the names, wanted for a callable. Since the outer knots
                lie on them, no table errs less than they do at the bound.

        Raises:
            ValueError: an unknown name (an exponential has no straight tail), a callable without tails, fewer than
                two segments, a bound that is not above zero, values that are not finite.
            TypeError: `f` is neither a name nor callable.
        """
        function, tails = _function_and_tails(f, tails)
        if isinstance(segments, bool) or not isinstance(segments, int | np.integer) or segments < 2:
            raise ValueError(f"segments: got {segments!r}, want an integer of 2 or more")
        if not (0 < bound < np.inf):
            raise ValueError(f"bound: got {bound!r}, want a finite number above 0")
        grid = np.linspace(-bound, bound, _cells(segments) + 1)
        density = _curvature_density(function, grid)
        best: tuple[float, np.ndarray, np.ndarray] | None = None
        for _ in range(_ROUNDS):
            knots = _spread(density, grid, segments)
            values, errors = _balanced_values(function, knots, tails)
            if best is None or errors.max() < best[0]:
                best = (float(errors.max()), knots, values)
            width = np.diff(knots)
            wanted = width * np.sqrt(errors.mean() / np.maximum(errors, 1e-3 * errors.mean() + 1e-300))
            density = np.repeat(1.0 / wanted, np.rint(width / (grid[1] - grid[0])).astype(int))
        assert best is not None
        _, knots, values = best
        slopes = np.diff(values) / np.diff(knots)
        (left, low), (right, high) = tails
        return cls(knots, np.r_[left, slopes, right], np.r_[low, values[:-1] - slopes * knots[:-1], high])

    @property
    def segments(self) -> int:
        """Number of segments between the outer knots."""
        return len(self.knots) - 1

    def __call__(self, x: Values) -> Values:
        """The value at every element of a floating tensor or array: same kind, shape and dtype."""
        if isinstance(x, Tensor):
            if not x.is_floating_point():
                raise TypeError(f"x: got {x.dtype}, want a floating-point tensor")
            knots, slopes, intercepts = (
                torch.from_numpy(v).to(x.device, torch.promote_types(x.dtype, torch.float32))
                for v in (self.knots, self.slopes, self.intercepts)
            )
            return _look_up(x, knots, slopes, intercepts)
        array = np.asarray(x)
        if not np.issubdtype(array.dtype, np.floating):
            raise TypeError(f"x: got {array.dtype}, want a floating-point array")
        k = np.searchsorted(self.knots, array)
        slope, intercept = self.slopes[k], self.intercepts[k]
        with np.errstate(invalid="ignore"):
            line = slope * array + intercept
        return np.where((slope == 0) & np.isinf(array), intercept, line).astype(array.dtype)

    def max_error(self, f: str | Function) -> float:
        """Largest |table - f| on [-1.5 bound, 1.5 bound], from a fine grid (spacing bound / 16384)."""
        function = FUNCTIONS[f][0] if isinstance(f, str) and f in FUNCTIONS else f
        if not callable(function):
            raise ValueError(f"f: got {f!r}, want one of {', '.join(FUNCTIONS)}, or a callable")
        bound = 1.5 * max(abs(self.knots[0]), abs(self.knots[-1]))
        x = np.union1d(np.linspace(-bound, bound, 3 * 16384 + 1), self.knots)
        return float(np.abs(self(x) - function(x)).max())

    def by_cell(self) -> tuple[np.ndarray, np.ndarray]:
        """Slopes and intercepts (cells + 2,) of equal cells over [-bound, bound], with a tail at either end.

        Raises ValueError where a knot lies inside a cell: tables that `fit` made have none.
        """
        edges = np.linspace(self.knots[0], self.knots[-1], _cells(self.segments) + 1)
        nearest = np.abs(self.knots[:, None] - edges).min(1)
        if nearest.max() > 1e-9 * (edges[-1] - edges[0]):
            raise ValueError(f"knots: got one that is {nearest.max():g} off the grid of {len(edges) - 1} cells")
        k = np.searchsorted(self.knots, (edges[1:] + edges[:-1]) / 2)
        return (
            np.r_[self.slopes[0], self.slopes[k], self.slopes[-1]],
            np.r_[self.intercepts[0], self.intercepts[k], self.intercepts[-1]],
        )


class PiecewiseLinearActivation(nn.Module):
    """`table` as a module: elementwise, gradient = slope of the segment, so that a model can be trained with it.

    Knots, slopes and intercepts are float64 buffers, part of the state dict, and are cast to the input's dtype (to
    float32 for half precision, whose result is rounded once).
    """

    knots: Tensor
    slopes: Tensor
    intercepts: Tensor

    def __init__(self, table: PiecewiseLinear) -> None:
        super().__init__()
        if not isinstance(table, PiecewiseLinear):
            raise TypeError(f"table: got {type(table).__name__}, want a PiecewiseLinear")
        for name in ("knots", "slopes", "intercepts"):
            self.register_buffer(name, torch.tensor(getattr(table, name), dtype=torch.float64))

    @property
    def table(self) -> PiecewiseLinear:
        """The table of the buffers."""
        return PiecewiseLinear(*(getattr(self, n).double().cpu().numpy() for n in ("knots", "slopes", "intercepts")))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return _look_up(x, self.knots.to(wide), self.slopes.to(wide), self.intercepts.to(wide))

    def extra_repr(self) -> str:
        return f"segments={len(self.knots) - 1}, bound={float(self.knots[-1]):g}"


def _look_up(x: Tensor, knots: Tensor, slopes: Tensor, intercepts: Tensor) -> Tensor:
    wide = x.to(knots.dtype)
    k = torch.bucketize(wide.detach().contiguous(), knots)
    slope, intercept = slopes[k], intercepts[k]
    line = slope * wide + intercept
    return torch.where((slope == 0) & torch.isinf(wide), intercept, line).to(x.dtype)


def _function_and_tails(f: Any, tails: tuple[Line, Line] | None) -> tuple[Function, tuple[Line, Line]]:
    if isinstance(f, str):
        if f not in FUNCTIONS:
            why = ": an exponential has no straight tail to the right" if f == "exp" else ""
            raise ValueError(f"f: got {f!r}, want one of {', '.join(FUNCTIONS)}, or a callable with tails{why}")
        function, known = FUNCTIONS[f]
        return function, known if tails is None else tails
    if not callable(f):
        raise TypeError(f"f: got {type(f).__name__}, want a name or a callable")
    if tails is None:
        raise ValueError("tails: got None, want ((slope, intercept) left, (slope, intercept) right) for a callable")
    return f, tails


def _cells(segments: int) -> int:
    """Cells of the knots' grid: at least 16 a segment, a power of two."""
    return max(CELLS, 1 << (16 * segments - 1).bit_length())


def _curvature_density(f: Function, grid: np.ndarray) -> np.ndarray:
    """sqrt|f''| in every cell, with a floor that keeps flat stretches from having no knot at all."""
    step = grid[1] - grid[0]
    middles = (grid[1:] + grid[:-1]) / 2
    second = np.abs(f(middles - step) - 2 * f(middles) + f(middles + step)) / step**2
    if not np.isfinite(second).all():
        raise ValueError(f"f: got values that are not finite on [{grid[0]:g}, {grid[-1]:g}]")
    density = np.sqrt(second)
    return density + max(1e-3 * density.max(), 1e-12)


def _spread(density: np.ndarray, grid: np.ndarray, segments: int) -> np.ndarray:
    """`segments` + 1 distinct points of the grid, between which the density has about equal integrals."""
    mass = np.r_[0.0, np.cumsum(density)]
    index = np.rint(np.interp(np.linspace(0, mass[-1], segments + 1), mass, np.arange(len(mass)))).astype(int)
    last = len(grid) - 1
    for i in range(1, segments + 1):
        index[i] = max(index[i], index[i - 1] + 1)
    index[segments] = last
    for i in range(segments - 1, -1, -1):
        index[i] = min(index[i], index[i + 1] - 1)
    return grid[index]


def _balanced_values(f: Function, knots: np.ndarray, tails: tuple[Line, Line]) -> tuple[np.ndarray, np.ndarray]:
    """Values at the knots, the outer two on the tails, of least maximum error; and that error by segment.

    Where a tail itself errs most, no table can do better than it: the segments that do not touch the tails are then
    balanced among themselves.
    """
    segments = len(knots) - 1
    share = np.linspace(0, 1, _POINTS_A_SEGMENT + 1)
    x = (knots[:-1, None] + np.diff(knots)[:, None] * share).reshape(-1)
    segment = np.repeat(np.arange(segments), len(share))
    target = f(x)
    ends = [slope * knot + intercept for (slope, intercept), knot in zip(tails, (knots[0], knots[-1]), strict=True)]
    floor = float(np.abs(np.array(ends) - target[[0, -1]]).max())
    programme = _Programme(np.tile(share, segments), segment, target, ends)
    values = programme.solve(np.ones(len(x), bool), np.inf)
    errors = programme.errors(values)
    if segments > 2 and errors.max() <= floor + 1e-9:
        inner = (segment > 0) & (segment < segments - 1)
        values = programme.solve(inner, floor + 1e-9)
        errors = programme.errors(values)
        errors[[0, -1]] = np.minimum(errors[[0, -1]], errors[1:-1].max())
    return values, errors


class _Programme:
    """min t over knot values v with |B v - f| <= t at chosen points and <= `cap` at the others."""

    def __init__(self, weight: np.ndarray, segment: np.ndarray, target: np.ndarray, ends: list[float]) -> None:
        from scipy.sparse import csr_array

        self.segments, self.target, self.ends = int(segment[-1]) + 1, target, ends
        rows = np.arange(len(target))
        entries = np.r_[1 - weight, weight], (np.r_[rows, rows], np.r_[segment, segment + 1])
        self.basis = csr_array(entries, shape=(len(target), self.segments + 1))

    def solve(self, chosen: np.ndarray, cap: float) -> np.ndarray:
        """The values (segments + 1,)."""
        from scipy.optimize import linprog
        from scipy.sparse import csr_array, hstack, vstack

        slack = csr_array(-chosen.astype(float)[:, None])
        constraints = vstack([hstack([self.basis, slack]), hstack([-self.basis, slack])])
        room = np.where(chosen, 0.0, min(cap, 1e6))
        bounds: list[tuple[float | None, float | None]] = [(None, None)] * (self.segments + 1) + [(0, None)]
        bounds[0], bounds[self.segments] = (self.ends[0], self.ends[0]), (self.ends[1], self.ends[1])
        cost = np.r_[np.zeros(self.segments + 1), 1.0]
        limit = np.r_[self.target + room, -self.target + room]
        found = linprog(cost, A_ub=constraints, b_ub=limit, bounds=bounds, method="highs")
        if found.status != 0:
            raise ValueError(f"f: no table was found ({found.message})")
        return np.asarray(found.x[:-1])

    def errors(self, values: np.ndarray) -> np.ndarray:
        """Largest |B v - f| of every segment."""
        return np.asarray(np.abs(self.basis @ values - self.target).reshape(self.segments, -1).max(1))
