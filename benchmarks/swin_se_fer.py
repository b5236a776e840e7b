"""Sharpness-aware minimisation beside other ways to write it, and squeeze-and-excitation beside other libraries' block.

The first cases have the tensors and gradients of Swin-T and a base optimiser that does nothing: what is timed is what
a step costs beyond its two passes. The last one is a whole step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.lab.benchmark import Case
from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.swin_se_fer import SAM, SqueezeExcite, add_squeeze_excite

METHOD = "paperworks"
Call = Callable[[], object]


class Nothing(torch.optim.Optimizer):
    """A base optimiser without a step."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Leave the weights."""


class OneByOne:
    """Sharpness-aware minimisation in loops over tensors, as most people write it."""

    def __init__(self, parameters: list[Tensor], base: torch.optim.Optimizer, rho: float = 0.05) -> None:
        self.parameters, self.base, self.rho = parameters, base, rho
        self.old: list[Tensor] = []

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climb."""
        taken = [p for p in self.parameters if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in taken if p.grad is not None]).norm()
        scale = self.rho / (norm + 1e-12)
        self.old = [p.clone() for p in taken]
        for p in taken:
            assert p.grad is not None
            p.add_(p.grad * scale)
        if zero_grad:
            self.base.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Go back and step."""
        for p, old in zip([p for p in self.parameters if p.grad is not None], self.old, strict=True):
            p.copy_(old)
        self.base.step()
        if zero_grad:
            self.base.zero_grad()


def swin_t_weights() -> list[nn.Parameter]:
    """The 173 tensors of Swin-T with gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = list(SwinClassifier(8).parameters())
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    return parameters


def ours(adaptive: bool = False) -> Call:
    """`SAM`."""
    optimizer = SAM(swin_t_weights(), Nothing, 0.05, adaptive)
    return partial(both, optimizer)


def one_by_one() -> Call:
    """Loops over tensors."""
    parameters = swin_t_weights()
    return partial(both, OneByOne(list(parameters), Nothing(parameters)))


def pytorch_optimizer(adaptive: bool = False) -> Call:
    """That of pytorch-optimizer. Raises ImportError without it."""
    from pytorch_optimizer import SAM as Theirs  # type: ignore[import-not-found]

    return partial(both, Theirs(swin_t_weights(), Nothing, rho=0.05, adaptive=adaptive))


def both(optimizer: Any) -> None:
    """Climb and go back."""
    optimizer.first_step()
    optimizer.second_step()


def timm_squeeze(x: Tensor) -> Call:
    """That of timm, channels first. Raises ImportError without it."""
    from timm.layers import SEModule

    return partial(SEModule(x.shape[-1], rd_channels=x.shape[-1] // 16), x.movedim(-1, 1).contiguous())


def monai_squeeze(x: Tensor) -> Call:
    """That of MONAI, channels first. Raises ImportError without it."""
    from monai.networks.blocks import ChannelSELayer

    return partial(ChannelSELayer(2, x.shape[-1], r=16), x.movedim(-1, 1).contiguous())


def squeeze(x: Tensor) -> Call:
    """`SqueezeExcite`, channels last as a Swin's map is."""
    return partial(SqueezeExcite(x.shape[-1]), x)


def without_graph(prepare: Callable[[Tensor], Call], x: Tensor) -> Call:
    """The block's forward pass alone."""
    block = prepare(x)

    def call() -> object:
        with torch.no_grad():
            return block()

    return call


class Logits(nn.Module):
    """A network of transformers as a function from images to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes)."""
        return self.network(x).logits


def transformers_swin() -> nn.Module:
    """Swin-T of transformers with the block. Raises ImportError without it."""
    from transformers import SwinConfig, SwinForImageClassification

    return Logits(add_squeeze_excite(SwinForImageClassification(SwinConfig(num_labels=8))))


def whole_step(build: Callable[[], nn.Module], loops: bool) -> Call:
    """Two passes on two images of 224 pixels, the climb, the way back, and AdamW."""
    model = build()
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(2, 3, 224, 224, generator=generator), torch.tensor([0, 1])
    optimizer: Any
    if loops:
        optimizer = OneByOne(list(model.parameters()), torch.optim.AdamW(model.parameters(), lr=1e-5))
    else:
        optimizer = SAM(model.parameters(), torch.optim.AdamW, lr=1e-5)

    def call() -> object:
        F.cross_entropy(model(images), target).backward()
        optimizer.first_step(zero_grad=True)
        loss = F.cross_entropy(model(images), target)
        loss.backward()
        optimizer.second_step(zero_grad=True)
        return loss.detach()

    return call


def cases() -> list[Case]:
    """The climb and the way back, the block on the last map of eight images, and a step."""
    x = torch.randn(8, 7, 7, 768, generator=torch.Generator().manual_seed(0))
    weights = 4 * sum(p.numel() for p in SwinClassifier(8, device="meta").parameters())
    return [
        Case(
            "beyond the two passes, 173 tensors of Swin-T, float32",
            METHOD,
            {METHOD: ours, "one tensor after another": one_by_one, "pytorch-optimizer": pytorch_optimizer},
            floor="gradients read twice, weights read twice and written twice, the copy written and read",
            floor_bytes=8 * weights,
        ),
        Case(
            "beyond the two passes, adaptive",
            METHOD,
            {METHOD: partial(ours, True), "pytorch-optimizer": partial(pytorch_optimizer, True)},
            floor="as above, and the weights once more",
            floor_bytes=9 * weights,
        ),
        Case(
            "squeeze and excitation, 8 x 7 x 7 x 768, forward",
            METHOD,
            {
                METHOD: partial(without_graph, squeeze, x),
                "MONAI": partial(without_graph, monai_squeeze, x),
                "timm": partial(without_graph, timm_squeeze, x),
            },
            floor="the map read twice and written once",
            floor_bytes=3 * x.numel() * 4,
        ),
        Case(
            "a whole step, Swin-T, 2 x 3 x 224 x 224, AdamW",
            METHOD,
            {
                METHOD: partial(whole_step, lambda: add_squeeze_excite(SwinClassifier(8)), False),
                "transformers, one tensor after another": partial(whole_step, transformers_swin, True),
            },
            floor="54 G multiply-adds of two forward and backward passes on two images",
        ),
    ]
