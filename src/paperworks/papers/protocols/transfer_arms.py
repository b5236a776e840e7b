"""What of a network trains in transfer: functions that take a network and return it, ready to train."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from paperworks.efficiency.mobiletl import ShiftOnlyNorm2d, mobiletl
from paperworks.efficiency.mobiletl.freezing import freeze, top_blocks
from paperworks.surgery.inverted_residuals import find_inverted_residuals

__all__ = ["all_layers", "biases", "last_layer", "lite_residuals", "signed_blocks", "whole_blocks"]


def all_layers(model: nn.Module) -> nn.Module:
    """Fine-tuning of everything."""
    return model.requires_grad_(True)


def whole_blocks(model: nn.Module, blocks: int = 5) -> nn.Module:
    """Fine-tuning of the last blocks and the classifier: what MobileTL trains, with every norm and gradient whole."""
    freeze(model, top_blocks(model, blocks))
    return model


def signed_blocks(model: nn.Module, blocks: int = 5, backward: str = "sign") -> nn.Module:
    """MobileTL."""
    return mobiletl(model, blocks, backward=backward).model


def last_layer(model: nn.Module) -> nn.Module:
    """A linear probe: the last linear layer trains, the rest is a fixed function."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    model.requires_grad_(False)
    last.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            _put(model, module, ShiftOnlyNorm2d.from_norm(module).requires_grad_(False))
    return model


def biases(model: nn.Module, blocks: int = 5) -> nn.Module:
    """The shifts and biases of the last blocks and of the classifier, and all of the last linear layer.

    Every norm of those blocks has fixed statistics and scale; activations are exact and keep what they keep.
    """
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    scope = top_blocks(model, blocks)
    freeze(model, scope)
    for block in scope.blocks:
        for module in list(block.module.modules()):
            if isinstance(module, nn.BatchNorm2d):
                _put(model, module, ShiftOnlyNorm2d.from_norm(module))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.endswith("bias"))
    last.requires_grad_(True)
    return model


def lite_residuals(model: nn.Module, blocks: int = 5) -> nn.Module:
    """TinyTL: biases as above, and beside each of the blocks a small path at half the resolution that trains whole.

    The path is our reading of "TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning" (arXiv
    2007.11622): average pooling by 2, a 5x5 convolution in 2 groups, norm, ReLU, a 1x1 convolution and norm, resized to
    the block's output and added to it. Its last norm starts at scale 0, so the network starts as it was.
    """
    chosen = [block for _, block in find_inverted_residuals(model)][-blocks:]
    model = biases(model, blocks)
    for block in chosen:
        convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        _put(model, block, _WithLitePath(block, convolutions[0].in_channels, convolutions[-1].out_channels))
    return model


class _WithLitePath(nn.Module):
    def __init__(self, block: nn.Module, i: int, o: int) -> None:
        super().__init__()
        self.block = block
        self.path = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Conv2d(i, i, 5, padding=2, groups=2, bias=False),
            nn.BatchNorm2d(i),
            nn.ReLU(),
            nn.Conv2d(i, o, 1, bias=False),
            nn.BatchNorm2d(o),
        )
        nn.init.zeros_(self.path[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y + F.interpolate(self.path(x), y.shape[-2:], mode="bilinear", align_corners=False)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, key = name.rpartition(".")
    model.get_submodule(parent)._modules[key] = new
