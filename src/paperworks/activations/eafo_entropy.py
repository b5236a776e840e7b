"""How an activation changes the entropy of its input, and the direction that lowers it fastest.

The EAFO equations ("A Method on Searching Better Activation Functions", arXiv 2405.12954), for z of density p and an
increasing activation x = f(z) with inverse y:

    H[f] = H[p] + E_p log f'(z)                                        output entropy, by change of variables
    eta(x) = -(p'(y) y' + p(y) y'' / y')                               correction of the inverse: y + s eta, s > 0
    c(z) = p'(z) - p(z) f''(z) / f'(z)                                 the same seen from f: f + s c, s > 0
    dH/ds at 0 = -int c(z)^2 / f'(z) dz <= 0

The forward form c is our derivation (delta f = -f' eta(f)); it needs no inverse. Differential entropy depends on the
scale (f -> a f adds log a): compare activations by H - log std f(z), never by H.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paperworks.activations.eafo_densities import Density, as_density, in_float
from paperworks.activations.eafo_derivatives import Function, derivative, slope, slopes

_NODES, _WEIGHTS = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(8))
_CELL_ERROR = 1e-9  # nats; a cell that two estimates disagree on by more is halved
_TAIL_MASS = (1e-18, 1e-15)  # left out below and above; 1 - F is no more accurate than the second
FLAT_MASS = 1e-12  # below this a vanishing derivative is rounding, not a flat stretch


def eafo_correction(inverse: Function, density: Any, x: Tensor) -> Tensor:
    """eta(x) = -(p'(y) y' + p(y) y'' / y'), the steepest descent of the output entropy at the inverse y.

    Args:
        inverse: y, an elementwise differentiable callable, increasing on `x`.
        density: density of the pre-activation y(x); see `eafo_densities`.
        x: output values, any shape.

    Returns:
        eta in the shape and dtype of `x`, differentiable.

    Raises:
        ValueError: `inverse` is not increasing at some element of `x`, or not defined there.
        TypeError: `x` is not floating point, or `density` lacks a method.
    """
    p = as_density(density)

    def eta(t: Tensor) -> Tensor:
        first = derivative(inverse)
        y, y1, y2 = inverse(t), first(t), derivative(first)(t)
        if not bool((y1 > 0).all()):
            worst = y1.detach().nan_to_num(-math.inf).argmin()
            raise ValueError(
                f"inverse: got slope {y1.flatten()[worst].item():g} at x = {t.flatten()[worst].item():g}, "
                "wanted a function that increases on all of x"
            )
        return -(p.dpdf(y) * y1 + p.pdf(y) * y2 / y1)

    return in_float(eta, x, "x")


def eafo_direction(f: Function, density: Any, z: Tensor) -> Tensor:
    """c(z) = p'(z) - p(z) f''(z) / f'(z): f + s c with a small s > 0 lowers the output entropy fastest.

    Where f is flat (f' = f'' = 0, the negative side of ReLU) the quotient is taken as 0. It vanishes everywhere for
    `WorstActivation(density)`.

    Args:
        f: an elementwise differentiable callable.
        density: density of z.
        z: pre-activations, any shape.

    Returns:
        c in the shape and dtype of `z`, differentiable, so `lambda z: f(z) + s * eafo_direction(f, density, z)` is
        again an f.

    Raises:
        TypeError: `z` is not floating point, or `density` lacks a method.
    """
    p = as_density(density)
    return in_float(lambda t: direction(f, p, t), z)


def direction(f: Function, density: Density, z: Tensor) -> Tensor:
    """`eafo_direction` of checked arguments."""
    first, second = slopes(f, z)
    flat = (first == 0) & (second == 0)
    return density.dpdf(z) - density.pdf(z) * second / torch.where(flat, 1.0, first)


def softened_direction(f: Function, density: Density, z: Tensor, delta: float) -> Tensor:
    """sign(f') f'^2 / (f'^2 + delta^2) c(z): c where f is steep, 0 where it is flat, reversed where it falls.

    For an f that is not monotone: it has no poles, and lowers the softened entropy (see `entropy`) where f' > delta.
    """
    first, second = slopes(f, z)
    return first.abs() * (first * density.dpdf(z) - density.pdf(z) * second) / (first * first + delta * delta)


def activation_entropy(f: Function, density: Any, *, points: int = 20001, branch: str | None = None) -> float:
    """H = H[p] + E_p log|f'(z)|, the differential entropy of f(z) in nats.

    For an f that is not monotone (GELU left of -0.75) this formula is an upper bound of the output entropy: it counts
    which of several z gave the value. Modules are evaluated as float64 copies in eval mode.

    Args:
        f: an elementwise differentiable callable.
        density: density of z.
        points: evaluations before refinement. Cells where f' jumps or vanishes are halved until they do not matter.
        branch: "positive" takes both integrals over z > 0 only, not renormalised (for ReLU under N(0, 1), half H[p]).

    Returns:
        H; -inf where f' is 0 on a set of positive mass (ReLU on the whole line).

    Raises:
        ValueError: unknown `branch`, points < 1, or a derivative that is not finite.
        TypeError: `density` lacks a method.
    """
    if branch not in (None, "positive"):
        raise ValueError(f"branch: got {branch!r}, wanted None or 'positive'")
    quadrature = Quadrature(as_density(density), points)
    return entropy(in_double(f), quadrature, inside=(lambda z: z > 0) if branch else None)


def entropy(
    f: Function,
    quadrature: "Quadrature",
    *,
    delta: float = 0.0,
    inside: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """H over the z that are `inside`; with delta > 0 softened to H[p] + E_p log sqrt(f'^2 + delta^2).

    The softened entropy is finite for every f: slopes below delta all count as delta.
    """
    density = quadrature.density

    def integrand(z: Tensor) -> Tensor:
        p, first = density.pdf(z), slope(f, z).detach()
        if not bool(torch.isfinite(first).all()):
            at = z[~torch.isfinite(first)][0].item()
            raise ValueError(f"f: its derivative at {at:g} is not finite, wanted one that is")
        steepness = first.abs() if delta == 0 else torch.hypot(first, torch.full_like(first, delta))
        kept = p > 0 if inside is None else (p > 0) & inside(z)
        rising = kept & (steepness > 0)
        logs = torch.where(rising, steepness, 1.0).log() - torch.where(rising, p, 1.0).log()
        return torch.stack([torch.where(rising, p * logs, 0.0), torch.where(kept & ~rising, p, 0.0)])

    value, flat = quadrature(integrand).tolist()
    return -math.inf if flat > FLAT_MASS else value


def in_double(f: Function) -> Function:
    """A float64 copy on the CPU in eval mode if `f` is a module, else `f`."""
    return deepcopy(f).cpu().double().eval() if isinstance(f, nn.Module) else f


class Quadrature:
    """Integrals over the support of a density, in float64.

    Adaptive 8-point Gauss rule in t, z = median + spread sinh(t), which reaches the tails of any density in few cells.

    Args:
        density: its quantiles place the cells.
        points: evaluations before refinement.

    Raises:
        ValueError: points < 1, or a CDF that does not go from 0 to 1.
    """

    def __init__(self, density: Density, points: int = 20001) -> None:
        if points < 1:
            raise ValueError(f"points: got {points}, wanted at least 1")
        self.density = density
        low, q1, self.median, q3, high = quantiles(density, (_TAIL_MASS[0], 0.25, 0.5, 0.75, 1 - _TAIL_MASS[1]))
        self.spread = (q3 - q1) / 2
        first, last = (math.asinh((end - self.median) / self.spread) for end in (low, high))
        # Every cell is evaluated once whole and once as two halves: 24 points.
        self.edges = torch.linspace(first, last, max(16, points // 24) + 1, dtype=torch.float64)

    def __call__(self, integrand: Function) -> Tensor:
        """The integral of every row of `integrand(z)`, (n,) -> (rows, n)."""
        a, b = self.edges[:-1], self.edges[1:]
        coarse, most = self._estimate(integrand, a, b), 8 * len(self.edges)
        total = torch.zeros(coarse.shape[0], dtype=torch.float64)
        while 0 < len(a) <= most:
            middle = (a + b) / 2
            left, right = self._estimate(integrand, torch.cat([a, middle]), torch.cat([middle, b])).chunk(2, dim=1)
            settled = ((left + right - coarse).abs() <= _CELL_ERROR).all(0)
            settled |= b - a < 1e-13 * (1 + a.abs())  # as narrow as float64 allows: a singularity not integrable
            total += (left + right)[:, settled].sum(1)
            rest = ~settled
            a, b = torch.cat([a[rest], middle[rest]]), torch.cat([middle[rest], b[rest]])
            coarse = torch.cat([left[:, rest], right[:, rest]], dim=1)
        return total + coarse.sum(1)

    def _estimate(self, integrand: Function, a: Tensor, b: Tensor) -> Tensor:
        half = (b - a) / 2
        t = (a + b)[:, None] / 2 + half[:, None] * _NODES
        values = integrand((self.median + self.spread * torch.sinh(t)).flatten())
        return (values.reshape(-1, *t.shape) * torch.cosh(t) @ _WEIGHTS) * (self.spread * half)


def quantiles(density: Density, masses: tuple[float, ...]) -> list[float]:
    """Where the CDF reaches each mass; an end of a finite support for masses beyond it."""
    wanted = torch.tensor(masses, dtype=torch.float64)[:, None]
    low, high = (torch.full_like(wanted, float(end)) for end in density.support)
    for end, sign in ((low, -1.0), (high, 1.0)):
        if torch.isinf(end[0]):
            end.fill_(sign)
            while not bool(((density.cdf(end) - wanted) * sign >= 0).all()):
                if float(end[0].abs()) > 1e300:
                    raise ValueError(f"density: its cdf does not reach {'0' if sign < 0 else '1'} on its support")
                end.mul_(2.0)
    places = torch.arange(65, dtype=torch.float64) / 64
    while bool((high - low > 1e-13 * (1e-3 + low.abs())).any()):
        trial = low + (high - low) * places
        above = (density.cdf(trial[:, 1:-1]) < wanted).sum(1, keepdim=True) + 1
        finer = trial.gather(1, above - 1), trial.gather(1, above)
        if torch.equal(finer[0], low) and torch.equal(finer[1], high):
            break
        low, high = finer
    return high.flatten().tolist()
