"""Which part of a network trains: its last blocks and what follows them; the trunk below stands still in eval mode."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from paperworks.surgery.inverted_residuals import InvertedResidual, inverted_residuals, is_norm, leaves

__all__ = ["Scope", "freeze", "top_blocks", "unfreeze"]

_POOL = re.compile("pool", re.IGNORECASE)


@dataclass(frozen=True)
class Scope:
    """A division of a network, by qualified names.

    Attributes:
        blocks: the blocks that train, first one first.
        classifier: the layers with parameters that train beside them: what comes after the pooling, and the head
            where it was asked for.
        frozen: the largest modules of which no part trains; layers without parameters that come after the blocks,
            such as dropout, belong to neither.
    """

    blocks: list[InvertedResidual]
    classifier: list[str]
    frozen: list[str]

    @property
    def trained(self) -> list[str]:
        """Names of the modules that train."""
        return [block.name for block in self.blocks] + self.classifier


def top_blocks(model: nn.Module, blocks: int, *, train_head: bool = False) -> Scope:
    """The last `blocks` inverted residual blocks of `model` and what trains with them.

    The order of the module tree counts as that of the forward pass. The head is the convolution and norm between the
    last block and the pooling (the first module with "pool" in its class name; without one, every convolution and
    norm after the last block).

    Raises:
        ValueError: no inverted residual block, or `blocks` is not between 1 and their number.
    """
    found = inverted_residuals(model)
    if not found:
        raise ValueError(
            f"model: no inverted residual block in {type(model).__name__}; looked for a module that holds a 1x1 "
            "convolution (or none, at expansion 1), a depthwise convolution, an optional squeeze-excite and a 1x1 "
            "convolution, each of the main ones followed by a norm, the last by no activation"
        )
    if isinstance(blocks, bool) or not isinstance(blocks, int) or not 1 <= blocks <= len(found):
        raise ValueError(f"blocks: got {blocks!r}, want a whole number from 1 to {len(found)}, the blocks of the model")
    chosen = found[-blocks:]
    parts = list(leaves("", model))
    inside = [i for i, (name, _) in enumerate(parts) if any(_is_in(name, block.name) for block in chosen)]
    pools = (i for i, (_, m) in enumerate(parts) if i > inside[-1] and _POOL.search(type(m).__name__))
    pool = next(pools, len(parts))
    frozen, classifier = [], []
    for i, (name, module) in enumerate(parts):
        is_head = inside[-1] < i < pool and (isinstance(module, nn.Conv2d) or is_norm(module))
        if i < inside[0] or (is_head and not train_head):
            frozen.append(name)
        elif i > inside[-1] and next(module.parameters(), None) is not None:
            classifier.append(name)
    still = {name for name, _ in parts[inside[0] :]} - set(frozen)
    return Scope(chosen, classifier, _largest(model, frozen, still))


def freeze(model: nn.Module, scope: Scope) -> None:
    """Take gradients from all that does not train and keep it in eval mode whatever `train()` is called."""
    trained = {id(p) for name in scope.trained for p in model.get_submodule(name).parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    for name in scope.frozen:
        module = model.get_submodule(name)
        module.train = _StaysInEval(module)  # type: ignore[method-assign]
        module.train()


def unfreeze(model: nn.Module, names: Iterable[str]) -> None:
    """Let `train()` reach the modules again."""
    for name in names:
        model.get_submodule(name).__dict__.pop("train", None)


class _StaysInEval:
    """In place of a module's `train`: an object of its own class, so that the module can still be copied and saved."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return nn.Module.train(self.module, False)


def _is_in(name: str, outer: str) -> bool:
    return outer == "" or name == outer or name.startswith(f"{outer}.")


def _largest(model: nn.Module, names: list[str], others: set[str]) -> list[str]:
    """The largest modules that hold some of `names` and none of `others`."""
    found: list[str] = []
    for name, _ in model.named_modules():
        if found and _is_in(name, found[-1]):
            continue
        if any(_is_in(n, name) for n in names) and not any(_is_in(n, name) for n in others):
            found.append(name)
    return found
