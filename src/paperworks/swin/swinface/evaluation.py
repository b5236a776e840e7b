"""Scores by task and by group of people, calibration by task, and what each task takes from the levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.swin.swinface.losses import IGNORED, epsilon_error
from paperworks.swin.swinface.network import SwinFace

__all__ = [
    "GateUse", "calibration_error", "fit_temperatures", "gate_report", "predict", "subgroup_scores", "task_scores",
]  # fmt: skip

AGE_GROUPS = ((0, 18), (18, 30), (30, 45), (45, 60), (60, 200))
Outputs = Mapping[str, Tensor]


@torch.no_grad()
def predict(model: SwinFace, images: Iterable[Tensor], tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Outputs of batches of images, joined, on the CPU, in eval mode; the model's mode is put back."""
    was, device = model.training, model.norm.weight.device
    model.eval()
    try:
        parts = [{k: v.float().cpu() for k, v in model(x.to(device), tasks).items()} for x in images]
    finally:
        model.train(was)
    if not parts:
        raise ValueError("images: got no batch, wanted one or more")
    return {task: torch.cat([part[task] for part in parts]) for task in parts[0]}


def task_scores(outputs: Outputs, targets: Outputs, temperatures: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Scores of every task that has outputs and targets, over the labels that are known.

    Args:
        outputs: by task, as of `SwinFace`.
        targets: classes, -1 unknown; ``"age"`` in years, NaN unknown; ``"age_std"``, how far people's guesses spread,
            makes CLAP's error. Others are passed over.
        temperatures: by task, of `fit_temperatures`; for the calibration error alone.

    Returns by task its ``n``, and ``accuracy``, ``balanced`` (mean over classes that occur), ``calibration`` or, of the
    age, ``mae`` and ``epsilon``.
    """
    found: dict[str, Any] = {}
    for task in (task for task in outputs if task in targets and task != "recognition"):
        out, target = outputs[task], targets[task]
        if len(out) != len(target):
            raise ValueError(f"targets: got {len(target)} of {task!r} for {len(out)} outputs, wanted one each")
        if task == "age":
            found[task] = _age_scores(out.reshape(-1), target.reshape(-1), targets.get("age_std"))
            continue
        known = target != IGNORED
        out, target = out[known], target[known]
        if not len(target):
            continue
        right = (out.argmax(1) == target).double()
        classes = target.unique()
        found[task] = {
            "n": len(target),
            "accuracy": float(right.mean()),
            "balanced": float(torch.stack([right[target == k].mean() for k in classes]).mean()),
            "calibration": calibration_error(out / (temperatures or {}).get(task, 1.0), target),
        }
    return found


def _age_scores(out: Tensor, target: Tensor, std: Tensor | None) -> dict[str, float]:
    known = ~target.isnan()
    if not bool(known.any()):
        return {"n": 0}
    scores = {"n": int(known.sum()), "mae": float((out[known] - target[known]).abs().mean())}
    if std is not None and bool((rated := known & ~std.isnan()).any()):
        scores["epsilon"] = epsilon_error(out[rated], target[rated], std[rated])
    return scores


def age_group(age: float) -> str:
    """Name of the group of an age."""
    low, high = next(((a, b) for a, b in AGE_GROUPS if a <= age < b), AGE_GROUPS[-1])
    return f"{low} to {high - 1}" if high < 200 else f"{low} and more"


def subgroup_scores(
    outputs: Outputs, targets: Outputs, by: Sequence[str] = ("gender", "age")
) -> dict[str, dict[str, Any]]:
    """`task_scores` of each group of people: who differs from the whole, and by how much.

    Args:
        outputs, targets: see there.
        by: tasks of `targets` whose values make the groups: classes, ages in `AGE_GROUPS`. Faces without one are left
            out of its groups.

    Returns by ``"task=value"`` the scores.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in by:
        if task not in targets:
            raise ValueError(f"by: got {task!r}, wanted some of {', '.join(targets)}")
        values = targets[task].reshape(-1)
        if task == "age":
            names = ["" if v != v else age_group(v) for v in values.tolist()]
        else:
            names = ["" if v == IGNORED else str(int(v)) for v in values.tolist()]
        for name in sorted(set(names) - {""}):
            rows = torch.tensor([n == name for n in names])
            found[f"{task}={name}"] = task_scores(
                {k: v[rows] for k, v in outputs.items()}, {k: v[rows] for k, v in targets.items()}
            )
    return found


def calibration_error(logits: Tensor, target: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean over faces of |accuracy - confidence| of the bin their confidence is in."""
    if logits.dim() != 2 or target.shape != logits.shape[:1] or not len(target):
        got = f"{tuple(logits.shape)} and {tuple(target.shape)}"
        raise ValueError(f"logits, target: got the shapes {got}, wanted (N, classes) and (N,), N 1 or more")
    confidence, said = logits.double().softmax(1).max(1)
    right, place = (said == target).double(), (confidence * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins, dtype=torch.double).index_add_(0, place, right - confidence)
    return float(gaps.abs().sum() / len(target))


def fit_temperatures(outputs: Outputs, targets: Outputs, steps: int = 40) -> dict[str, float]:
    """By task of classes, the temperature T > 0 whose softmax(logits / T) has the least cross-entropy.

    By bisection, in float64, between 0.01 and 100. Give it faces that were not trained on.
    """
    found: dict[str, float] = {}
    for task in (task for task in outputs if task in targets and task not in ("age", "recognition")):
        known = targets[task] != IGNORED
        logits, target = outputs[task][known].detach().double(), targets[task][known]
        if not len(target):
            continue
        low, high = torch.tensor(-4.60517).double(), torch.tensor(4.60517).double()
        for _ in range(steps):  # cross-entropy is convex in 1 / T, so its slope in log T changes sign once
            middle = (low + high) / 2
            inverse = (-middle).exp().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(logits * inverse, target), inverse)
            low, high = (low, middle) if slope < 0 else (middle, high)
        found[task] = float(((low + high) / 2).exp())
    return found


@dataclass(frozen=True)
class GateUse:
    """What a group of tasks takes.

    Attributes:
        levels: share of the mean gate of each level, the finest first; they sum to 1.
        channels: (level, channel in the level's part, mean gate) of the most open channels.
        spread: standard deviation over images of a channel's gate, averaged over channels.
    """

    levels: tuple[float, ...]
    channels: tuple[tuple[int, int, float], ...]
    spread: float


@torch.no_grad()
def gate_report(model: SwinFace, images: Tensor, top: int = 5) -> dict[str, GateUse]:
    """By group of tasks, how its gate weighs levels and channels on `images` (B, 3, H, W), in eval mode."""
    was = model.training
    model.eval()
    try:
        gates = model.gates(images)
    finally:
        model.train(was)
    found = {}
    for group, gate in gates.items():
        widths = next(bank.mlca.widths for bank in model._banks() if group in [g.name for g in bank.groups])
        mean = gate.double().mean(0)
        parts = mean.split(list(widths))
        by_level = torch.stack([part.mean() for part in parts])
        where = [(level, i, float(v)) for level, part in enumerate(parts) for i, v in enumerate(part)]
        most = sorted(where, key=lambda at: -at[2])[:top]
        spread = float(gate.double().std(0, correction=0).mean())
        found[group] = GateUse(tuple((by_level / by_level.sum()).tolist()), tuple(most), spread)
    return found
