"""Calls to time: an MLP block of a ViT-Tiny, (32, 197, 192) -> 768 -> 192, with and without gates. No gradients.

At the smoke tier the batch is 4 instead of 32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.efficiency.dopamine import GatedActivation, TauGateModel, add_taugate
from paperworks.efficiency.dopamine.fused import formula
from paperworks.lab.trial import Trial

Call = Callable[[], object]
SHAPE = (32, 197, 192)
WIDTH = 768
SMOKE_BATCH = 4


def _shape(trial: Trial) -> tuple[int, int, int]:
    batch = SMOKE_BATCH if trial.tier == "smoke" else SHAPE[0]
    return batch, SHAPE[1], SHAPE[2]


def mlp_block(trial: Trial) -> tuple[nn.Sequential, Tensor]:
    """The block with its default weights and an input, both by the trial's seed."""
    with trial.global_generators("block"):
        block = nn.Sequential(nn.Linear(SHAPE[2], WIDTH), nn.GELU(), nn.Linear(WIDTH, SHAPE[2])).eval()
    x = torch.randn(_shape(trial), generator=trial.generator("input"))
    return block.to(trial.device), x.to(trial.device)


def _call(module: Callable[..., Any], x: Tensor) -> Call:
    def call() -> object:
        with torch.no_grad():
            return module(x)

    return call


def _learned(trial: Trial, adapted: TauGateModel) -> TauGateModel:
    """Thresholds and gains that are not all alike."""
    generator = trial.generator("modes")
    with torch.no_grad():
        for parameter in adapted.trainable_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise.to(parameter.device))
    return adapted


def base(trial: Trial) -> Call:
    """The block as it is."""
    return _call(*mlp_block(trial))


def taugate(trial: Trial, hard: bool = False) -> Call:
    """The block with soft or hard gates."""
    block, x = mlp_block(trial)
    adapted = _learned(trial, add_taugate(block))
    adapted.harden(hard)
    return _call(adapted.model, x)


class _SeparateOperations(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.tau, self.gain = torch.full((width,), -1.0), torch.ones(width)

    def forward(self, z: Tensor) -> Tensor:
        return formula(z, nn.functional.gelu(z), self.tau.to(z.device), self.gain.to(z.device), 4.0, False, -1)


def separate_operations(trial: Trial) -> Call:
    """The block with the gate written in tensor operations, each a pass over the hidden units."""
    block, x = mlp_block(trial)
    block[1] = _SeparateOperations(WIDTH)
    return _call(block, x)


def ia3(trial: Trial) -> Call:
    """The block with peft's IA3 at the input of its second layer."""
    from paperworks.papers.protocols.adaptation_arms import ia3 as with_ia3

    block, x = mlp_block(trial)
    return _call(with_ia3(block).network.eval(), x)


def _bank(trial: Trial) -> tuple[GatedActivation, Tensor]:
    batch, positions, _ = _shape(trial)
    gate = GatedActivation(nn.GELU(), WIDTH, [str(i) for i in range(batch)], device=trial.device).eval()
    generator = trial.generator("modes")
    with torch.no_grad():
        for parameter in (gate.tau, gate.gain):
            parameter.add_((0.1 * torch.randn(parameter.shape, generator=generator)).to(trial.device))
    z = torch.randn(batch, positions, WIDTH, generator=trial.generator("input"))
    return gate, z.to(trial.device)


def one_mode(trial: Trial) -> Call:
    """Gate and activation alone, one mode for the whole batch."""
    gate, z = _bank(trial)
    gate.set_mode("0")
    return _call(gate, z)


def mixed_modes(trial: Trial) -> Call:
    """Gate and activation alone, every sample in a mode of its own."""
    gate, z = _bank(trial)
    gate.set_mode(torch.arange(len(z), device=trial.device))
    return _call(gate, z)


def mixed_one_by_one(trial: Trial) -> Call:
    """The same, as one runs it with adapters that cannot be mixed: the mode is switched and the batch run each time."""
    gate, z = _bank(trial)

    def each(z: Tensor) -> Tensor:
        rows = []
        for i in range(len(z)):
            gate.set_mode(str(i))
            rows.append(gate(z)[i : i + 1])
        return torch.cat(rows)

    return _call(each, z)


def compact(trial: Trial, closed: float = 0.5) -> Call:
    """The compact form of the block with hard gates, a share of whose units never opens."""
    block, x = mlp_block(trial)
    adapted = _learned(trial, add_taugate(block))
    gate = next(iter(adapted.gates.values()))
    order = torch.randperm(WIDTH, generator=trial.generator("closed"))
    with torch.no_grad():
        gate.tau[0, order[: round(closed * WIDTH)]] = 1e3
    return _call(copy.deepcopy(adapted).compact([x[:2]]), x)
