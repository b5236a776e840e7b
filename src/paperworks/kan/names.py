"""Bases by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from paperworks.kan.families import (
    Basis,
    BSplineBasis,
    ChebyshevBasis,
    FourierBasis,
    GaussianBasis,
    WaveletBasis,
)
from paperworks.kan.pairs import ACTIVATIONS, COMBINATIONS, PairBasis, ReLUPowerBasis

BASES: dict[str, Callable[[int], Basis]] = {
    "bspline": BSplineBasis,
    "chebyshev": ChebyshevBasis,
    "fourier": FourierBasis,
    "rbf": GaussianBasis,
    "wavelet": WaveletBasis,
    "relu_power": ReLUPowerBasis,
    **{
        f"{activation}_{function}": partial(PairBasis, activation=activation, function=function)
        for activation in ACTIVATIONS
        for function in COMBINATIONS
    },
}
"""Every named basis: the five families, ReLU-KAN's powers, and `ACTIVATION_COMBINATION` such as ``silu_quad1``."""


def get_basis(name: str | Basis, num_functions: int = 8) -> Basis:
    """The basis of that name with `num_functions` functions; a `Basis` is handed back as it is.

    Raises ValueError for an unknown name (listing those that exist) or a number that the family does not allow,
    TypeError for something that is neither a name nor a `Basis`.
    """
    if isinstance(name, Basis):
        return name
    if not isinstance(name, str):
        raise TypeError(f"basis: got {type(name).__name__}, wanted a name or a Basis")
    if name not in BASES:
        raise ValueError(
            f"basis: got {name!r}, wanted one of {', '.join(list(BASES)[:6])}, or an activation "
            f"({', '.join(ACTIVATIONS)}) joined by '_' with a combination ({', '.join(COMBINATIONS)})"
        )
    return BASES[name](num_functions)
