"""Densities of a layer's input, and the activation that wastes them most.

Entropy-based activation function optimisation (EAFO; "A Method on Searching Better Activation Functions",
arXiv 2405.12954) asks how an activation spreads a pre-activation z of density p. A density here is any object with

    pdf(z) = p(z),   dpdf(z) = p'(z),   cdf(z) = F(z),   support = (low, high)

on tensors of any shape, the input's dtype kept. `torch.distributions.Normal` is taken wherever one is.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

_TAIL = 6.0  # bandwidths kept beyond the outermost sample: what lies further weighs 1e-9 of one sample
_STEPS_PER_BANDWIDTH = 2.0  # grid steps a bandwidth spans at least: the quintic spline is then within 1e-3 of the sum


class Density(Protocol):
    """What the EAFO functions need to know of a pre-activation."""

    @property
    def support(self) -> tuple[float, float]: ...
    def pdf(self, z: Tensor) -> Tensor: ...
    def dpdf(self, z: Tensor) -> Tensor: ...
    def cdf(self, z: Tensor) -> Tensor: ...


def as_density(density: Any) -> Density:
    """The argument itself, or the `NormalDensity` of a scalar `torch.distributions.Normal`.

    Raises:
        TypeError: it lacks one of pdf, dpdf, cdf, support.
        ValueError: a `Normal` with more than one element.
    """
    if isinstance(density, torch.distributions.Normal):
        if density.mean.numel() != 1:
            raise ValueError(f"density: got a batch of {density.mean.numel()} normals, wanted one")
        return NormalDensity(float(density.mean), float(density.stddev))
    missing = [name for name in ("pdf", "dpdf", "cdf", "support") if not hasattr(density, name)]
    if missing:
        raise TypeError(
            f"density: got {type(density).__name__} without {', '.join(missing)}, wanted an object with pdf, dpdf, "
            "cdf and support, or torch.distributions.Normal"
        )
    return cast(Density, density)


def in_float(function: Callable[[Tensor], Tensor], z: Tensor, name: str = "z") -> Tensor:
    """`function(z)` in z's dtype, computed in float32 for half types.

    Raises:
        TypeError: `z` is not a floating point tensor.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"{name}: got {got}, wanted a floating point tensor")
    if z.dtype in (torch.float16, torch.bfloat16):
        return function(z.float()).to(z.dtype)
    return function(z)


class _LocationScale:
    """A density p(z) = g((z - location) / scale) / scale on the whole line."""

    support = (-math.inf, math.inf)

    def __init__(self, location: float, scale: float, names: tuple[str, str]) -> None:
        self.location, self.scale = float(location), float(scale)
        if not math.isfinite(self.location):
            raise ValueError(f"{names[0]}: got {location}, wanted a finite number")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"{names[1]}: got {scale}, wanted a finite number above 0")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location:g}, {self.scale:g})"

    def _standard(self, z: Tensor) -> Tensor:
        return (z - self.location) / self.scale


class NormalDensity(_LocationScale):
    """The normal density N(mean, std^2).

    Args:
        mean: mean, in the units of z.
        std: standard deviation, in the units of z; above 0.

    Raises:
        ValueError: a non-finite argument, or std <= 0.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__(mean, std, ("mean", "std"))

    def _pdf(self, z: Tensor) -> Tensor:
        u = self._standard(z)
        return torch.exp(-0.5 * u * u) / (self.scale * math.sqrt(2 * math.pi))

    def pdf(self, z: Tensor) -> Tensor:
        """p(z)."""
        return in_float(self._pdf, z)

    def dpdf(self, z: Tensor) -> Tensor:
        """p'(z) = -(z - mean) p(z) / std^2."""
        return in_float(lambda t: -self._standard(t) * self._pdf(t) / self.scale, z)

    def cdf(self, z: Tensor) -> Tensor:
        """F(z); the lower tail keeps its relative accuracy."""
        return in_float(lambda t: 0.5 * torch.erfc(-self._standard(t) / math.sqrt(2)), z)


class LogisticDensity(_LocationScale):
    """The logistic density, whose CDF is the sigmoid.

    Args:
        loc: mean, in the units of z.
        scale: scale s > 0; the standard deviation is pi s / sqrt(3).

    Raises:
        ValueError: a non-finite argument, or scale <= 0.
    """

    def __init__(self, loc: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(loc, scale, ("loc", "scale"))

    def _pdf(self, z: Tensor) -> Tensor:
        u = self._standard(z)
        return torch.sigmoid(u) * torch.sigmoid(-u) / self.scale

    def pdf(self, z: Tensor) -> Tensor:
        """p(z) = S(u) S(-u) / scale, u = (z - loc) / scale, S the sigmoid."""
        return in_float(self._pdf, z)

    def dpdf(self, z: Tensor) -> Tensor:
        """p'(z) = -p(z) tanh(u / 2) / scale."""
        return in_float(lambda t: -self._pdf(t) * torch.tanh(0.5 * self._standard(t)) / self.scale, z)

    def cdf(self, z: Tensor) -> Tensor:
        """F(z) = S(u)."""
        return in_float(lambda t: torch.sigmoid(self._standard(t)), z)


class EmpiricalDensity:
    """A Gaussian kernel density estimate, tabulated.

    The bandwidth is Silverman's, h = 0.9 min(std, IQR / 1.34) n^(-1/5), but never below two grid steps. Grid nodes hold
    F, p and p' of the kernel sum, and the quintic spline through them is the CDF; `pdf` and `dpdf` are its derivatives,
    so the three agree exactly and `dpdf` is differentiable. Outside the support the density is 0.

    Args:
        samples: a tensor (or array) of any shape, at least two distinct finite values.
        points: nodes of the grid, at least 64.

    Raises:
        ValueError: fewer than two samples, non-finite ones, samples that are all equal, or points < 64.
        TypeError: samples of an integer or complex dtype.
    """

    def __init__(self, samples: Tensor, *, points: int = 512) -> None:
        if points < 64:
            raise ValueError(f"points: got {points}, wanted at least 64")
        flat = torch.as_tensor(samples).detach()
        if not flat.is_floating_point():
            raise TypeError(f"samples: got {flat.dtype}, wanted a floating point tensor")
        values = flat.reshape(-1).cpu().double().numpy()
        if values.size < 2:
            raise ValueError(f"samples: got {values.size}, wanted at least 2")
        if not np.isfinite(values).all():
            raise ValueError(f"samples: got {int((~np.isfinite(values)).sum())} non-finite values, wanted none")
        spread = np.ptp(values)
        if spread == 0:
            raise ValueError(f"samples: got {values.size} times the value {values[0]:g}, wanted at least two values")
        self.n = int(values.size)
        self.bandwidth = max(_silverman(values), _STEPS_PER_BANDWIDTH * spread / _free_steps(points))
        reach = _TAIL * self.bandwidth
        self._low, self._high = float(values.min() - reach), float(values.max() + reach)
        self._coefficients = torch.from_numpy(self._fit(values, points))

    def _fit(self, values: np.ndarray, points: int) -> np.ndarray:
        """Per grid cell the six coefficients of the CDF in u = (z - node) / step."""
        grid = np.linspace(self._low, self._high, points)
        step = grid[1] - grid[0]
        # Kernels sit on a grid eight times finer, each sample shared by its two neighbours there, so that the cost does
        # not grow with the samples; this widens the kernel by less than h^2 / 1500.
        fine = 8 * (points - 1)
        position = (values - self._low) * (fine / (self._high - self._low))
        cell = np.minimum(position.astype(np.int64), fine - 1)
        share = position - cell
        shares = np.bincount(cell, 1 - share, fine + 1) + np.bincount(cell + 1, share, fine + 1)
        centres = np.linspace(self._low, self._high, fine + 1)[shares > 0]
        weights = shares[shares > 0] / values.size
        cdf, pdf, dpdf = np.empty((3, points))
        for first in range(0, points, 64):  # the matrix of all distances would not fit for a fine grid
            rows = slice(first, first + 64)
            u = (grid[rows, None] - centres) / self.bandwidth
            kernel = np.exp(-0.5 * u * u) * (1 / (math.sqrt(2 * math.pi) * self.bandwidth))
            cdf[rows], pdf[rows], dpdf[rows] = ndtr(u) @ weights, kernel @ weights, -(u * kernel) @ weights
        dpdf /= self.bandwidth
        mass = cdf[-1] - cdf[0]
        return _quintic((cdf - cdf[0]) / mass, pdf * (step / mass), dpdf * (step * step / mass))

    @property
    def support(self) -> tuple[float, float]:
        """Where the density is not 0."""
        return self._low, self._high

    def __repr__(self) -> str:
        return f"EmpiricalDensity(n={self.n}, bandwidth={self.bandwidth:.4g}, support={self.support})"

    def pdf(self, z: Tensor) -> Tensor:
        """p(z)."""
        return in_float(lambda t: self._derivative(t, 1), z)

    def dpdf(self, z: Tensor) -> Tensor:
        """p'(z)."""
        return in_float(lambda t: self._derivative(t, 2), z)

    def cdf(self, z: Tensor) -> Tensor:
        """F(z)."""
        return in_float(lambda t: self._derivative(t, 0), z)

    def _derivative(self, z: Tensor, order: int) -> Tensor:
        coefficients = self._coefficients.to(z.device, z.dtype)
        cells = coefficients.shape[0]
        step = (self._high - self._low) / cells
        position = (z.clamp(self._low, self._high) - self._low) / step
        cell = position.detach().nan_to_num(0.0).long().clamp(max=cells - 1)
        u = position - cell
        value = torch.zeros_like(u)
        for power in range(5, order - 1, -1):
            value = value * u + coefficients[:, power][cell] * math.perm(power, order)
        value = value / step**order
        if order == 0:
            return value
        if order == 1:  # where samples leave a gap the spline may pass below 0 by a rounding error
            value = value.clamp(min=0.0)
        return torch.where((z < self._low) | (z > self._high), 0.0, value)


def _silverman(values: np.ndarray) -> float:
    quartiles = np.quantile(values, [0.25, 0.75])
    std, robust = values.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.34
    return float(0.9 * (min(std, robust) if robust > 0 else std) * values.size**-0.2)


def _free_steps(points: int) -> float:
    """Grid steps left for the samples when the two tails are so many bandwidths of two steps."""
    return points - 1 - 2 * _TAIL * _STEPS_PER_BANDWIDTH


def _quintic(value: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Coefficients, lowest power first, of the quintics with these values and derivatives (per step) at the nodes."""
    rise, v, a = np.diff(value), first[:-1], second[:-1]
    w, b = first[1:], second[1:]
    cubic = 10 * rise - 6 * v - 4 * w - 1.5 * a + 0.5 * b
    quartic = -15 * rise + 8 * v + 7 * w + 1.5 * a - b
    fifth = 6 * rise - 3 * v - 3 * w - 0.5 * a + 0.5 * b
    return np.stack([value[:-1], v, 0.5 * a, cubic, quartic, fifth], axis=1)


class WorstActivation:
    """The worst activation with a bounded range (WAFBC): f(z) = low + (high - low) F(z).

    Its output is uniform on (low, high), so the output entropy is log(high - low), the most that this range allows.

    Args:
        density: density of z.
        low: lower limit of the output.
        high: upper limit of the output.

    Raises:
        ValueError: a non-finite limit, or low >= high.
    """

    def __init__(self, density: Any, low: float = 0.0, high: float = 1.0) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low, high: got {low}, {high}, wanted finite numbers with low < high")
        self.density, self.low, self.high = as_density(density), float(low), float(high)

    def __call__(self, z: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * self.density.cdf(z)

    def first_two_derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f'(z) and f''(z)."""
        width = self.high - self.low
        return width * self.density.pdf(z), width * self.density.dpdf(z)

    def __repr__(self) -> str:
        return f"WorstActivation({self.density!r}, {self.low:g}, {self.high:g})"
