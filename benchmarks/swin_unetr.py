"""Swin UNETR beside MONAI's, with the same weights and the same output: forward, and forward with backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.lab.benchmark import Case
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.swin.swin_unetr import SwinUNETR

METHOD = "SwinUNETR"
Call = Callable[[], object]
CASES: Mapping[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "feature 48, 64^3": ({"feature_size": 48}, (1, 4, 64, 64, 64)),
    "feature 24, 64x64x32": ({"feature_size": 24}, (1, 4, 64, 64, 32)),
    "2-D, feature 24, 4 x 128^2": ({"feature_size": 24, "spatial_dims": 2}, (4, 4, 128, 128)),
}


@lru_cache(maxsize=1)
def weights(name: str) -> dict[str, Tensor]:
    """One draw of weights, under MONAI's names."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return SwinUNETR(4, 3, **CASES[name][0]).monai_state_dict()


def ours(name: str) -> nn.Module:
    """This network."""
    model = SwinUNETR(4, 3, **CASES[name][0])
    model.load_monai_state_dict(weights(name))
    return model


def monai(name: str) -> nn.Module:
    """MONAI's network."""
    from monai.networks.nets import SwinUNETR as Theirs

    model: nn.Module = Theirs(4, 3, **CASES[name][0])
    model.load_state_dict(weights(name))
    return model


def monai_with_fused_attention(name: str) -> nn.Module:
    """MONAI's network with its option for fused attention, which it has without gradients only."""
    from monai.networks.nets import SwinUNETR as Theirs

    model: nn.Module = Theirs(4, 3, **CASES[name][0], use_flash_attention=True)
    model.load_state_dict(weights(name))
    return model


def inputs(name: str) -> Tensor:
    """A standard normal input."""
    return torch.randn(CASES[name][1], generator=torch.Generator().manual_seed(1))


def forward(build: Callable[[str], nn.Module], name: str) -> Call:
    """The forward pass without a graph."""
    model, x = build(name).eval(), inputs(name)

    def call() -> object:
        with torch.no_grad():
            return model(x)

    return call


def forward_and_backward(build: Callable[[str], nn.Module], name: str) -> Call:
    """The forward pass and the gradients of all parameters."""
    model, x = build(name).train(), inputs(name)
    parameters = list(model.parameters())

    def call() -> object:
        return torch.autograd.grad(model(x).square().mean(), parameters)

    return call


@lru_cache
def multiply_adds(name: str) -> int:
    """Of the network in MONAI's form: what products and convolutions cannot do without."""
    options, shape = CASES[name]
    with torch.device("meta"):
        return count_multiply_adds(SwinUNETR(4, 3, **options), torch.zeros(shape)).macs


def cases() -> list[Case]:
    """Forward, and forward with backward, in float32."""
    found = []
    for name in CASES:
        for what, prepare, passes, contenders in (
            (
                "forward",
                forward,
                1,
                {METHOD: ours, "MONAI": monai, "MONAI, fused attention": monai_with_fused_attention},
            ),
            ("forward and backward", forward_and_backward, 3, {METHOD: ours, "MONAI": monai}),
        ):
            calls = {label: partial(prepare, build, name) for label, build in contenders.items()}
            found.append(
                Case(
                    f"{what}, {name}",
                    METHOD,
                    calls,
                    floor=f"{passes * multiply_adds(name) / 1e9:.4g} billion multiply-adds",
                )
            )
    return found
