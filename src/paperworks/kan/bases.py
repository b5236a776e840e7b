"""The bases by name, and the layer of one basis: what the papers on Kolmogorov-Arnold networks share."""

from __future__ import annotations

from paperworks.kan.families import (
    Basis,
    BSplineBasis,
    ChebyshevBasis,
    FourierBasis,
    GaussianBasis,
    WaveletBasis,
)
from paperworks.kan.linear import KANLinear
from paperworks.kan.names import BASES, get_basis
from paperworks.kan.pairs import PairBasis, ReLUPowerBasis

__all__ = [
    "BASES",
    "BSplineBasis",
    "Basis",
    "ChebyshevBasis",
    "FourierBasis",
    "GaussianBasis",
    "KANLinear",
    "PairBasis",
    "ReLUPowerBasis",
    "WaveletBasis",
    "get_basis",
]
