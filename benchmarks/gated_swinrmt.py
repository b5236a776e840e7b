"""Gated-SwinRMT beside the Swins one would use instead: whole backbones at 224 pixels, and the attention alone.

The networks are not the same function, and have 73 to 88 million parameters: compare time a parameter. The attentions
have the same windows, channels and heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from paperworks.lab.benchmark import Case
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.measure.parameters import count_parameters
from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.gated_swinrmt import (
    GatedRetention,
    gated_swinrmt_retention,
    gated_swinrmt_swat,
    rmt_baseline,
)
from paperworks.swin.windows import WindowAttention, shift_mask

METHOD = "Gated-SwinRMT-Retention"
SWIN_B = {"dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
IMAGE, WINDOWS, TOKENS, DIM, HEADS = 224, 64, 49, 128, 4
Call = Callable[[], object]


class Logits(nn.Module):
    """A network of transformers as a function from images to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.network(x).logits


class FirstOf(nn.Module):
    """An attention of transformers that returns a pair."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B', N, C) -> the same shape."""
        return self.attention(x, mask)[0]


def transformers_swin() -> nn.Module:
    """Swin-B of transformers. Raises ImportError without it."""
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], num_labels=100)
    return Logits(SwinForImageClassification(config))


def timm_swin() -> nn.Module:
    """Swin-B of timm. Raises ImportError without it."""
    import timm

    model: nn.Module = timm.create_model("swin_base_patch4_window7_224", num_classes=100)
    return model


def transformers_attention() -> nn.Module:
    """One window attention of transformers."""
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinAttention

    return FirstOf(SwinAttention(SwinConfig(), DIM, HEADS, 7))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    METHOD: gated_swinrmt_retention,
    "Gated-SwinRMT-SWAT": gated_swinrmt_swat,
    "RMT": rmt_baseline,
    "Swin-B, paperworks": partial(SwinClassifier, 100, **SWIN_B),
    "Swin-B, transformers": transformers_swin,
    "Swin-B, timm": timm_swin,
}
ATTENTIONS: Mapping[str, Callable[[], nn.Module]] = {
    METHOD: partial(GatedRetention, DIM, HEADS, (7, 7)),
    "Gated-SwinRMT-SWAT": partial(GatedRetention, DIM, HEADS, (7, 7), "swat"),
    "window attention, paperworks": partial(WindowAttention, DIM, HEADS, (7, 7)),
    "window attention, transformers": transformers_attention,
}


def prepared(build: Callable[[], nn.Module], *inputs: Tensor, backward: bool) -> Call:
    """The forward pass in eval mode without a graph, or with the gradients of all parameters in training mode."""
    model = build().train(backward)
    wanted = [p for p in model.parameters() if p.requires_grad]

    def call() -> object:
        if not backward:
            with torch.no_grad():
                return model(*inputs)
        return torch.autograd.grad(model(*inputs).sum(), wanted, allow_unused=True)

    return call


def network_floor() -> str:
    """Multiply-adds and parameters of the method."""
    with torch.device("meta"):
        model = gated_swinrmt_retention().eval()
        macs = count_multiply_adds(model, torch.empty(1, 3, IMAGE, IMAGE)).macs
    return f"{macs / 1e9:.1f} G multiply-adds an image, {count_parameters(model) / 1e6:.1f} M parameters read"


def cases() -> list[Case]:
    """Networks on one and on two images, attention on the first stage's windows of one image, float32."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, IMAGE, IMAGE, generator=generator)
    windows = torch.randn(WINDOWS, TOKENS, DIM, generator=generator)
    allowed = shift_mask((56, 56), (7, 7), (3, 3))
    assert allowed is not None
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, -100.0)
    found = []
    for backward in (False, True):
        kind = "forward and backward" if backward else "forward"
        batch = images if backward else images[:1]
        found.append(
            Case(
                f"{kind}, {len(batch)} x 3 x {IMAGE} x {IMAGE}",
                METHOD,
                {name: partial(prepared, build, batch, backward=backward) for name, build in NETWORKS.items()},
                floor=network_floor(),
            )
        )
        found.append(
            Case(
                f"attention, {kind}, {WINDOWS} shifted windows of {TOKENS} tokens, {DIM} channels",
                METHOD,
                {
                    name: partial(prepared, build, windows, mask, backward=backward)
                    for name, build in ATTENTIONS.items()
                },
                floor=f"{4 * WINDOWS * TOKENS * DIM * DIM / 1e9:.2f} G multiply-adds of four projections (five where "
                "a gate is)",
            )
        )
    return found
