"""What the exact claims about SwinFace compute."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paperworks.lab.trial import Trial
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.measure.parameters import count_parameters
from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.swinface import (
    FACE_TASK_GROUPS,
    MLCA,
    CosFaceHead,
    SwinFace,
    age_loss,
    cosface_logits,
)
from paperworks.swin.swinface.branches import GroupedMLCA

IN_CHANNELS, WIDTH, GRID, BRANCHES = (192, 384, 768, 768), 512, 7, len(FACE_TASK_GROUPS)
IDENTITIES = 85_742
UNUSED = 768 * 512 + 512
"""Parameters of the linear layer that the published backbone carries and never calls."""


def _published() -> tuple[SwinFace, Tensor]:
    """The network at its full size, without memory, and an image."""
    with torch.device("meta"):
        return SwinFace().eval(), torch.empty(1, 3, 112, 112)


def counts(trial: Trial) -> dict[str, float]:
    """Parameters by part, and outputs."""
    model, image = _published()
    bank = model._banks()[0]
    subnets = count_parameters(bank.subnet1) + count_parameters(bank.subnet2)
    outputs = model(image)
    return {
        "parameters": count_parameters(model),
        "with the unused layer of the published code": count_parameters(model) + UNUSED,
        "attention": count_parameters(bank.mlca),
        "subnets": subnets,
        "heads": count_parameters(bank.heads),
        "tasks besides identity": len(outputs) - 1,
        "numbers put out for them": sum(x.shape[1] for task, x in outputs.items() if task != "recognition"),
    }


def one_network_for_all(trial: Trial) -> dict[str, float]:
    """Beside a Swin-T for each of the eleven groups: at 112 pixels on patches of 2, as the shared one is."""
    model, image = _published()
    with torch.device("meta"):
        alone = SwinClassifier(2, patch=2).eval()
    counted = {name: count_multiply_adds(model, image, tasks=t).macs for name, t in _ASKED.items()}
    return {
        "M parameters": count_parameters(model) / 1e6,
        "M parameters of eleven Swin-T": BRANCHES * count_parameters(alone) / 1e6,
        "G multiply-adds": counted["all"] / 1e9,
        "G multiply-adds of eleven Swin-T": BRANCHES * count_multiply_adds(alone, image).macs / 1e9,
        "G multiply-adds of identity alone": counted["identity"] / 1e9,
        "G multiply-adds of expression alone": counted["expression"] / 1e9,
        "branches run for expression": _branches_run(counted["expression"] - counted["pyramid"]),
    }


_ASKED = {"all": None, "identity": ["recognition"], "expression": ["expression"], "pyramid": ["gender"]}


def _branches_run(difference: int) -> float:
    """Branches of an answer, from how it differs in multiply-adds from that of a group with one head of two."""
    heads = WIDTH * (7 + 2 - 2)
    return 1 + (difference - heads) / _branch_macs()


def _branch_macs() -> int:
    with torch.device("meta"):
        return count_multiply_adds(MLCA().eval(), torch.empty(1, sum(IN_CHANNELS), GRID, GRID)).macs + 2 * WIDTH * WIDTH


def attention_of_a_group(trial: Trial) -> dict[str, float]:
    """Widths and size of one module at the published size."""
    with torch.device("meta"):
        module = MLCA()
    names = [f"channels of level {i + 1}" for i in range(len(module.widths))]
    return {**dict(zip(names, module.widths, strict=True)), "parameters": count_parameters(module)}


def _module(trial: Trial, kind: type[nn.Module] | None = None, **options: object) -> nn.Module:
    """At the published size in float64, with statistics as after some training, in eval mode; by default an `MLCA`."""
    with trial.global_generators("weights"):
        module = (kind or MLCA)(**options).double()
        nn.init.normal_(module.get_parameter("norm.weight"), 1.0, 0.2)
        nn.init.normal_(module.get_parameter("norm.bias"), 0.0, 0.2)
        nn.init.normal_(module.get_buffer("norm.running_mean"), 0.5, 0.2)
        nn.init.uniform_(module.get_buffer("norm.running_var"), 0.1, 0.3)
    return module.eval()


def _pyramid(trial: Trial, batch: int = 2) -> Tensor:
    generator = trial.generator("pyramid")
    return torch.randn(batch, sum(IN_CHANNELS), GRID, GRID, generator=generator, dtype=torch.float64)


@torch.no_grad()
def gate_and_levels(trial: Trial) -> dict[str, float]:
    """Range of the gate, and how much of the features each level moves when it is zeroed."""
    module = _module(trial)
    assert isinstance(module, MLCA)
    x = _pyramid(trial)
    gate, features = module.gate(x), module(x)
    found = {"smallest gate": float(gate.min()), "largest gate": float(gate.max())}
    start = 0
    for level, channels in enumerate(IN_CHANNELS):
        silent = x.clone()
        silent[:, start : start + channels] = 0
        found[f"largest change without level {level + 1}"] = float((module(silent) - features).abs().max())
        start += channels
    return found


@torch.no_grad()
def gate_scales_what_was_pooled(trial: Trial) -> dict[str, float]:
    """The steps as published, on the map, beside the gate on what was pooled: in float32 and bfloat16, bit by bit."""
    module = _module(trial)
    assert isinstance(module, MLCA)
    found: dict[str, float] = {}
    for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        maps, gate = module._joined(_pyramid(trial)).to(kind), module.gate(_pyramid(trial)).to(kind)
        on_map = (maps * gate[:, :, None, None]).relu().amax((2, 3))
        on_pooled = gate * maps.amax((2, 3)).relu()
        found[f"numbers that differ, {name}"] = int((on_map != on_pooled).sum())
    x = module._joined(_pyramid(trial))
    gate = module._gate(x)
    steps = module.norm((x * gate[:, :, None, None]).relu().amax((2, 3)))
    found["module - published steps, largest"] = float((module(_pyramid(trial)) - steps).abs().max())
    return found


def grouped_is_the_loop(trial: Trial) -> dict[str, float]:
    """Eleven modules in one pass beside one after another, at the published size: values, gradients, statistics."""
    grouped = _module(trial, GroupedMLCA, branches=BRANCHES, in_channels=IN_CHANNELS, out_channels=WIDTH)
    assert isinstance(grouped, GroupedMLCA)
    branches = [grouped.branch(g) for g in range(BRANCHES)]
    x = _pyramid(trial)
    with torch.no_grad():
        loop = torch.stack([branch(x) for branch in branches], 1)
        value = (grouped(x) - loop).abs().max() / loop.abs().max()
        gates = (grouped.gate(x) - torch.stack([branch.gate(x) for branch in branches], 1)).abs().max()
    slopes = []
    for run in (grouped, lambda given: torch.stack([branch.train()(given) for branch in branches], 1)):
        given = x.clone().requires_grad_()
        grouped.train()
        weight = torch.randn(loop.shape, generator=trial.generator("weight"), dtype=x.dtype)
        slopes.append(torch.autograd.grad((run(given) * weight).sum(), given)[0])
    own = grouped.norm.running_var
    assert own is not None
    theirs = torch.cat([branch.get_buffer("norm.running_var") for branch in branches])
    return {
        "values, relative": float(value),
        "gates": float(gates),
        "gradients in training, relative": float((slopes[0] - slopes[1]).abs().max() / slopes[1].abs().max()),
        "running statistics": float((own - theirs).abs().max()),
    }


def age_loss_changes_its_shape(trial: Trial) -> dict[str, float]:
    """Against the closed forms at u = 0, 1/2 and 1 for errors from -60 to 60 years; the steepest slope at u = 1."""
    d = torch.linspace(-60, 60, 24_001, dtype=torch.float64)
    y = torch.full_like(d, 30.0)
    squares, clap = d**2 / 2, 1 - torch.exp(-(d**2) / 18)
    wanted = {0.0: squares, 0.5: squares / 2 + clap / 2, 1.0: clap}
    found = {}
    for u, values in wanted.items():
        found[f"u = {u:g}: largest difference of the mean"] = abs(float(age_loss(y + d, y, u)) - float(values.mean()))
    pred = (y + d).requires_grad_()
    (slope,) = torch.autograd.grad(age_loss(pred, y, 1.0) * len(d), pred)
    steepest = int(slope.abs().argmax())
    far = float(slope.abs()[d.abs() > 30].max())
    return found | {
        "u = 1: steepest slope": float(slope.abs().max()),
        "u = 1: its error in years": float(d[steepest].abs()),
        "u = 1: slope beyond 30 years": far,
        "exp(-1/2) / 3": math.exp(-0.5) / 3,
    }


def sampled_identities(trial: Trial) -> dict[str, float]:
    """CosFace on a sample of the published number of identities; and on all of a few, beside its formula."""
    head = CosFaceHead(8, IDENTITIES, 0.3)
    generator = trial.generator("identities")
    labels = torch.randint(0, IDENTITIES, (32,), generator=generator)
    embeddings = torch.randn(32, 8, generator=generator)
    with torch.no_grad():
        logits, columns = head(embeddings, labels, generator)
        own = nn.functional.cosine_similarity(embeddings, head.weight[labels])
        found = logits[torch.arange(32), columns]
        cos = torch.rand(4, 5, generator=generator) * 2 - 1
        kept = cos.clone()
        some = cosface_logits(cos, torch.tensor([0, 3, -1, 4]))
    plain = 64 * kept
    plain[[0, 1, 3], [0, 3, 4]] -= 64 * 0.4
    return {
        "identities a step": logits.shape[1],
        "own identities that are missing": int((columns < 0).sum()),
        "own logit - 64 (cos - 0.4), largest": float((found - 64 * (own - 0.4)).abs().max()),
        "formula, largest difference": float((some - plain).abs().max()),
        "cosines that were changed": int((cos != kept).sum()),
    }
