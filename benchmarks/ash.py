"""ASH beside the activations that a user would pick instead, and beside exact top-k selection."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from paperworks.activations.ash import ASH, TopPercent
from paperworks.lab.benchmark import Case

Call = Callable[[], object]


def written_out(x: Tensor, alpha: Tensor, z: Tensor) -> Tensor:
    """ASH as one writes it down with torch's own operations."""
    mean = x.mean((1, 2, 3), keepdim=True)
    std = (x.var((1, 2, 3), correction=0, keepdim=True) + 1e-6).sqrt()
    return x * torch.sigmoid(2 * alpha * (x - mean - z * std))


class WrittenOut(nn.Module):
    """`written_out` as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.z = nn.Parameter(torch.ones(1)), nn.Parameter(torch.full((1,), 1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return written_out(x, self.alpha, self.z)


def _compiled() -> nn.Module:
    return torch.compile(WrittenOut())  # type: ignore[return-value]


def _timm(name: str) -> nn.Module:
    import timm.layers

    module: nn.Module = getattr(timm.layers, name)()
    return module


PEERS: dict[str, Callable[[], nn.Module]] = {
    "ASH": ASH,
    "ASH written out": WrittenOut,
    "ASH written out, torch.compile": _compiled,
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Mish": nn.Mish,
    "Hardswish": nn.Hardswish,
    "timm Mish": partial(_timm, "Mish"),
}


def _call(make: Callable[[], nn.Module], shape: tuple[int, ...], backward: bool) -> Call:
    module = make()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_(backward)
    gradient = torch.ones_like(x)

    def forward() -> object:
        with torch.no_grad():
            return module(x)

    def both() -> object:
        x.grad = None
        module.zero_grad()
        module(x).backward(gradient)
        return x.grad

    return both if backward else forward


def cases() -> list[Case]:
    """Forward, and forward with backward, at sizes of a network's early and late maps; exact selection once."""
    found = []
    for shape in ((32, 64, 56, 56), (32, 256, 14, 14)):
        size = torch.Size(shape).numel() * 4
        sizes = "x".join(map(str, shape))
        for backward in (False, True):
            contenders = {name: partial(_call, make, shape, backward) for name, make in PEERS.items()}
            moved = 6 * size if backward else 2 * size
            floor = (
                "floor: read input twice for the forward pass (once if a sample stays in the cache) and write once"
                + ("; read input and gradient, write the gradient, twice over the sums" if backward else "")
                + f"; {moved / 2**20:.0f} MiB moved at least"
            )
            name = f"{'forward + backward' if backward else 'forward'}, {sizes} float32"
            found.append(Case(name, "ASH", contenders, floor, moved))
    shape = (32, 64, 56, 56)
    exact: dict[str, Callable[[], nn.Module]] = {
        "ASH": ASH,
        "exact top half (TopPercent)": partial(TopPercent, 50.0),
        "torch.topk mask": _TopK,
    }
    contenders = {name: partial(_call, make, shape, False) for name, make in exact.items()}
    found.append(Case("selection of the top half, forward, 32x64x56x56 float32", "ASH", contenders))
    return found


class _TopK(nn.Module):
    """The top half of each sample by `torch.topk`, the rest zero."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        values, indices = flat.topk(flat.shape[1] // 2, dim=1, sorted=False)
        return torch.zeros_like(flat).scatter_(1, indices, values).view_as(x)
