"""TauGate: a frozen network is adapted by a threshold and a gain for each hidden unit, switched as modes at run time.

Dopamine: Brain Modes, Not Brains (arXiv 2602.11726). With pre-activation z and base activation phi, unit i gives

    h_i = gain_i phi(z_i) g_i,    g_i = sigmoid(s (z_i - tau_i)) in training, 1[z_i > tau_i] at inference

and tau, gain are all that is trained: 2 H numbers a layer. tau -> -inf leaves the gains of IA3, with gain = 1 the base.

A threshold has a gradient only where phi(z) is not 0: under ReLU it can close a unit, not make a silent one speak.
Any model with activation modules is served (transformers, timm, plain torch). `fold_gains` and `compact` also want the
linear layer that alone reads a site: after an MLP's activation that is the down projection; in a gated MLP (Llama) the
gains pass the product with the up projection and go into the down projection too, and a unit leaves all three layers.
Through a norm or a residual branch nothing is folded or cut out; with a fused gate-and-up projection gains fold only.
"""

from paperworks.efficiency.dopamine.activation import GatedActivation
from paperworks.efficiency.dopamine.adapter import TauGateConfig, TauGateModel, add_taugate, load_taugate
from paperworks.efficiency.dopamine.gate import TauGate, tau_gate
from paperworks.efficiency.dopamine.report import GateReport, SiteReport
from paperworks.efficiency.dopamine.routing import ModeRouter

__all__ = [
    "GateReport",
    "GatedActivation",
    "ModeRouter",
    "SiteReport",
    "TauGate",
    "TauGateConfig",
    "TauGateModel",
    "add_taugate",
    "load_taugate",
    "tau_gate",
]
