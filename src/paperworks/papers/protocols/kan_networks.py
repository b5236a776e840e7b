"""Networks of the Kolmogorov-Arnold papers' comparisons, built to a size: for functions and for images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from paperworks.kan.bases import KANLinear
from paperworks.kan.conv import KANConv2d
from paperworks.kan.s_kan import SKAN, SConvKAN
from paperworks.measure.parameters import count_parameters

Generator = torch.Generator | None


# ---- for functions: (variables, hidden, num_functions, generator) -> network (N, variables) -> (N, 1)


def kan(variables: int, hidden: int, num_functions: int, generator: Generator = None, *, basis: str) -> nn.Module:
    """One hidden layer of one basis; the inputs are clamped, the hidden values squashed by tanh."""
    size = {"num_functions": num_functions, "generator": generator}
    first = KANLinear(variables, hidden, basis, squash="clamp", **size)  # type: ignore[arg-type]
    return nn.Sequential(first, KANLinear(hidden, 1, basis, **size))  # type: ignore[arg-type]


def s_kan(variables: int, hidden: int, num_functions: int, generator: Generator = None) -> nn.Module:
    """The same sizes with every family."""
    return SKAN([variables, hidden, 1], num_functions=num_functions, generator=generator)


def mlp(variables: int, hidden: int, num_functions: int, generator: Generator = None) -> nn.Module:
    """Two hidden SiLU layers of the smallest width with at least as many parameters as `kan`."""
    wanted = hidden * (variables + 1) * (num_functions + 1)
    width = 1
    while width * (variables + 1) + width * (width + 1) + width + 1 < wanted:
        width += 1
    sizes = [variables, width, width, 1]
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [_linear(i, o, generator), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _linear(i: int, o: int, generator: Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, i, o)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(i), 1 / math.sqrt(i), generator=generator)
    return layer


# ---- for images: (num_classes, in_channels, image_size) -> network (N, C, H, W) -> (N, num_classes)


class Squashed(nn.Module):
    """Pixels of [0, 1] as rows of [-1, 1]: (N, C, H, W) -> (N, C H W)."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.flatten(1) - 1


def image_mlp(num_classes: int, in_channels: int, image_size: int, *, width: int = 32, norm: bool = True) -> nn.Module:
    """One hidden layer: linear, LayerNorm, SiLU, linear."""
    first = nn.Linear(in_channels * image_size**2, width)
    return nn.Sequential(
        Squashed(), first, *([nn.LayerNorm(width)] if norm else []), nn.SiLU(), nn.Linear(width, num_classes)
    )


def image_kan(num_classes: int, in_channels: int, image_size: int, *, basis: str, width: int = 4) -> nn.Module:
    """One hidden layer of one basis."""
    first = KANLinear(in_channels * image_size**2, width, basis, squash="clamp")
    return nn.Sequential(Squashed(), first, KANLinear(width, num_classes, basis))


def image_s_kan(num_classes: int, in_channels: int, image_size: int, *, width: int = 4) -> nn.Module:
    """The same with every family, which the training prunes to one a node."""
    return nn.Sequential(Squashed(), SKAN([in_channels * image_size**2, width, num_classes]))


def image_af_kan(num_classes: int, in_channels: int, image_size: int, *, width: int = 32) -> nn.Module:
    """AF-KAN of one hidden layer."""
    from paperworks.kan.af_kan import AFKAN

    return nn.Sequential(Squashed(), AFKAN([in_channels * image_size**2, width, num_classes]))


def image_relu_kan(num_classes: int, in_channels: int, image_size: int, *, width: int = 4) -> nn.Module:
    """ReLU-KAN of one hidden layer."""
    from paperworks.kan.af_kan import ReLUKANLayer

    first = ReLUKANLayer(in_channels * image_size**2, width)
    return nn.Sequential(Squashed(), first, ReLUKANLayer(width, num_classes))


Layer = Callable[[int, int], nn.Module]


class ConvStages(nn.Module):
    """The frame of `SConvKAN` with other convolutions: BatchNorm, convolution, pooling; average; linear head."""

    def __init__(self, in_channels: int, num_classes: int, widths: Sequence[int], layer: Layer) -> None:
        super().__init__()
        sizes = [in_channels, *widths]
        self.norms = nn.ModuleList(nn.BatchNorm2d(i) for i in sizes[:-1])
        self.layers = nn.ModuleList(layer(i, o) for i, o in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for at, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            x = layer(norm(x if at == 0 else nn.functional.max_pool2d(x, 2)))
        return self.head(x.mean((2, 3)))


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("-"))


def s_conv_kan(num_classes: int, in_channels: int, image_size: int, *, widths: str = "8-16") -> nn.Module:
    """S-ConvKAN of these widths."""
    return SConvKAN(in_channels, num_classes, _widths(widths))


def conv_kan(num_classes: int, in_channels: int, image_size: int, *, basis: str, widths: str = "8-16") -> nn.Module:
    """The same frame with convolutions of one basis."""

    def layer(i: int, o: int) -> nn.Module:
        return KANConv2d(i, o, 3, basis, padding=1)

    return ConvStages(in_channels, num_classes, _widths(widths), layer)


class NonLinearConv(nn.Module):
    """A 3x3 convolution and SiLU."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.conv(x))


def conv_twin(num_classes: int, in_channels: int, image_size: int, *, widths: str = "8-16") -> nn.Module:
    """Plain convolutions in the same frame, widths raised by one factor to at least the parameters of `conv_kan`."""
    wanted = count_parameters(conv_kan(num_classes, in_channels, image_size, basis="rbf", widths=widths))
    raised = list(_widths(widths))
    tenths = 10
    while True:
        sizes = [max(1, w * tenths // 10) for w in raised]
        twin = ConvStages(in_channels, num_classes, sizes, NonLinearConv)
        if count_parameters(twin) >= wanted:
            return twin
        tenths += 1
