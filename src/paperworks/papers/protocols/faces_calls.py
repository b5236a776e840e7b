"""The eleven attention modules of SwinFace at their published size, to be timed: one after another, and in one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from paperworks.lab.trial import Trial
from paperworks.swin.swinface.branches import GroupedMLCA

IN_CHANNELS, WIDTH, GRID, BRANCHES = (192, 384, 768, 768), 512, 7, 11


def attention_call(trial: Trial, grouped: bool = True, batch: int = 1, threads: int = 1) -> Callable[[], object]:
    """Features of all groups from a pyramid, without gradients; a tenth of the channels in smoke.

    Args:
        grouped: one pass for all; otherwise module after module, in the published steps: the convolutions of its
            levels, the gate times the map, ReLU, maximum, batch norm.
        batch: faces.
        threads: of the call; the process has as many as before behind it.
    """
    small = trial.tier == "smoke"
    channels = tuple(c // 12 for c in IN_CHANNELS) if small else IN_CHANNELS
    with trial.global_generators("weights"):
        module = GroupedMLCA(BRANCHES, channels, 64 if small else WIDTH).eval().to(trial.device)
    generator = trial.generator("pyramid")
    x = torch.randn(batch, sum(channels), GRID, GRID, generator=generator).to(trial.device)
    branches = [module.branch(g) for g in range(BRANCHES)]

    def call() -> object:
        with torch.no_grad():
            return module(x)

    def loop() -> object:
        with torch.no_grad():
            found = []
            for branch in branches:
                maps = branch._joined(x)
                gated = F.relu(maps * branch._gate(maps)[:, :, None, None])
                found.append(branch.norm(F.adaptive_max_pool2d(gated, 1).flatten(1)))
            return torch.stack(found, 1)

    chosen = call if grouped else loop

    def on_threads() -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return chosen()
        finally:
            torch.set_num_threads(before)

    return on_threads
