"""The training loop of the bone protocol, and how what comes of it is scored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from paperworks.data.bones import KINDS, XrayToShape, simulate_bones
from paperworks.data.radiographs import biplanar_pair
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.learning_rates import warm_up_then_cosine
from paperworks.papers.protocols.training import batches, parameter_groups
from paperworks.swin.swin_x2s.losses import two_view_loss
from paperworks.swin.swin_x2s.reprojection import disagreement, silhouette_overlap
from paperworks.swin.swin_x2s.scores import chamfer_and_hd95, identification_rate, label_dice

UNSEEN = 45.0
"""An angle between the views, degrees."""
Example = tuple[Tensor, Tensor, Tensor]


def pictures(trial: Trial) -> dict[str, Tensor]:
    """Simulated volumes of one seed and their X-rays, for training and for scoring; made once for all arms."""
    settings = trial.settings
    shape, kind = (settings["size"], settings["size"], settings["height"]), settings["kind"]
    sizes = {"train": settings["train_size"], "test": settings["test_size"]}

    def make() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part, n in sizes.items():
            made = simulate_bones(n, shape, kind, trial.generator(f"{part} volumes"))
            cone: dict[str, Any] = {"detector_shape": (shape[0], shape[2]), "pixel_size": magnified(made.spacing[0])}
            a, b = biplanar_pair(made.ct, made.spacing, **cone)
            labels = made.labels if settings["labels"] == "each" else made.labels > 0
            found |= {f"{part} a": a, f"{part} b": b, f"{part} label": labels.to(torch.uint8)}
        return found

    return trial.stage("bones", make, kind=kind, labels=settings["labels"], shape=str(shape), **sizes)


def magnified(spacing: float) -> float:
    """Size of a pixel on which a voxel in the middle falls."""
    return spacing * 2000 / 1800


def _simulated(made: dict[str, Tensor], size: int, generator: torch.Generator) -> Iterator[Example]:
    while True:
        for index in batches(len(made["train a"]), size, generator):
            yield made["train a"][index], made["train b"][index], made["train label"][index].long()


def _read(cases: XrayToShape, size: int, generator: torch.Generator) -> Iterator[Example]:
    while True:
        for batch in DataLoader(cases, size, shuffle=True, generator=generator):
            yield batch["a"], batch["b"], batch["label"]


def _cases(trial: Trial, split: str, **options: Any) -> XrayToShape:
    settings = trial.settings
    size = (settings["size"], settings["size"], settings["height"])
    root = settings["data"].removeprefix("xray:")
    return XrayToShape(root, split, size, cache=settings["cache"] or None, **options)


def build(trial: Trial, arm: Arm, classes: int) -> nn.Module:
    """The arm's network for the trial's sizes."""
    settings, f = trial.settings, trial.settings["feature_size"]
    with trial.global_generators("weights"):
        model: nn.Module = arm.build(
            img_size=(settings["size"], settings["size"], settings["height"]),
            in_channels=1,
            out_channels=classes,
            feature_size=f,
            depths=(2, 2, settings["blocks"], 2),
            num_heads=tuple(max(1, f // 32) * 2**i for i in range(4)),
            drop_path_rate=settings["drop_path"],
        )
    return model.to(trial.device)


def fit(trial: Trial, model: nn.Module, examples: Iterator[Example]) -> list[float]:
    """Train; the loss of each step."""
    settings, steps, device = trial.settings, trial.settings["steps"], torch.device(trial.device)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings["weight_decay"]), lr=settings["lr"])
    schedule = warm_up_then_cosine(optimizer, steps, max(1, steps // 12))  # 20 of 250 epochs
    model.train()
    losses = []
    with trial.global_generators("training"):
        for step in range(steps):
            a, b, label = (t.to(device) for t in next(examples))
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                one, two = model(a, b)
            loss = two_view_loss(one, two, label, kl_weight=settings["kl_weight"])["total"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if step % 10 == 9:
                trial.progress(0.95 * (step + 1) / steps, f"step {step + 1}/{steps}, loss {losses[-1]:.3f}")
    return losses


def area_under_curve(values: Tensor, wrong: Tensor) -> float:
    """Chance that a wrong one has the larger value than a right one, ties counting half; 1/2 without either kind."""
    n, m = int(wrong.sum()), int((~wrong).sum())
    if not n or not m:
        return 0.5
    _, inverse, counts = torch.unique(values.double(), return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return float((ranks[inverse][wrong].sum() - n * (n + 1) / 2) / (n * m))


def score(
    logits: tuple[Tensor, Tensor], label: Tensor, spacing: tuple[float, float, float], classes: int
) -> tuple[dict[str, float], Tensor]:
    """The metrics of one volume from the logits (1, K, X, Y, Z) of both views, and what was found (X, Y, Z)."""
    found, apart = (logits[0] + logits[1]).argmax(1)[0].cpu(), disagreement(*(t.float() for t in logits))[0].cpu()
    bone, truth = found > 0, label > 0
    off, identified = identification_rate(found, label, spacing)
    near = bone | truth | (apart > 0.01)
    shadow = silhouette_overlap(
        bone[None], truth[None], spacing, UNSEEN, detector_shape=found.shape[1:], pixel_size=magnified(spacing[0])
    )
    overlap = label_dice(bone.long(), truth.long(), 2)
    return {
        "dice": float(label_dice(found, label, classes).nanmean()),
        "bone_dice": float(overlap),
        "identified": identified,
        "off": off,
        "hd95": chamfer_and_hd95(bone, truth, spacing)[1],
        "shadow": float(shadow),
        "disagreement_auc": area_under_curve(apart[near], (found != label)[near]),
    }, found


def seen(label: Tensor, axis: int) -> Tensor:
    """The first label met along an axis, 0 where there is none."""
    first = (label > 0).to(torch.uint8).argmax(axis, keepdim=True)
    return label.gather(axis, first).squeeze(axis)


def show(trial: Trial, a: Tensor, b: Tensor, label: Tensor, found: Tensor, apart: Tensor) -> None:
    """Keep one case as curves: the X-rays, and from both sides the labels, what was found, and disagreement."""
    trial.curve("width", [a.shape[-1]])
    for name, values in (
        ("a: X-ray", a),
        ("b: X-ray", b),
        ("a: truth", seen(label, 1)),
        ("b: truth", seen(label, 0)),
        ("a: found", seen(found, 1)),
        ("b: found", seen(found, 0)),
        ("a: disagreement", apart.amax(1)),
        ("b: disagreement", apart.amax(0)),
    ):
        trial.curve(name, values.flatten().tolist())


def _finite(values: list[float], largest: float) -> float:
    """The mean; what is nowhere counts as the size of the volume."""
    return sum(v if math.isfinite(v) else largest for v in values) / len(values)


@torch.no_grad()
def evaluate(
    trial: Trial, model: nn.Module, cases: Iterator[tuple[Example, tuple[float, float, float]]], classes: int
) -> dict[str, float]:
    """Means over the cases; the first one is kept as pictures."""
    model.eval()
    rows: list[dict[str, float]] = []
    largest = 0.0
    for (a, b, label), spacing in cases:
        logits = model(a.to(trial.device), b.to(trial.device))
        row, found = score(logits, label[0, 0], spacing, classes)
        if not rows:
            largest = math.hypot(*(n * s for n, s in zip(found.shape, spacing, strict=True)))
            apart = disagreement(*(t.float() for t in logits))[0].cpu()
            show(trial, a[0, 0], b[0, 0], label[0, 0], found, apart)
        rows.append(row)
    return {name: _finite([row[name] for row in rows], largest) for name in rows[0]}


def train_and_score(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.bones.bones`."""
    settings, order = trial.settings, trial.generator("batches")
    cases: Iterator[tuple[Example, tuple[float, float, float]]]
    if settings["data"] == "simulated":
        if settings["labels"] not in ("one", "each"):
            raise ValueError(f"labels: got {settings['labels']!r}, wanted 'one' or 'each'")
        made, classes = pictures(trial), len(KINDS[settings["kind"]]) + 1 if settings["labels"] == "each" else 2
        examples = _simulated(made, settings["batch_size"], order)
        unit = 320.0 / settings["height"]
        split = (made[f"test {part}"].split(1) for part in ("a", "b", "label"))
        cases = (((a, b, label.long()), (unit, unit, unit)) for a, b, label in zip(*split, strict=True))
    else:
        classes = settings["classes"]
        train = _cases(trial, "training", augment=True, generator=trial.generator("augmentation"))
        examples, test = _read(train, settings["batch_size"], order), _cases(trial, "test")
        items = (test[i] for i in range(len(test)))
        cases = (((i["a"][None], i["b"][None], i["label"][None]), i["spacing"]) for i in items)
    model = build(trial, arm, classes)
    trial.curve("loss", fit(trial, model, examples))
    found = evaluate(trial, model, cases, classes)
    return found | {"parameters": sum(p.numel() for p in model.parameters()) / 1e6}
