"""Exact checks of sharpness-aware minimisation and of squeeze-and-excitation at the size of Swin-T."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.lab.trial import Trial
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.measure.parameters import count_parameters
from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.swin_se_fer import SAM, SqueezeExcite, add_squeeze_excite, build_fer_model, remove_squeeze_excite
from paperworks.swin.swin_se_fer.sam import EPS, climb_norm


def cost_of_squeeze(trial: Trial) -> dict[str, float]:
    """Parameters and multiply-adds of the model of the recipe, with the block and without, on shapes alone."""
    counts = []
    for squeezed in (True, False):
        with torch.device("meta"):
            model, x = build_fer_model(), torch.empty(1, 3, 224, 224)
        if not squeezed:
            remove_squeeze_excite(model)
        counts.append((count_parameters(model), count_multiply_adds(model, x).macs))
    (whole, macs), (plain, plain_macs) = counts
    return {
        "parameters of Swin-T at 8 classes": plain,
        "parameters added": whole - plain,
        "parameters added, %": 100 * (whole - plain) / plain,
        "G multiply-adds of Swin-T": plain_macs / 1e9,
        "multiply-adds added / those of Swin-T": (macs - plain_macs) / plain_macs,
    }


def _swin_t(trial: Trial) -> tuple[nn.Module, Tensor, Tensor]:
    with trial.global_generators("weights"):
        model = add_squeeze_excite(SwinClassifier(8))
    images = torch.randn(2, 3, 56, 56, generator=trial.generator("images"))
    return model, images, torch.tensor([0, 1])


def passes_of_a_step(trial: Trial) -> dict[str, float]:
    """Forward calls of Swin-T in four steps, over four."""
    found = {}
    for name, every in (("SAM", 1), ("SAM at every second step", 2), ("SGD", 0)):
        model, images, _ = _swin_t(trial)
        images = images[..., :28, :28]
        calls: list[int] = []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        optimizer: torch.optim.Optimizer = (
            SAM(model.parameters(), torch.optim.SGD, every=every, lr=1e-4)
            if every
            else torch.optim.SGD(model.parameters(), lr=1e-4)
        )

        def closure(model: nn.Module = model, images: Tensor = images, o: torch.optim.Optimizer = optimizer) -> Tensor:
            o.zero_grad()
            loss = F.cross_entropy(model(images), torch.tensor([0, 1]))
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)  # type: ignore[arg-type]
        found[f"passes a step, {name}"] = len(calls) / 4
    return found


def climb_of_swin(trial: Trial) -> dict[str, float]:
    """Length and direction of the climb over all of Swin-T, in three groups, summed in float64; and a quadratic."""
    model, images, target = _swin_t(trial)
    parameters = list(model.parameters())
    optimizer = SAM([{"params": parameters[i::3]} for i in range(3)], torch.optim.SGD, 0.05, lr=0.1)
    F.cross_entropy(model(images), target).backward()
    before = [p.detach().clone() for p in parameters]
    slopes = [p.grad.clone() for p in parameters if p.grad is not None]
    optimizer.first_step()
    along = square = slope = 0.0
    for p, old, g in zip(parameters, before, slopes, strict=True):
        move, wide = p.detach().double() - old.double(), g.double()
        along += float((move * wide).sum())
        square += float((move * move).sum())
        slope += float((wide * wide).sum())
    a = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    start = w.detach().clone()
    step = SAM([w], torch.optim.SGD, 0.3, lr=0.1)

    def closure() -> Tensor:
        step.zero_grad()
        loss = (a * w * w).sum() / 2
        loss.backward()
        return loss

    step.step(closure)
    expected = start - 0.1 * a * (start + 0.3 * a * start / (a * start).norm())
    return {
        "length / rho - 1": square**0.5 / 0.05 - 1,
        "1 - cosine with the gradient": 1 - along / (square * slope) ** 0.5,
        "quadratic: step - closed form": float((w.detach() - expected).abs().max()),
    }


def way_back(trial: Trial) -> dict[str, float]:
    """Weights of Swin-T after four steps at a learning rate of 0; beside them two other ways to go back.

    The last block is skipped in second passes, as drop path may do: what only the first pass reached has to come back.
    """
    model, images, target = _swin_t(trial)
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    optimizer = SAM(parameters, torch.optim.SGD, 0.05, lr=0.0)
    last = model.backbone.stages[-1].blocks[-1]  # type: ignore[union-attr, index]
    last.register_forward_hook(lambda _, given, out: given[0] if optimizer.climbed else out)
    subtracted = unreached = 0

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), target)
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    changed = sum(int((p.detach() != old).sum()) for p, old in zip(parameters, before, strict=True))
    closure()
    slopes = [p.grad.clone() for p in parameters if p.grad is not None]
    optimizer.first_step(zero_grad=True)
    F.cross_entropy(model(images), target).backward()
    with torch.no_grad():
        scale = 0.05 * float(1 / (climb_norm([*parameters], slopes) + EPS))
        for p, old, g in zip(parameters, before, slopes, strict=True):
            subtracted += int((p - g * scale != old).sum())
            unreached += p.grad is None and not torch.equal(p, old)
    optimizer.restore()
    return {
        "weights changed": changed,
        "weights changed, going back by subtraction": subtracted,
        "tensors left at w + e, going back where the second pass has a gradient": unreached,
    }


def before_or_after_the_mean(trial: Trial) -> dict[str, float]:
    """The block on the last map of Swin-T, then the mean, beside the mean and then the block."""
    with trial.global_generators("weights"):
        block = SqueezeExcite(768).double()
    x = torch.randn(4, 7, 7, 768, generator=trial.generator("map"), dtype=torch.float64)
    moved = x.flatten(1, 2)[:, torch.randperm(49, generator=trial.generator("places"))]
    with torch.no_grad():
        map_first = block(x).mean((1, 2))
        return {
            "largest difference": float((map_first - block(x.mean((1, 2)))).abs().max()),
            "largest change by moving the tokens": float((map_first - block(moved).mean(1)).abs().max()),
        }
