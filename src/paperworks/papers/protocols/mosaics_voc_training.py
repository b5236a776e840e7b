"""The training of the protocol on PASCAL VOC 2012."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from paperworks.data.voc import VOC_CLASSES, VOCClassification
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.mosaics_training import THRESHOLDS
from paperworks.swin.swtformer import SWTformer, localize, multilabel_map, seed_miou, swtformer_loss

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LONG_SIDE = (320, 640)
"""Range of the longer side before a crop of 224 or 448 pixels; in proportion for other crops below 224."""
Seeded = tuple[int, int]


def normalised(image: Tensor) -> Tensor:
    """(3, H, W) in [0, 1] by the mean and deviation of ImageNet."""
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def augmented(image: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A crop (3, size, size) of the image at a random scale, mirrored half of the time, its colours jittered."""
    draw = torch.rand(8, generator=generator).tolist()
    share = min(1.0, size / 224)
    long = share * (LONG_SIDE[0] + draw[0] * (LONG_SIDE[1] - LONG_SIDE[0]))
    height, width = (max(1, round(side * long / max(image.shape[1:]))) for side in image.shape[1:])
    image = F.interpolate(image[None], (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
    for factor, kind in zip(draw[1:4], ("brightness", "contrast", "saturation"), strict=True):
        strength = 0.7 + 0.6 * factor
        grey = image.mean(0, keepdim=True)
        base = {"brightness": torch.zeros_like(grey), "contrast": grey.mean().expand_as(grey), "saturation": grey}[kind]
        image = (base + strength * (image - base)).clamp(0, 1)
    image = normalised(image)
    image = image.flip(-1) if draw[4] < 0.5 else image
    # what a crop has beyond the image is the mean colour
    image = F.pad(image, (0, max(0, size - width), 0, max(0, size - height)))
    top, left = (int(d * (side - size + 1)) for d, side in zip(draw[5:7], image.shape[1:], strict=True))
    return image[:, top : top + size, left : left + size]


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Training crops by index and seed."""

    def __init__(self, data: VOCClassification, size: int) -> None:
        self.data, self.size = data, size

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, item: Seeded) -> tuple[Tensor, Tensor]:
        found = self.data[item[0]]
        return augmented(found.image, self.size, torch.Generator().manual_seed(item[1])), found.labels


class SeededOrder(Sampler[Seeded]):
    """Every image once, in random order, each with a seed of its own."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Seeded]:
        order = torch.randperm(self.n, generator=self.generator).tolist()
        seeds = torch.randint(2**62, (self.n,), generator=self.generator).tolist()
        yield from zip(order, seeds, strict=True)


def _groups(model: SWTformer, lr: float, weight_decay: float) -> list[dict[str, object]]:
    """The backbone's weights, and ten times the rate for new layers; vectors are not decayed."""
    groups: list[dict[str, object]] = []
    for module, rate in ((model.backbone, lr), (model.head, 10 * lr), (model.sides, 10 * lr)):
        for matrices, decay in ((True, weight_decay), (False, 0.0)):
            chosen = [p for p in module.parameters() if p.requires_grad and (p.ndim > 1) == matrices]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return groups


def _fit(trial: Trial, arm: Arm, model: SWTformer) -> None:
    s, device = trial.settings, trial.device
    data = VOCClassification(s["data"], s["split"])
    loader = DataLoader(
        Crops(data, s["size"]),
        s["batch_size"],
        sampler=SeededOrder(len(data), trial.generator("batches")),
        num_workers=s["workers"],
    )
    weights = {name: float(arm.options.get(name, s[name])) for name in ("gsc", "ccl")}
    optimizer = torch.optim.AdamW(_groups(model, s["lr"], s["weight_decay"]))
    steps = s["epochs"] * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps) ** 0.9)
    half, losses = torch.bfloat16 if device.startswith("cuda") else None, []
    with trial.global_generators("training"):  # stochastic depth draws from the global generators
        for epoch in range(s["epochs"]):
            model.train()
            total = 0.0
            for images, tags in loader:
                with torch.autocast(device.partition(":")[0], half, enabled=half is not None):
                    out = model(images.to(device), tags.to(device))
                    loss = swtformer_loss(out, tags.to(device), **weights)["total"]
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += float(loss.detach())
            losses.append(total / len(loader))
            trial.progress(0.9 * (epoch + 1) / s["epochs"], f"epoch {epoch + 1}/{s['epochs']}")
    trial.curve("loss", losses)


def _first(data: VOCClassification, limit: int) -> Sequence[int]:
    return range(min(limit, len(data)) if limit else len(data))


def train_on_voc(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.mosaics_voc.seeds_on_voc`."""
    s, device = trial.settings, trial.device
    with trial.global_generators("weights"):
        model: SWTformer = arm.build(s, len(VOC_CLASSES)).to(device)
    _fit(trial, arm, model)
    model.eval()
    validation = VOCClassification(s["data"], "val")
    side = max(1, round(s["size"] / model.stride)) * model.stride
    scores, tags = [], []
    with torch.no_grad():
        for i in _first(validation, s["limit"]):
            found = validation[i]
            image = F.interpolate(normalised(found.image)[None], (side, side), mode="bilinear", align_corners=False)
            scores.append(model(image.to(device)).logits[0].float().cpu())
            tags.append(found.labels)
    training = VOCClassification(s["data"], "train")
    scales = (1.0,) if s["scales"] == 1 else (0.5, 1.0, 1.5, 2.0)
    maps, masks, labels = [], [], []
    for i in _first(training, s["limit"]):
        found = training[i]
        one = localize(model, normalised(found.image).to(device), found.labels.to(device), scales)
        # halves: the maps of 1,464 images at full size would take 25 GB
        maps.append(one.half().cpu())
        masks.append(found.mask)
        labels.append(found.labels)
    score = seed_miou(maps, masks, labels, THRESHOLDS if model.version == 1 else None)
    return {"miou": score.miou, "map": multilabel_map(torch.stack(scores), torch.stack(tags))}
