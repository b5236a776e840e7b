"""ASH: every unit is gated by where its value stands among the values of its own sample, a soft "top k percent".

Stochastic Adaptive Activation Function (NeurIPS 2022), arXiv 2210.11672. With mean and sigma of one sample's map,

    keep x among the top k percent of a normal map:   x H(x - mean - z_k sigma),  k = 1 - Phi(z_k)
    made smooth by 2 H(t) ~ 1 + tanh(alpha t):        A(x) = x S(2 alpha (x - mean - z_k sigma))

S the logistic function, alpha and z_k learned. A is x S(a x + b), Swish whose a and b follow the sample: SiLU where
alpha = 1/2 and mean + z_k sigma = 0, and the exact threshold for alpha -> infinity. The hard form for sparse continual
learning is from the follow-up Hard ASH, arXiv 2404.17651.
"""

from paperworks.activations.ash.calibration import calibrate_percent, fold, inverted_layers, percent_by_layer
from paperworks.activations.ash.causal import CausalASH, CausalState, causal_ash
from paperworks.activations.ash.functional import Dims, ash, hard_ash, percent_from_z, z_from_percent
from paperworks.activations.ash.modules import (
    ASH,
    CentredUnitRows,
    FoldedASH,
    HardASH,
    TopPercent,
    no_weight_decay,
)

__all__ = [
    "ASH",
    "CausalASH",
    "CausalState",
    "CentredUnitRows",
    "Dims",
    "FoldedASH",
    "HardASH",
    "TopPercent",
    "ash",
    "calibrate_percent",
    "causal_ash",
    "fold",
    "hard_ash",
    "inverted_layers",
    "no_weight_decay",
    "percent_by_layer",
    "percent_from_z",
    "z_from_percent",
]
