"""Training steps of Swin-T to be timed: sharpness-aware minimisation beside its base optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from paperworks.lab.trial import Trial
from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.swin_se_fer import SAM, add_squeeze_excite

IMAGE = 64


def training_step(trial: Trial, sam: bool = True, extra: bool = False) -> Callable[[], object]:
    """One step of SGD with momentum on two images of Swin-T with squeeze-and-excitation; a small Swin in smoke.

    Args:
        sam: sharpness-aware minimisation around it.
        extra: one more forward and backward pass.
    """
    small = trial.tier == "smoke"
    size = {"dim": 24, "depths": (2, 2), "num_heads": (2, 4)} if small else {}
    with trial.global_generators("weights"):
        model = add_squeeze_excite(SwinClassifier(8, **size)).to(trial.device)
    images = torch.randn(2, 3, IMAGE, IMAGE, generator=trial.generator("images")).to(trial.device)
    target = torch.tensor([0, 1], device=trial.device)
    options: dict[str, Any] = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4}
    optimizer: torch.optim.Optimizer = (
        SAM(model.parameters(), torch.optim.SGD, **options) if sam else torch.optim.SGD(model.parameters(), **options)
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), target)
        loss.backward()
        return loss

    def call() -> object:
        if extra:
            closure()
        return optimizer.step(closure)  # type: ignore[arg-type]

    return call
