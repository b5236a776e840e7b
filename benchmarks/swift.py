"""SwiFT beside its published computation and what is used for volumes over time today, on two sizes of clips.

The published computation has SwiFT's weights and output. MONAI's Swin transformer sees the frames as channels, and a
CNN sees one volume at a time: they answer the same question at another cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from paperworks.lab.benchmark import Case
from paperworks.papers.protocols.fmri_arms import VolumeCNN
from paperworks.papers.protocols.fmri_checks import closed_formula
from paperworks.papers.protocols.fmri_eager import EagerSwiFT
from paperworks.swin.swift import SwiFT

METHOD = "SwiFT"
EDGE, SHORT, LONG = 96, 8, 20
Call = Callable[[], object]


def swift(frames: int, use_checkpoint: bool = False) -> nn.Module:
    """SwiFT with the weights of `published`."""
    model = SwiFT((EDGE, EDGE, EDGE, frames), use_checkpoint=use_checkpoint)
    model.load_official_state_dict(published(frames).state_dict())
    return model


def published(frames: int) -> nn.Module:
    """The published computation, step by step."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return EagerSwiFT((EDGE, EDGE, EDGE, frames))


class _Last(nn.Module):
    """The last map of MONAI's pyramid."""

    def __init__(self, pyramid: nn.Module) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, x: Tensor) -> Tensor:
        return self.pyramid(x[:, 0].movedim(-1, 1))[-1]


def monai_swin(frames: int) -> nn.Module:
    """MONAI's 3-D Swin transformer of the same widths and depths, frames as channels."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    return _Last(
        SwinTransformer(
            in_chans=frames, embed_dim=36, window_size=(4, 4, 4), patch_size=(6, 6, 6), depths=(2, 2, 6, 2),
            num_heads=(3, 6, 12, 24), spatial_dims=3,
        )
    )  # fmt: skip


CONTENDERS: Mapping[str, Callable[[int], nn.Module]] = {
    METHOD: swift,
    "SwiFT, blocks recomputed in backward": partial(swift, use_checkpoint=True),
    "published computation": published,
    "MONAI 3-D Swin, frames as channels": monai_swin,
    "3-D CNN on every volume": lambda frames: VolumeCNN(36),
}


def clip(frames: int) -> Tensor:
    """A clip (1, 1, 96, 96, 96, frames)."""
    return torch.randn(1, 1, EDGE, EDGE, EDGE, frames, generator=torch.Generator().manual_seed(0))


def forward(build: Callable[[int], nn.Module], frames: int) -> Call:
    """The forward pass without a graph."""
    model, x = build(frames).eval(), clip(frames)

    def call() -> object:
        with torch.no_grad():
            return model(x)

    return call


def forward_and_backward(build: Callable[[int], nn.Module], frames: int) -> Call:
    """The forward pass and the gradients of all parameters."""
    model, x = build(frames).train(), clip(frames)
    wanted = list(model.parameters())

    def call() -> object:
        return torch.autograd.grad(model(x).square().mean(), wanted, allow_unused=True)

    return call


def cases() -> list[Case]:
    """Forward, and forward with backward, at the paper's grid with 8 and with 20 frames, batch 1, float32."""
    found = []
    for frames in (SHORT, LONG):
        attention, other = closed_formula(frames)
        for name, prepare, times in (("forward", forward, 1), ("forward and backward", forward_and_backward, 3)):
            found.append(
                Case(
                    f"{name}, {EDGE}^3 voxels, {frames} frames",
                    METHOD,
                    {label: partial(prepare, build, frames) for label, build in CONTENDERS.items()},
                    floor=f"{times * (attention + other) / 1e9:.1f} G multiply-adds of SwiFT, "
                    f"{times * attention / 1e9:.1f} of them in attention",
                )
            )
    return found
