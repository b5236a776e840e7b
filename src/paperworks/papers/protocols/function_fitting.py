"""Regression of seven functions of one to four variables: one arm fits all of them at one seed."""

from __future__ import annotations

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial

FUNCTIONS = {
    "bessel": 1,
    "exp_sine": 2,
    "product": 2,
    "four_variables": 4,
    "discontinuous": 2,
    "oscillation": 1,
    "kink": 2,
}
"""Numbers of variables. J0(20 x); exp(sin(pi x) + y^2); x y; exp((sin(pi (x1^2 + x2^2)) + sin(pi (x3^2 + x4^2))) / 2);
sign(x) [|y| > 1/2]; sin(6 pi x) exp(-4 x^2); exp(-40 (x - 0.2)^2) + |y|."""


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"got {value}, wanted a number > 0")


@protocol(
    "function fitting",
    metrics={
        "log_rmse": "mean over the functions of log10 of the test RMSE (targets have unit variance)",
        **{f"log_rmse_{name}": f"log10 of the test RMSE on {name}" for name in FUNCTIONS},
        "waves_on_waves": "of the first nodes on bessel and oscillation, the part that chose fourier or wavelet",
        "splines_on_smooth": "of the first nodes on product and four_variables, the part that chose bspline",
        "parameters": "of the network with two variables, after pruning",
        "decided": "mean over nodes of the largest family weight just before pruning; 1 where nothing is chosen",
        "jump": "mean over functions of the loss right after pruning minus the loss right before; 0 without pruning",
    },
    settings=(
        Setting("steps", int, Tiers(smoke=20, desk=500, gpu=2000), "optimiser steps on all of the data", _positive),
        Setting("hidden", int, 5, "width of the hidden layer", _positive),
        Setting("num_functions", int, 8, "functions of one edge, K", _positive),
        Setting("points", int, Tiers(smoke=200, desk=1000), "points to fit, and as many to test", _positive),
        Setting("tau_end", float, 0.02, "temperature of the choice at the end of the second stage", _positive),
        Setting("score", str, "contribution", "what chooses a family: contribution or weight"),
    ),
    time_limit=1800.0,
)
def function_fitting(trial: Trial, arm: Arm) -> dict[str, float]:
    """Adam on the mean squared error, all points a step; the rate is held for 60 % of the steps, then a cosine to 1 %.

    The arm's target is called with (variables, hidden, num_functions, generator) and gives the network; an option
    `lr` of the arm (2e-2 if it has none) goes to the training. Networks with S-KAN layers pass through their three
    stages in the same number of steps. Points are uniform on [-1, 1]; all arms of a seed see the same.
    """
    from paperworks.papers.protocols.function_trials import fit_functions

    return fit_functions(trial, arm)
