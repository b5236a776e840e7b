"""Families of K functions on [-1, 1], the edge functions' bases of Kolmogorov-Arnold networks.

    bspline    cubic, uniform: B_k(u) = beta((u + 1) / h - k + 1), h = 2 / (K - 3), beta the centred cardinal spline
    chebyshev  T_0 .. T_{K-1}(u), by T_{k+1} = 2 u T_k - T_{k-1}
    fourier    cos(n pi u), n = 1 .. K/2, then sin(n pi u), n = 1 .. K/2
    rbf        exp(-t^2), t = (u - c_k) / h, c_k evenly from -1 to 1, h = 2 / (K - 1)
    wavelet    2 / (sqrt 3 pi^(1/4)) (1 - t^2) exp(-t^2 / 2), the Mexican hat, same t

All of them have the same number of functions K, so that layers of different families cost the same. B-splines use the
closed form instead of the recursion: it has no half-open interval, hence no hole at u = 1, which a float32 tanh
reaches. Chebyshev polynomials use the recurrence: cos(k arccos u) has an infinite slope inside at u = +-1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HAT = 2 / (math.sqrt(3) * math.pi**0.25)
"""Peak of the Mexican hat of unit norm."""


class Basis(nn.Module):
    """K functions of one variable: `forward` maps u of shape (...) to (..., K).

    Subclass it to add a family of your own: implement `forward` in differentiable tensor operations and call
    `super().__init__(K)`. Parameters of a subclass are trained with the layer that holds it.

    Attributes:
        num_functions: K.

    Raises ValueError where `num_functions` is not a positive integer.
    """

    def __init__(self, num_functions: int = 8) -> None:
        super().__init__()
        if isinstance(num_functions, bool) or not isinstance(num_functions, int) or num_functions < 1:
            raise ValueError(f"num_functions: got {num_functions!r}, wanted an integer >= 1")
        self.num_functions = num_functions

    def forward(self, u: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward(u)")

    def extra_repr(self) -> str:
        return f"num_functions={self.num_functions}"


def _steps(u: Tensor, count: int) -> Tensor:
    return torch.arange(count, dtype=u.dtype, device=u.device)


class BSplineBasis(Basis):
    """Uniform cubic B-splines on K - 3 intervals of [-1, 1]; they sum to 1 there.

    Raises ValueError for fewer than 4 functions.
    """

    def __init__(self, num_functions: int = 8) -> None:
        super().__init__(num_functions)
        if num_functions < 4:
            raise ValueError(f"num_functions: got {num_functions}, cubic B-splines want at least 4")

    def forward(self, u: Tensor) -> Tensor:
        k = self.num_functions
        v = ((u[..., None] + 1) * ((k - 3) / 2) - _steps(u, k) + 1).abs()
        # beta(v) = ((2 - v)_+^3 - 4 (1 - v)_+^3) / 6: both pieces of the spline in one expression.
        return ((2 - v).clamp(min=0) ** 3 - 4 * (1 - v).clamp(min=0) ** 3) / 6


class ChebyshevBasis(Basis):
    """Chebyshev polynomials of the first kind, degrees 0 to K - 1."""

    def forward(self, u: Tensor) -> Tensor:
        terms = [torch.ones_like(u), u]
        for _ in range(2, self.num_functions):
            terms.append(2 * u * terms[-1] - terms[-2])
        return torch.stack(terms[: self.num_functions], -1)


class FourierBasis(Basis):
    """Cosines of frequency 1 .. K/2 (in half periods of [-1, 1]), then the sines.

    Raises ValueError for an odd number of functions.
    """

    def __init__(self, num_functions: int = 8) -> None:
        super().__init__(num_functions)
        if num_functions % 2:
            raise ValueError(f"num_functions: got {num_functions}, fourier wants an even number (cosines and sines)")

    def forward(self, u: Tensor) -> Tensor:
        angles = u[..., None] * (math.pi * (_steps(u, self.num_functions // 2) + 1))
        return torch.cat([angles.cos(), angles.sin()], -1)


class _CentredBasis(Basis):
    """Copies of one bump at evenly spaced centres. Raises ValueError for fewer than 2 functions."""

    def __init__(self, num_functions: int = 8) -> None:
        super().__init__(num_functions)
        if num_functions < 2:
            raise ValueError(f"num_functions: got {num_functions}, centres from -1 to 1 want at least 2")

    def _t(self, u: Tensor) -> Tensor:
        k = self.num_functions
        return (u[..., None] + 1) * ((k - 1) / 2) - _steps(u, k)


class GaussianBasis(_CentredBasis):
    """Gaussians as wide as the distance of their centres."""

    def forward(self, u: Tensor) -> Tensor:
        return (-self._t(u).square()).exp()


class WaveletBasis(_CentredBasis):
    """Mexican hats as wide as the distance of their centres."""

    def forward(self, u: Tensor) -> Tensor:
        square = self._t(u).square()
        return HAT * (1 - square) * (-0.5 * square).exp()
