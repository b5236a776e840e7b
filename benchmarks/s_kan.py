"""Kolmogorov-Arnold layers beside the packages one would use instead, and S-KAN before and after its pruning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from paperworks.kan.bases import KANLinear
from paperworks.kan.s_kan import SKAN, SKANLinear
from paperworks.lab.benchmark import Case

METHOD, K = "KANLinear, bspline", 8
Call = Callable[[], object]
Build = Callable[[int, int], nn.Module]


class RecursiveSpline(nn.Module):
    """An efficient-kan layer: the spline recursion on tensors, SiLU base, one product each; grid 5, order 3."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.register_buffer("knots", (torch.arange(-3, 9) * 0.4 - 1).expand(i, -1).contiguous())
        self.base_weight = nn.Parameter(torch.randn(o, i) / i**0.5)
        self.spline_weight = nn.Parameter(torch.randn(o, i, 8) * 0.1 / i**0.5)

    def bases(self, x: Tensor) -> Tensor:
        knots = self.get_buffer("knots")
        x = x[..., None]
        values = ((x >= knots[:, :-1]) & (x < knots[:, 1:])).to(x.dtype)
        for k in range(1, 4):
            left = (x - knots[:, : -k - 1]) / (knots[:, k:-1] - knots[:, : -k - 1]) * values[..., :-1]
            right = (knots[:, k + 1 :] - x) / (knots[:, k + 1 :] - knots[:, 1:-k]) * values[..., 1:]
            values = left + right
        return values

    def forward(self, x: Tensor) -> Tensor:
        spline = nn.functional.linear(self.bases(torch.tanh(x)).flatten(1), self.spline_weight.flatten(1))
        return nn.functional.linear(nn.functional.silu(x), self.base_weight) + spline


class FastKANLayer(nn.Module):
    """A fast-kan layer: LayerNorm, Gaussians at 8 centres on [-2, 2], SiLU base."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(i)
        self.register_buffer("centres", torch.linspace(-2, 2, K))
        self.spline = nn.Linear(i * K, o, bias=False)
        self.base = nn.Linear(i, o)

    def forward(self, x: Tensor) -> Tensor:
        t = (self.norm(x)[..., None] - self.get_buffer("centres")) / (4 / (K - 1))
        return self.spline(torch.exp(-(t**2)).flatten(1)) + self.base(nn.functional.silu(x))


def pykan_network(widths: list[int]) -> nn.Module:
    """pykan's network: grid 5, cubic, without its symbolic branch."""
    import contextlib
    import io

    from kan import KAN

    with contextlib.redirect_stdout(io.StringIO()):
        # What its speed() sets: no symbolic branch, no activations kept.
        sizes = {"width": widths, "grid": 5, "k": 3, "seed": 0}
        network: nn.Module = KAN(**sizes, auto_save=False, symbolic_enabled=False, save_act=False)
    return network


def pruned(i: int, o: int) -> nn.Module:
    """What is left of an S-KAN layer that chose each family for a fifth of its inputs."""
    layer = SKANLinear(i, o)
    layer.select(torch.arange(i) % 5)
    return layer.compact()


LAYERS: dict[str, Build] = {
    METHOD: lambda i, o: KANLinear(i, o, "bspline"),
    "KANLinear, rbf": lambda i, o: KANLinear(i, o, "rbf"),
    "S-KAN, five families": SKANLinear,
    "S-KAN, pruned": pruned,
    "efficient-kan style": RecursiveSpline,
    "fast-kan style": FastKANLayer,
    "nn.Linear of 9 times the inputs": lambda i, o: nn.Linear(9 * i, o),
}


def layer_call(build: Build, rows: int, i: int, o: int, backward: bool) -> Call:
    """One call, with gradients of input and parameters where asked for."""
    torch.manual_seed(0)
    layer = build(i, o)
    width = layer.in_features if isinstance(layer, nn.Linear) else i
    x = torch.randn(rows, width).requires_grad_(backward)
    g = torch.randn(rows, o)

    def call() -> object:
        if not backward:
            with torch.no_grad():
                return layer(x)
        return torch.autograd.grad(layer(x), [x, *layer.parameters()], g)

    return call


def fit_call(build: Callable[[], nn.Module]) -> Call:
    """One Adam step on 1000 points of a function of two variables."""
    torch.manual_seed(0)
    model = build()
    x = torch.rand(1000, 2) * 2 - 1
    y = torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:] ** 2)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)

    def call() -> object:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return call


def _pruned_network() -> nn.Module:
    model = SKAN([2, 5, 1])
    model.select()
    return model.compact()


def cases() -> list[Case]:
    """A layer forward and backward at three sizes; a step of fitting [2, 5, 1], pykan's case."""
    found = []
    for rows, i, o in ((256, 784, 64), (1024, 64, 64), (256, 64, 10)):
        products = 2 * rows * i * o * (K + 1)
        for backward in (False, True):
            name = "forward and backward" if backward else "forward"
            work = products * (3 if backward else 1)
            contenders = {label: partial(layer_call, b, rows, i, o, backward) for label, b in LAYERS.items()}
            method = METHOD
            found.append(
                Case(
                    f"{name}, {rows} rows, {i} -> {o}", method, contenders, floor=f"{work / 1e6:.3g} MFLOP of products"
                )
            )
    steps: dict[str, Callable[[], nn.Module]] = {
        METHOD: lambda: nn.Sequential(KANLinear(2, 5, "bspline", squash="clamp"), KANLinear(5, 1, "bspline")),
        "S-KAN, five families": lambda: SKAN([2, 5, 1]),
        "S-KAN, pruned": _pruned_network,
        "efficient-kan style": lambda: nn.Sequential(RecursiveSpline(2, 5), RecursiveSpline(5, 1)),
        "fast-kan style": lambda: nn.Sequential(FastKANLayer(2, 5), FastKANLayer(5, 1)),
        "pykan": lambda: pykan_network([2, 5, 1]),
    }
    contenders = {label: partial(fit_call, build) for label, build in steps.items()}
    found.append(Case("one step of fitting, 1000 points, [2, 5, 1]", METHOD, contenders, floor="calls, not arithmetic"))
    return found
