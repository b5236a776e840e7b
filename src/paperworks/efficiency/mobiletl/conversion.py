"""Rewrite the last inverted residual blocks of a network for training with little memory, in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from paperworks.efficiency.mobiletl.activation import (
    SignedActivation,
    SignedHardswish,
    SignedReLU,
    SignedReLU6,
    SignedSiLU,
    check_rule,
)
from paperworks.efficiency.mobiletl.freezing import Scope, freeze, top_blocks, unfreeze
from paperworks.efficiency.mobiletl.norm import ShiftOnlyNorm2d, checked_norm
from paperworks.measure.stored_activations import MemoryReport, stored_activations
from paperworks.surgery.inverted_residuals import InvertedResidual, activation_kind

__all__ = ["MobileTL", "mobiletl"]

_SIGNED: dict[str, type[SignedActivation]] = {c.kind: c for c in (SignedReLU, SignedReLU6, SignedHardswish, SignedSiLU)}


@dataclass(frozen=True)
class _Site:
    """A module that was replaced: where it stood and what it was."""

    name: str
    original: nn.Module


def mobiletl(
    model: nn.Module,
    blocks: int = 5,
    *,
    backward: str = "sign",
    train_head: bool = False,
    pack_bits: bool = True,
) -> MobileTL:
    """Make the last `blocks` inverted residual blocks of `model` cheap to train, and freeze what is below, in place.

    In those blocks the norms at the wide channels keep their statistics and scale and train their shift, the
    activations behind them keep a bit a value, and the last norm trains in full. Convolutions, squeeze-excite and the
    layers after the head (the classifier) train as before. Everything else has no gradient and stays in eval mode,
    whatever `model.train()` is called; an input without gradient then builds no graph there.

    Args:
        model: a timm, torchvision, transformers or MONAI network, or any module that holds inverted residual blocks
            (see `paperworks.surgery.inverted_residuals`). Without a trunk or a classifier the blocks alone train.
        blocks: how many, counted from the last.
        backward: slope of the activations: "sign" (the paper's), "exact" (ReLU types in one bit; hard-swish and SiLU
            keep their input) or "two_bit" (hard-swish and SiLU in two bits).
        train_head: train the convolution and norm between the last block and the pooling too.
        pack_bits: eight values a byte; False keeps one byte a value.

    Returns:
        A handle; `unwrap` makes the model plain again. The keys of the state dict of the norms change until then.

    Raises:
        TypeError: `model` is no `nn.Module`.
        ValueError: no such block; `blocks` below 1 or above their number; a norm without scale, shift or running
            statistics; an activation of another kind; an unknown `backward`; a model that is converted already. The
            model is unchanged then.
    """
    check_rule("relu", backward)
    scope = top_blocks(model, blocks, train_head=train_head)
    replacements = [r for block in scope.blocks for r in _replacements(model, block, backward, pack_bits)]
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    handle = MobileTL(model, scope, [_Site(name, old) for name, old, _ in replacements], flags)
    for name, _, new in replacements:
        _put(model, name, new)
    freeze(model, scope)
    return handle


class MobileTL:
    """A model whose last blocks were converted.

    Attributes:
        model: the model given to `mobiletl`.
        block_names: qualified names of the converted blocks.
        trained_names: those of all that trains: the blocks and the layers after the head.
        frozen_names: the largest modules that stand still.
    """

    def __init__(self, model: nn.Module, scope: Scope, sites: list[_Site], flags: dict[str, bool]) -> None:
        self.model = model
        self.block_names = [block.name for block in scope.blocks]
        self.trained_names = scope.trained
        self.frozen_names = scope.frozen
        self._sites, self._flags = sites, flags

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that train."""
        return (p for p in self.model.parameters() if p.requires_grad)

    def report(self, input_size: int, batch: int) -> MemoryReport:
        """Bytes that a training step keeps for images (batch, channels, input_size, input_size), module by module.

        Measured by one forward pass in train mode on zeros; modes and running statistics are as before afterwards.
        """
        return training_report(self.model, input_size, batch)

    def unwrap(self) -> nn.Module:
        """The model with its own layers again, the trained shifts in them and the first keys in its state dict.

        Gradients are wanted of the parameters of which they were before. A second call changes nothing.
        """
        for site in reversed(self._sites):
            now = self.model.get_submodule(site.name)
            if isinstance(now, ShiftOnlyNorm2d):
                now.write_to(site.original)
            _put(self.model, site.name, site.original)
        unfreeze(self.model, self.frozen_names)
        if self._sites:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(self._flags[name])
        self._sites = []
        return self.model


def training_report(model: nn.Module, input_size: int, batch: int) -> MemoryReport:
    """See `MobileTL.report`; of any model."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"model: no Conv2d in {type(model).__name__}, so the channels of its input are unknown")
    images = torch.zeros(
        batch, first.in_channels, input_size, input_size, device=first.weight.device, dtype=first.weight.dtype
    )
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        return stored_activations(model.train(), images)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, training in modes:
            module.training = training


def _replacements(
    model: nn.Module, block: InvertedResidual, backward: str, packed: bool
) -> list[tuple[str, nn.Module, nn.Module]]:
    """(name, old, new) of the norms and activations of a block. Raises ValueError before anything is changed."""
    checked_norm(model.get_submodule(block.project.norm), block.project.norm)
    found: list[tuple[str, nn.Module, nn.Module]] = []
    for stage in block.inner:
        norm = model.get_submodule(stage.norm)
        if isinstance(norm, ShiftOnlyNorm2d):
            raise ValueError(f"model: block {block.name!r} is converted already; unwrap it first")
        checked_norm(norm, stage.norm)
        made = ShiftOnlyNorm2d.from_norm(norm)
        if stage.activation is not None:  # norm and activation become one pass
            act = model.get_submodule(stage.activation)
            made.act = _signed(act, stage.activation, backward, packed)
            found.append((stage.activation, act, nn.Identity()))
        elif made.act is not None:
            made.act = _signed(made.act, f"{stage.norm}.act", backward, packed)
        found.append((stage.norm, norm, made))
    if block.shared_activation is not None:
        act = model.get_submodule(block.shared_activation)
        found.append((block.shared_activation, act, _signed(act, block.shared_activation, backward, packed)))
    return found


def _signed(act: nn.Module, name: str, backward: str, packed: bool) -> SignedActivation:
    kind = activation_kind(act)
    if kind is None:
        raise ValueError(f"{name}: got the activation {type(act).__name__}, want one of {', '.join(_SIGNED)}")
    return _SIGNED[kind](backward, pack_bits=packed)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    holder = model.get_submodule(parent)
    module.train(holder.training)
    holder._modules[key] = module  # keeps the order of the tree
