"""Read a trained Kolmogorov-Arnold network: which family each node has, and a formula for each edge.

An edge function is a curve of one variable. `fit_formula` fits polynomials of degree 1 to 3, a sine, an exponential
and a bump to it, and takes the first of them, in this order, whose R^2 is within `close` of the best.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.kan.linear import KANLinear
from paperworks.kan.selection import Choosing, PrunedSKANLinear, SKANLinear

Layer = KANLinear | SKANLinear | PrunedSKANLinear


@dataclass(frozen=True)
class Formula:
    """A formula of one edge: its text in `x`, the coefficient of determination on the grid, and its kind."""

    text: str
    r2: float
    kind: str


@dataclass(frozen=True)
class Node:
    """One input of one layer: its family (of the largest weight where nothing is chosen yet) and that weight."""

    layer: str
    input: int
    family: str
    weight: float


def family_table(model: nn.Module) -> list[Node]:
    """The family of every input of every layer that chooses, in the order of the model."""
    rows = []
    for name, layer in model.named_modules():
        if not isinstance(layer, Choosing):
            continue
        if layer.choice is not None:
            chosen, weights = layer.choice.tolist(), [1.0] * len(layer.choice)
        else:
            best = layer.weights().max(-1)  # type: ignore[operator]
            chosen, weights = best.indices.tolist(), best.values.tolist()
        rows += [
            Node(name, at, layer.families[family], weight)
            for at, (family, weight) in enumerate(zip(chosen, weights, strict=True))
        ]
    return rows


@torch.no_grad()
def edge_functions(layer: Layer, x: Tensor) -> Tensor:
    """phi_od(x) of every edge for values x (N,) of one variable: (N, O, D), the base term included."""
    if not isinstance(layer, KANLinear | SKANLinear | PrunedSKANLinear):
        raise TypeError(f"layer: got {type(layer).__name__}, wanted a KANLinear, SKANLinear or PrunedSKANLinear")
    if x.ndim != 1:
        raise ValueError(f"x: got shape {tuple(x.shape)}, wanted one dimension")
    rest = layer(torch.zeros(1, layer.in_features, dtype=x.dtype, device=x.device))
    columns = []
    for d in range(layer.in_features):
        # Only input d moves; what the others say at 0 is a constant: taken off, and the edge's own part at 0 put back.
        inputs = torch.zeros(len(x), layer.in_features, dtype=x.dtype, device=x.device)
        inputs[:, d] = x
        columns.append(layer(inputs) - rest)
    return torch.stack(columns, -1) + _at_zero(layer, x)


def _at_zero(layer: Layer, x: Tensor) -> Tensor:
    """phi_od(0), (O, D): silu(0) = 0, so that it is the sum over functions at u = 0."""
    zero = x.new_zeros(())
    if isinstance(layer, KANLinear):
        return layer.coef @ layer.basis(zero)
    values = torch.stack([basis(zero) for basis in layer.bases])  # (M, K)
    if isinstance(layer, PrunedSKANLinear):
        assert layer.choice is not None
        return torch.einsum("odk,dk->od", layer.coef, values[layer.choice])
    if layer.choice is not None:
        mask = nn.functional.one_hot(layer.choice, len(values)).to(x)
        return torch.einsum("modk,mk,dm->od", layer.coef, values, mask)
    return torch.einsum("modk,mk,dm->od", layer.coef, values, layer.weights())


def _curve(kind: str) -> tuple[Callable[..., Any], list[list[float]], str]:
    """The function of x and its parameters, starts for them, and the text of the formula."""
    import numpy as np

    if kind == "sin":
        starts = [[1.0, w, p, 0.0] for w in (1.5, math.pi, 6.0, 9.0, 14.0, 20.0) for p in (0.0, 1.5)]
        return lambda x, a, w, p, c: a * np.sin(w * x + p) + c, starts, "{0:.3g} sin({1:.3g} x + {2:.3g}) + {3:.3g}"
    if kind == "exp":
        starts = [[1.0, w, 0.0] for w in (-2.0, -0.5, 0.5, 2.0)]
        return lambda x, a, w, c: a * np.exp(np.clip(w * x, -30, 30)) + c, starts, "{0:.3g} exp({1:.3g} x) + {2:.3g}"
    starts = [[1.0, m, w, 0.0] for m in (-0.5, 0.0, 0.5) for w in (0.2, 0.6)]
    text = "{0:.3g} exp(-((x - {1:.3g}) / {2:.3g})^2) + {3:.3g}"
    return lambda x, a, m, w, c: a * np.exp(-(((x - m) / (abs(w) + 1e-3)) ** 2)) + c, starts, text


def fit_formula(x: Tensor, y: Tensor, *, close: float = 1e-3) -> Formula:
    """A formula for the curve y (N,) over x (N,).

    Args:
        x, y: at least 8 points.
        close: how much R^2 a simpler formula may lose against the best.

    Raises ValueError for curves of different lengths or fewer than 8 points.
    """
    import numpy as np
    from scipy.optimize import OptimizeWarning, curve_fit

    if x.ndim != 1 or x.shape != y.shape or len(x) < 8:
        raise ValueError(f"x, y: got shapes {tuple(x.shape)}, {tuple(y.shape)}, wanted two curves of 8 points or more")
    at, values = x.detach().double().cpu().numpy(), y.detach().double().cpu().numpy()
    spread = float(((values - values.mean()) ** 2).sum())
    if spread <= 1e-12 * max(1.0, float((values**2).sum())):
        return Formula(f"{values.mean():.3g}", 1.0, "constant")

    def r2(fitted: Any) -> float:
        return 1 - float(((values - fitted) ** 2).sum()) / spread

    found = []
    for degree in (1, 2, 3):
        terms = np.polynomial.polynomial.polyfit(at, values, degree)
        text = " + ".join(f"{c:.3g}" + ("" if n == 0 else " x" if n == 1 else f" x^{n}") for n, c in enumerate(terms))
        found.append(Formula(text, r2(np.polynomial.polynomial.polyval(at, terms)), f"polynomial of degree {degree}"))
    scale = float(np.ptp(values)) / 2
    for kind in ("sin", "exp", "bump"):
        curve, starts, text = _curve(kind)
        fits = []
        for start in starts:
            start = [start[0] * scale, *start[1:-1], float(values.mean())]
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", OptimizeWarning)  # of the covariance, which nobody asks for
                    parameters, _ = curve_fit(curve, at, values, start, maxfev=400)
            except RuntimeError:  # did not converge from this start
                continue
            fits.append((r2(curve(at, *parameters)), parameters))
        if fits:
            best, parameters = max(fits, key=lambda fit: fit[0])
            found.append(Formula(text.format(*parameters), best, kind))
    top = max(formula.r2 for formula in found)
    return next(formula for formula in found if formula.r2 >= top - close)


def edge_formulas(layer: Layer, *, low: float = -1.0, high: float = 1.0, points: int = 200) -> list[list[Formula]]:
    """A formula for every edge on [low, high]: ``formulas[o][d]``."""
    weight = layer.coef
    x = torch.linspace(low, high, points, dtype=weight.dtype, device=weight.device)
    curves = edge_functions(layer, x)
    return [[fit_formula(x, curves[:, o, d]) for d in range(curves.shape[2])] for o in range(curves.shape[1])]


def plot_edges(figure: Any, layer: Layer, *, low: float = -1.0, high: float = 1.0) -> None:
    """Draw every edge function of `layer` into a matplotlib figure: a row an output, a column an input."""
    x = torch.linspace(low, high, 200, dtype=layer.coef.dtype, device=layer.coef.device)
    curves = edge_functions(layer, x).cpu()
    axes = figure.subplots(curves.shape[1], curves.shape[2], squeeze=False, sharex=True)
    families = [node.family for node in family_table(layer)]
    for o, row in enumerate(axes):
        for d, ax in enumerate(row):
            ax.plot(x.cpu(), curves[:, o, d])
            if o == 0:
                ax.set_title(f"input {d}" + (f": {families[d]}" if families else ""), fontsize="small")
