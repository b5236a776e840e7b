"""The shifted-window core beside transformers' Swin and MONAI's encoder: same weights, same outputs.

`paperworks bench swin-core`. Sizes at which the window divides the map on every stage, and sizes at which it does not:
there the peers compute the projections of padding, and the core does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.lab.benchmark import Case
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.swin.backbone import SwinBackbone, SwinClassifier
from paperworks.swin.state_dicts import load_swin_state_dict

Call = Callable[[], object]
CORE = "paperworks.swin"


def swin_t() -> tuple[nn.Module, SwinClassifier]:
    """transformers' Swin-T and the core with its weights."""
    from transformers import SwinConfig, SwinModel

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        theirs = SwinModel(SwinConfig(), add_pooling_layer=False).eval()
    ours = SwinClassifier(0, clamp="joint").eval()
    load_swin_state_dict(ours, theirs.state_dict(), "transformers")
    return theirs, ours


def encoders(axes: int, feature: int) -> tuple[nn.Module, SwinBackbone]:
    """MONAI's Swin UNETR encoder and the core with its weights."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    sizes: dict[str, Any] = {"depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24)}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        theirs = SwinTransformer(1, feature, (7,) * axes, (2,) * axes, spatial_dims=axes, **sizes).eval()
    ours = SwinBackbone(
        axes, 1, 2, feature, window=7, merge="each", taps="after", out_norm="plain", patch_norm=False,
        merge_order="monai" if axes == 3 else "swin2d", **sizes,
    ).eval()  # fmt: skip
    load_swin_state_dict(ours, theirs.state_dict(), "monai")
    return theirs, ours


def forward(run: Callable[[Tensor], object], x: Tensor) -> Call:
    """Without gradients."""

    def call() -> object:
        with torch.inference_mode():
            return run(x)

    return call


def training(run: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    """Forward and backward."""
    return lambda: run(x).square().mean().backward()


def picture(*size: int) -> Tensor:
    """A batch of one."""
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(1))


def _classifier_cases(side: int) -> list[Case]:
    x = picture(3, side, side)

    def theirs() -> Callable[[Tensor], Tensor]:
        model = swin_t()[0]
        return lambda x: model(x).last_hidden_state

    def ours() -> Callable[[Tensor], Tensor]:
        return swin_t()[1].forward_features

    with torch.device("meta"):
        macs = count_multiply_adds(SwinClassifier(0, clamp="joint"), torch.empty(1, 3, side, side)).macs
    floor = f"{macs / 1e9:.2f} G multiply-adds, matrix products all but a fiftieth of them"
    return _pair(f"Swin-T, one {side} x {side} picture", ours, "transformers SwinModel", theirs, x, floor)


def _encoder_cases(axes: int, feature: int, side: int) -> list[Case]:
    x = picture(1, *(side,) * axes)

    def theirs() -> Callable[[Tensor], Tensor]:
        model = encoders(axes, feature)[0]
        return lambda x: torch.cat([map.flatten() for map in model(x, True)])

    def ours() -> Callable[[Tensor], Tensor]:
        model = encoders(axes, feature)[1]
        return lambda x: torch.cat([map.flatten() for map in model(x)])

    name = f"Swin UNETR's encoder on {axes} axes, {feature} features, {side}^{axes}"
    return _pair(name, ours, "MONAI SwinTransformer", theirs, x, "")


Build = Callable[[], Callable[[Tensor], Tensor]]


def _pair(name: str, ours: Build, peer: str, theirs: Build, x: Tensor, floor: str) -> list[Case]:
    def timed(how: Callable[[Callable[[Tensor], Tensor], Tensor], Call]) -> dict[str, Callable[[], Call]]:
        return {CORE: lambda: how(ours(), x), peer: lambda: how(theirs(), x)}

    return [
        Case(f"{name}, forward", CORE, timed(forward), floor),
        Case(f"{name}, forward and backward", CORE, timed(training), floor and f"three times {floor}"),
    ]


def cases() -> list[Case]:
    """Two axes at a size that divides and one that does not, and MONAI's encoder on two and three axes."""
    return [
        *_classifier_cases(224),
        *_classifier_cases(256),
        *_encoder_cases(2, 48, 256),
        *_encoder_cases(3, 48, 64),
    ]
