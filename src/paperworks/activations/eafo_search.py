"""EAFO as a search: walk an activation a few steps down the output entropy and keep it as a table on a grid.

f_{j+1} = f_j + s_j c_j ("A Method on Searching Better Activation Functions", arXiv 2405.12954, in the forward form of
`eafo_entropy`). The activation stays the given f, exact, plus a correction held as a cubic table, so kinks of f are
kept and the tails of f are its own. H has no lower bound, so this is a method of few steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from paperworks.activations.eafo_densities import Density, as_density
from paperworks.activations.eafo_derivatives import Function, slope
from paperworks.activations.eafo_entropy import direction, entropy_and_flat_mass, in_double, integrate
from paperworks.activations.eafo_table import TableActivation

POINTS = 401
_REACH = 6.0  # standard deviations on either side of the mean
_ARMIJO = 1e-4
_LEAST_SLOPE = 1e-3  # of the starting slope; a step that leaves less is not taken
_LARGEST_CHANGE = 0.5  # relative change of f' at any node that the first trial of a step makes
_HALVINGS = 40
_STATIONARY = 1e-9  # of p'; a smaller c is rounding


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        function: the last activation, callable on tensors.
        entropies: output entropy in nats at the start and after each step taken.
        step_sizes: s of each step taken.
    """

    function: TableActivation
    entropies: list[float]
    step_sizes: list[float]


def eafo_search(
    f: Function,
    density: Any,
    *,
    steps: int = 1,
    step_size: float | None = None,
    range: tuple[float, float] | None = None,
) -> SearchResult:
    """Lower the output entropy of an increasing activation by up to `steps` EAFO steps.

    The table has 401 nodes on mean +- 6 standard deviations (cut at the support). The search ends early where the
    entropy would not fall or where less than a thousandth of f' would be left at some node.

    Args:
        f: an elementwise differentiable callable, increasing on the grid (sigmoid, softplus, leaky ReLU).
        density: density of z.
        steps: most steps to take.
        step_size: s of every step, used as it is; None finds each by backtracking (Armijo, 1e-4).
        range: (low, high) keeps the output there: the values at the two ends of the grid are mapped onto it before the
            search and after each step. Without it a bounded f keeps its range but an unbounded one may shrink.

    Returns:
        A `SearchResult`; no step is taken at a stationary f, such as `WorstActivation(density)`.

    Raises:
        ValueError: steps < 1, a step size that is not above 0, a range that is not low < high, or an f that does not
            increase on the grid (ReLU: its entropy is -inf already; use a leaky one, or `EAFOActivation("relu")`).
        TypeError: `density` lacks a method.
    """
    if range is not None and not (math.isfinite(range[0]) and math.isfinite(range[1]) and range[0] < range[1]):
        raise ValueError(f"range: got {range}, wanted finite (low, high) with low < high")
    p = as_density(density)
    start = table_on_grid(in_double(f), p)
    first = slope(start, start.nodes()).detach()
    if not bool((first > 0).all()):
        at = first.nan_to_num(-math.inf).argmin()
        raise ValueError(f"f: got slope {first[at]:g} at z = {start.nodes()[at]:g}, wanted a function that increases")
    found = descend(_within(start, range), p, steps=steps, step_size=step_size, limits=range)
    # The search worked on a float64 copy of a module; the caller gets the module.
    return SearchResult(found.function.changed(base=f), found.entropies, found.step_sizes)


def table_on_grid(f: Function, density: Density, points: int = POINTS) -> TableActivation:
    """f with an empty table over mean +- 6 standard deviations of the density, cut at its support."""
    moments = integrate(lambda z: density.pdf(z) * torch.stack([torch.ones_like(z), z, z * z]), density)
    mass, mean, square = moments.tolist()
    mean, square = mean / mass, square / mass
    reach = _REACH * math.sqrt(square - mean * mean)
    low, high = max(mean - reach, density.support[0]), min(mean + reach, density.support[1])
    empty = torch.zeros(points, dtype=torch.float64)
    return TableActivation(f, low, high, empty, empty)


@torch.no_grad()
def descend(
    start: TableActivation,
    density: Density,
    *,
    steps: int,
    step_size: float | None,
    limits: tuple[float, float] | None = None,
    delta: float = 0.0,
    inside: Callable[[Tensor], Tensor] | None = None,
) -> SearchResult:
    """The search on a float64 table, its entropy taken over the z that are `inside`, its direction softened by `delta`.

    With `inside` and `delta` it also serves an f that is flat or falls somewhere: only its rising part is counted.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, wanted at least 1")
    if step_size is not None and not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size: got {step_size}, wanted a finite number above 0")
    nodes = start.nodes()
    counted = torch.ones_like(nodes, dtype=torch.bool) if inside is None else inside(nodes)
    least = _LEAST_SLOPE * slope(start, nodes)[counted]

    def entropy(g: TableActivation) -> float:
        # A function that has turned around has no entropy to compare: its branches overlap.
        turned = bool((slope(g, nodes)[counted] < least).any())
        return math.inf if turned else entropy_and_flat_mass(g, density, inside=inside)[0]

    g, entropies, taken = start, [entropy(start)], list[float]()
    for _ in range(steps):
        values = direction(g, density, nodes, delta)
        if not counted.any() or values.abs().max() <= _STATIONARY * density.dpdf(nodes).abs().max():
            break  # at a maximum of H any rounding error would be a way down
        c = CubicSpline(nodes.numpy(), values.numpy(), bc_type="clamped")
        relative = torch.from_numpy(c(nodes.numpy(), 1))[counted] / slope(g, nodes)[counted]  # d log g' / ds
        fall = -torch.trapezoid(density.pdf(nodes)[counted] * relative, nodes[counted]).item()
        if step_size is None:
            largest = _LARGEST_CHANGE / relative.abs().max().item()
            candidates, share = [largest * 0.5**k for k in range(_HALVINGS)], _ARMIJO
        else:
            candidates, share = [step_size], 0.0
        for s in candidates:
            stepped = _within(_plus(g, s, c), limits)
            value = entropy(stepped)
            if value < entropies[-1] - share * s * max(fall, 0.0):
                break
        else:
            break
        g = stepped
        entropies.append(value)
        taken.append(s)
    return SearchResult(g, entropies, taken)


def _plus(g: TableActivation, s: float, c: CubicSpline) -> TableActivation:
    """g + s c, c a spline over the nodes of g's table."""
    nodes, s = g.nodes().numpy(), s / g.scale
    values, rates = torch.from_numpy(c(nodes)), torch.from_numpy(c(nodes, 1))
    return g.changed(values=g.values + s * values, rates=g.rates + s * rates)


def _within(g: TableActivation, limits: tuple[float, float] | None) -> TableActivation:
    """The same shape with g(low), g(high) at the limits."""
    if limits is None:
        return g
    first, last = (g.base(g.nodes()[[0, -1]]).detach() + g.values[[0, -1]]).tolist()
    scale = (limits[1] - limits[0]) / (last - first)
    return g.changed(scale=scale, shift=limits[0] - scale * first)
