"""Edge functions sum to the layer, formulas are found where they are true, tables say what was chosen."""

import math

import pytest
import torch
from torch import nn

from paperworks.kan.bases import KANLinear
from paperworks.kan.readout import edge_formulas, edge_functions, family_table, fit_formula, plot_edges
from paperworks.kan.s_kan import SKAN, SKANLinear

X = torch.linspace(-1, 1, 200, dtype=torch.float64)


def chosen():
    layer = SKANLinear(3, 2)
    layer.select(torch.tensor([0, 2, 4]))
    return layer


@pytest.mark.parametrize(
    "make", [lambda: KANLinear(3, 2, "fourier"), lambda: SKANLinear(3, 2), chosen, lambda: chosen().compact()]
)
def test_edges_sum_to_the_layer(make):
    layer = make().double()
    x = torch.randn(6, 3, dtype=torch.float64)
    edges = torch.stack([edge_functions(layer, x[:, d])[:, :, d] for d in range(3)])
    assert torch.allclose(edges.sum(0), layer(x), atol=1e-10)


@pytest.mark.parametrize(
    ("curve", "kind"),
    [
        (3 - 2 * X, "polynomial of degree 1"),
        (X**3 - X, "polynomial of degree 3"),
        (0.7 * torch.sin(6 * math.pi * X + 0.4) + 1, "sin"),
        (torch.exp(2.5 * X), "exp"),
        (torch.exp(-40 * (X - 0.2) ** 2), "bump"),
        (torch.full_like(X, 2.0), "constant"),
    ],
)
def test_formulas(curve, kind):
    found = fit_formula(X, curve)
    assert found.kind == kind
    assert found.r2 > 0.9999


def test_every_edge_of_a_network_has_a_formula():
    model = SKAN([2, 3, 1])
    model.select()
    formulas = edge_formulas(model.compact().layers[0])
    assert [len(row) for row in formulas] == [2, 2, 2]


def test_table():
    model = nn.Sequential(SKANLinear(2, 3), chosen())
    rows = family_table(model)
    assert [(row.layer, row.input) for row in rows] == [("0", 0), ("0", 1), ("1", 0), ("1", 1), ("1", 2)]
    assert [row.family for row in rows[2:]] == ["bspline", "fourier", "wavelet"]
    assert rows[0].weight == pytest.approx(0.2)


def test_plot():
    matplotlib_figure = pytest.importorskip("matplotlib.figure", reason="matplotlib draws the edges")
    figure = matplotlib_figure.Figure()
    plot_edges(figure, chosen())
    assert len(figure.axes) == 6
    assert "fourier" in figure.axes[1].get_title()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: edge_functions(nn.Linear(2, 2), X), TypeError, "KANLinear"),
        (lambda: edge_functions(KANLinear(2, 2, "rbf"), torch.zeros(2, 2)), ValueError, "one dimension"),
        (lambda: fit_formula(X, X[:5]), ValueError, "8 points"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
