"""Where a trained network looks: integrated gradients on simulated runs, beside what was planted."""

from __future__ import annotations

import torch
from torch import Tensor

from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.fmri_arms import network
from paperworks.papers.protocols.fmri_arms import trained as train
from paperworks.papers.protocols.fmri_data import Task, batch_of, load_task
from paperworks.swin.swift import SwiFT, integrated_gradients

TOP = 0.01


def trained(trial: Trial, task: Task) -> SwiFT:
    """The arm of the method: SwiFT after its training."""
    return train(trial, task)[0]


def untrained(trial: Trial, task: Task) -> SwiFT:
    """The control: the same network before it."""
    with trial.global_generators("weights"):
        return network(task).to(trial.device)


def explain(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.fmri.attribution`."""
    settings, task = trial.settings, load_task(trial)
    if task.runs is None:
        raise ValueError(f"data: got {settings['data']!r}, wanted simulated data, where the regions are known")
    model: SwiFT = arm.build(trial, task)
    chosen = _first_clips(task, settings["maps"])
    images, _ = batch_of(task.test, chosen, trial.device)
    maps, gap = torch.zeros(images.shape[2:5], device=images.device), 0.0
    for i, image in enumerate(images.split(1)):
        found = integrated_gradients(model, image, steps=settings["ig_steps"], internal_batch=settings["ig_steps"])
        change = found.residual + found.flatten(1).sum(1)  # type: ignore[attr-defined]
        gap = max(gap, float((found.residual / change).abs()))  # type: ignore[attr-defined]
        maps += found[0, 0].square().mean(-1) / found.square().mean()
        trial.progress((i + 1) / len(images), f"map {i + 1}/{len(images)}")
    mean = maps.cpu() / len(images)
    _keep_slices(trial, task, mean)
    return {"enrichment": enrichment(mean, task.runs.region, task.runs.mask), "completeness_gap": gap}


def _first_clips(task: Task, n: int) -> list[int]:
    """The first clip of each of `n` test subjects."""
    first: dict[str, int] = {}
    for i, subject in enumerate(task.test.subjects):
        first.setdefault(subject, i)
    return list(first.values())[:n]


def enrichment(values: Tensor, region: Tensor, mask: Tensor) -> float:
    """Part of the top 1 % of the brain's voxels inside the region, over the region's part of the brain."""
    inside, score = region[mask], values[mask]
    top = score.topk(max(1, round(TOP * len(score)))).indices
    return float(inside[top].double().mean() / inside.double().mean())


def _keep_slices(trial: Trial, task: Task, values: Tensor) -> None:
    """The planes through the middle of the first and of the last planted voxels, flattened."""
    assert task.runs is not None
    depths = torch.nonzero(task.runs.region)[:, 2]
    for name, depth in (("first", int(depths.min()) + 1), ("second", int(depths.max()) - 1)):
        trial.curve(f"attribution, {name} plane", values[..., depth].flatten().tolist())
        trial.curve(f"planted, {name} plane", task.runs.region[..., depth].flatten().float().tolist())
        trial.curve(f"signal, {name} plane", task.runs.images[0, 0, ..., depth, 0].flatten().tolist())
