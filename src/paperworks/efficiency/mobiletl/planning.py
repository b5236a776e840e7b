"""How many blocks fit in a memory budget: the question that a device asks."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from paperworks.efficiency.mobiletl.conversion import MobileTL, mobiletl
from paperworks.measure.stored_activations import MemoryReport
from paperworks.surgery.inverted_residuals import find_inverted_residuals

__all__ = ["Plan", "plan"]

PREFERRED = ("exact", "two_bit", "sign")
"""Backward rules, the nearest to the exact gradient first."""


@dataclass(frozen=True)
class Plan:
    """What to call `mobiletl` with.

    Attributes:
        blocks: number of blocks.
        backward: rule of their activations.
        bytes: that a training step keeps for its backward pass.
        options: (blocks, backward, bytes) of everything that was looked at, few blocks first.
    """

    blocks: int
    backward: str
    bytes: int
    options: list[tuple[int, str, int]]


def plan(
    model: nn.Module,
    memory_budget_bytes: int,
    input_size: int,
    batch: int,
    *,
    train_head: bool = False,
) -> Plan:
    """The largest number of blocks whose stored activations fit, and for it the most exact backward rule that fits.

    Measured by one pass of a copy for each rule: what a block keeps does not depend on how many others train.

    Args:
        model: as for `mobiletl`.
        memory_budget_bytes: for the activations of a training step; weights, gradients and optimizer come on top.
        input_size: side of the images in pixels.
        batch: images a step.
        train_head: as for `mobiletl`.

    Raises:
        ValueError: no inverted residual block, or one block by the sign rule is too much already: the message says
            what it takes.
    """
    trial, n = copy.deepcopy(model), max(1, len(find_inverted_residuals(model)))
    bytes_by_rule = {}
    for backward in PREFERRED:
        handle = mobiletl(trial, n, backward=backward, train_head=train_head)
        bytes_by_rule[backward] = _bytes_by_blocks(handle, handle.report(input_size, batch))
        handle.unwrap()
    options = [(k, rule, bytes_by_rule[rule][k - 1]) for k in range(1, n + 1) for rule in PREFERRED]
    fitting = [option for option in options if option[2] <= memory_budget_bytes]
    if not fitting:
        least = min(bytes for _, _, bytes in options)
        raise ValueError(f"memory_budget_bytes: got {memory_budget_bytes:,}, want at least {least:,} for one block")
    most = max(blocks for blocks, _, _ in fitting)
    best = next(option for option in fitting if option[0] == most)
    return Plan(*best, options)


def _bytes_by_blocks(handle: MobileTL, report: MemoryReport) -> list[int]:
    """What is kept with the last 1, 2, ... of the blocks, from the rows of a pass with all of them."""
    own = [
        sum(bytes for row, bytes in report.rows if row == name or row.startswith(f"{name}."))
        for name in handle.block_names
    ]
    after = report.bytes - sum(own)
    return [after + sum(own[-k:]) for k in range(1, len(own) + 1)]
