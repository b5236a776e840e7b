"""TauGate beside LoRA, IA3 and bias tuning: an MLP block forward and in training, modes mixed in a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from paperworks.efficiency.dopamine import GatedActivation, TauGate
from paperworks.lab.benchmark import Case
from paperworks.lab.trial import Trial
from paperworks.papers.protocols import adaptation_arms as arms
from paperworks.papers.protocols import adaptation_calls as calls

METHOD = "TauGate"
Call = Callable[[], object]
BLOCK = torch.Size(calls.SHAPE).numel()
HIDDEN = BLOCK // calls.SHAPE[2] * calls.WIDTH
FLOPS = 2 * 2 * BLOCK * calls.WIDTH


def compiled() -> Call:
    """The gated block under torch.compile. Raises ImportError where nothing can compile it."""
    block, x = calls.mlp_block(Trial(tier="desk"))
    adapted = arms.taugate(block).network
    adapted.compile()
    try:
        with torch.no_grad():
            adapted(x)
    except Exception as error:  # Dynamo, Inductor and a missing C++ compiler each have an exception of their own
        raise ImportError(f"torch.compile does not work here: {type(error).__name__}") from error

    def call() -> object:
        with torch.no_grad():
            return adapted(x)

    return call


def lora() -> Call:
    """The block with peft's LoRA of rank 8 on both layers, not merged."""
    block, x = calls.mlp_block(Trial(tier="desk"))
    network = arms.lora(block).network.eval()

    def call() -> object:
        with torch.no_grad():
            return network(x)

    return call


FORWARD: Mapping[str, Callable[[], Call]] = {
    METHOD: partial(calls.taugate, Trial(tier="desk")),
    "base": partial(calls.base, Trial(tier="desk")),
    "TauGate, hard": partial(calls.taugate, Trial(tier="desk"), hard=True),
    "TauGate, separate operations": partial(calls.separate_operations, Trial(tier="desk")),
    "TauGate, torch.compile": compiled,
    "peft IA3": partial(calls.ia3, Trial(tier="desk")),
    "peft LoRA, r = 8": lora,
}


def step(adapt: Callable[[nn.Module], arms.Adaptation]) -> Call:
    """Forward, backward and Adam's update of one training step."""
    block, x = calls.mlp_block(Trial(tier="desk"))
    adapted = adapt(nn.Sequential(nn.Linear(calls.SHAPE[2], calls.SHAPE[2]), *block))
    adapted.network.train()
    optimizer = torch.optim.Adam(adapted.trained, lr=1e-3)

    def call() -> object:
        optimizer.zero_grad()
        loss = adapted.network(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return call


STEP: Mapping[str, Callable[[], Call]] = {
    METHOD: partial(step, arms.taugate),
    "peft IA3": partial(step, arms.ia3),
    "peft LoRA, r = 8": partial(step, arms.lora),
    "bias tuning": partial(step, arms.bitfit),
}


def gate_alone(build: Callable[[], nn.Module], backward: bool) -> Call:
    """The activation with its gate on the block's hidden units, without the linear layers."""
    module = build()
    z = torch.randn(*calls.SHAPE[:2], calls.WIDTH, generator=torch.Generator().manual_seed(0))
    z.requires_grad_(backward)
    gradient = torch.ones_like(z)
    wanted = [z, *module.parameters()] if backward else []

    def call() -> object:
        if backward:
            return torch.autograd.grad(module(z), wanted, gradient)
        with torch.no_grad():
            return module(z)

    return call


class Separate(nn.Module):
    """The gated GELU in separate operations."""

    def __init__(self) -> None:
        super().__init__()
        gate = TauGate(calls.WIDTH)
        self.tau, self.gain = copy.deepcopy(gate.tau), copy.deepcopy(gate.gain)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.gain * nn.functional.gelu(z) * torch.sigmoid(4.0 * (z - self.tau))


GATES: Mapping[str, Callable[[], nn.Module]] = {
    METHOD: partial(GatedActivation, nn.GELU(), calls.WIDTH),
    "separate operations": Separate,
    "nn.GELU alone": nn.GELU,
}


def cases() -> list[Case]:
    """Forward and training step of the block, the gate alone, 32 modes in one batch, and a compact block."""
    floating = f"{FLOPS / 1e9:.3g} GFLOP in the two layers"
    hidden = 4 * HIDDEN
    found = [
        Case("forward of an MLP block, 32x197x192 to 768", METHOD, FORWARD, floor=floating),
        Case("training step of the block behind one more layer", METHOD, STEP, floor=f"twice {floating}"),
    ]
    for name, backward, tensors in (("forward", False, 2), ("forward and backward", True, 5)):
        contenders = {label: partial(gate_alone, build, backward) for label, build in GATES.items()}
        floor = f"{tensors} tensors of {hidden / 2**20:.3g} MiB"
        found.append(
            Case(f"GELU and gate alone, {name}", METHOD, contenders, floor=floor, floor_bytes=tensors * hidden)
        )
    mixed = {
        "32 modes in one batch": partial(calls.mixed_modes, Trial(tier="desk")),
        "one mode": partial(calls.one_mode, Trial(tier="desk")),
        "mode after mode": partial(calls.mixed_one_by_one, Trial(tier="desk")),
    }
    found.append(
        Case("GELU and gate, 32 modes", "32 modes in one batch", mixed, "read z, write h", floor_bytes=2 * hidden)
    )
    closed = {
        f"{share:.0%} closed": partial(calls.compact, Trial(tier="desk"), closed=share)
        for share in (0.5, 0.0, 0.25, 0.75, 0.9)
    }
    closed["hard gates, not compact"] = partial(calls.taugate, Trial(tier="desk"), hard=True)
    found.append(Case("compact block", "50% closed", closed, floor=f"the open share of {floating}"))
    return found
