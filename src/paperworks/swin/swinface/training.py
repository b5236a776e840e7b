"""The recipe: batches that join data sets, groups of parameters, and the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.data.face_transforms import FaceTransform, RandAugment
from paperworks.swin.swinface.losses import CosFaceHead, TaskBatch, multitask_loss
from paperworks.swin.swinface.network import SwinFace
from paperworks.swin.swinface.tasks import RECOGNITION

__all__ = ["JointBatches", "Part", "fit_joint", "learning_rate", "training_groups", "training_transform"]

IDENTITY = "identity"
Batch = tuple[Tensor, dict[str, TaskBatch]]


def training_transform(
    part: str = "analysis", size: int = 112, *, generator: torch.Generator | None = None
) -> FaceTransform:
    """How the paper changes faces while training.

    Its settings also name a colour jitter of 0.4, which timm leaves out beside RandAugment. It erases with noise, up to
    a third of the area; `FaceTransform` with grey, up to a fifth.

    Args:
        part: ``"analysis"``: mirrored, RandAugment, an erased rectangle in one face of four; ``"recognition"``:
            mirrored only.
        size: side in pixels.
        generator: source of the changes; by default torch's global one.
    """
    if part not in ("analysis", RECOGNITION):
        raise ValueError(f"part: got {part!r}, wanted 'analysis' or {RECOGNITION!r}")
    still: dict[str, Any] = {"rotation": 0.0, "autocontrast": 0.0, "generator": generator}
    if part == RECOGNITION:
        return FaceTransform(size, train=True, **still)
    return FaceTransform(size, train=True, erasing=0.25, augment=RandAugment(generator=generator), **still)


@dataclass(frozen=True)
class Part:
    """One part of every batch: some faces of one data set, or of several with a share each.

    Attributes:
        datasets: items are (image, {task: target}); their tasks are those of the first item.
        count: faces a batch.
        shares: of the data sets, by default by their sizes: 0.5, 0.25, 0.25 for IMDB + WIKI, Adience and MORPH.
    """

    datasets: Sequence[Any]
    count: int
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not self.datasets or any(len(d) == 0 for d in self.datasets):
            raise ValueError(f"datasets, count: got {len(self.datasets)} and {self.count}, wanted faces, 1 or more")
        shares = self.shares
        if shares is not None and (len(shares) != len(self.datasets) or min(shares) < 0 or sum(shares) <= 0):
            raise ValueError(f"shares: got {list(shares)}, wanted a number for each of {len(self.datasets)} data sets")


class JointBatches:
    """Batches that put the parts one behind the other: images (B, 3, H, W) and a `TaskBatch` by task.

    Within a data set every face comes once before one comes twice. A task's rows are those of all parts that know it.

    Args:
        parts: what is joined; the paper: 32 faces each for identity, age and gender, attributes, expressions.
        steps: batches.
        generator: draws data sets and faces.
    """

    def __init__(self, parts: Sequence[Part], steps: int, generator: torch.Generator | None = None) -> None:
        if not parts or steps < 0:
            raise ValueError(f"parts, steps: got {len(parts)} and {steps}, wanted one or more, and 0 or more")
        self.parts, self.steps, self.generator = list(parts), steps, generator

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        queues = {id(d): self._endless(len(d)) for part in self.parts for d in part.datasets}
        for _ in range(self.steps):
            images: list[Tensor] = []
            rows: dict[str, list[int]] = {}
            targets: dict[str, list[Tensor]] = {}
            for part in self.parts:
                for which in self._draw(part):
                    image, labels = part.datasets[which][next(queues[id(part.datasets[which])])]
                    for task, target in labels.items():
                        rows.setdefault(task, []).append(len(images))
                        targets.setdefault(task, []).append(torch.as_tensor(target))
                    images.append(image)
            batch = {t: TaskBatch(torch.tensor(rows[t]), torch.stack(targets[t])) for t in rows}
            yield torch.stack(images), batch

    def _draw(self, part: Part) -> list[int]:
        shares = part.shares if part.shares is not None else [len(d) for d in part.datasets]
        weights = torch.tensor([float(s) for s in shares])
        return torch.multinomial(weights, part.count, True, generator=self.generator).tolist()

    def _endless(self, n: int) -> Iterator[int]:
        while True:
            yield from torch.randperm(n, generator=self.generator).tolist()


def training_groups(
    model: SwinFace,
    head: CosFaceHead | None = None,
    lr: float = 5e-4,
    backbone_scale: float = 0.1,
    weight_decay: float = 0.05,
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: the backbone at `lr` times `backbone_scale`, all else at `lr`.

    Biases, norms and position biases are not decayed. Frozen parameters are left out.
    """
    backbone = {id(p) for p in model.backbone.parameters()}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    parts: list[nn.Module] = [model] if head is None else [model, head]
    for name, p in (named for part in parts for named in part.named_parameters()):
        if p.requires_grad:
            inside, plain = id(p) in backbone, p.ndim < 2 or name.endswith(("bias", "bias_table"))
            rate, decay = lr * (backbone_scale if inside else 1.0), 0.0 if plain else weight_decay
            group = groups.setdefault((inside, plain), {"params": [], "lr": rate, "weight_decay": decay})
            group["params"].append(p)
    return list(groups.values())


def learning_rate(step: int, steps: int, warmup: int, start: float = 1e-3, end: float = 1e-2) -> float:
    """Share of the full rate at a step: from `start` up to 1 in `warmup` steps, then down to `end` along a cosine."""
    if step < warmup:
        return start + (1 - start) * step / warmup
    along = (step - warmup) / max(1, steps - warmup)
    return end + (1 - end) * (1 + math.cos(math.pi * min(1.0, along))) / 2


def fit_joint(
    model: SwinFace,
    batches: Iterable[Batch],
    *,
    head: CosFaceHead | None = None,
    steps: int | None = None,
    lr: float = 5e-4,
    backbone_scale: float = 0.1,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    clip: float = 5.0,
    weights: dict[str, float] | None = None,
    autocast: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, dict[str, float]], object] | None = None,
) -> list[float]:
    """Train all tasks together; one forward pass a batch, batch norms over the whole of it.

    Args:
        model: trained in place, where it is.
        batches: images and `TaskBatch` by task, e.g. `JointBatches`. Of ``"identity"`` the target is a class of `head`;
            ``"age_std"`` and other targets that are no task of the model are passed over.
        head: of the identities.
        steps: the length of the training, for rates and the age loss; that of `batches` by default.
        lr, backbone_scale, weight_decay: of `training_groups`; the paper has 5e-4 times batch / 512.
        warmup: share of the steps; see `learning_rate`.
        clip: largest norm of the backbone's gradient.
        weights: of the tasks' losses.
        autocast: ``torch.bfloat16`` for mixed precision.
        generator: of the classes that `head` samples.
        callback: called after each step with its number and the losses; True ends the training.

    Returns the total loss of each step.
    """
    total = len(batches) if steps is None else steps  # type: ignore[arg-type]
    groups = training_groups(model, head, lr, backbone_scale, weight_decay)
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: learning_rate(s, total, int(warmup * total)))
    device, losses = model.norm.weight.device, []
    model.train()
    for step, (images, batch) in enumerate(batches):
        named = {t: b for t, b in batch.items() if t in model.tasks}
        identity = batch.get(IDENTITY) if head is not None else None
        wanted = [*named, *([RECOGNITION] if identity is not None else [])]
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            outputs = dict(model(images.to(device), wanted))
        outputs = {task: out.float() for task, out in outputs.items()}
        moved = {t: TaskBatch(_moved(b.rows, device), b.target.to(device)) for t, b in named.items()}
        if identity is not None and head is not None:
            rows = _moved(identity.rows, device)
            logits, columns = head(outputs.pop(RECOGNITION)[rows], identity.target.to(device), generator)
            outputs[IDENTITY], moved[IDENTITY] = logits, TaskBatch(slice(None), columns)
        parts = multitask_loss(outputs, moved, min(1.0, step / max(1, total)), weights)
        optimizer.zero_grad()
        parts["total"].backward()
        nn.utils.clip_grad_norm_(model.backbone.parameters(), clip)
        optimizer.step()
        schedule.step()
        losses.append(float(parts["total"].detach()))
        if callback is not None and callback(step, {k: float(v.detach()) for k, v in parts.items()}) is True:
            break
    return losses


def _moved(rows: slice | Tensor, device: torch.device) -> slice | Tensor:
    return rows if isinstance(rows, slice) else rows.to(device)
