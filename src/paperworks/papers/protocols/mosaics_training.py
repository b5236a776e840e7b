"""The training of the protocol on digit mosaics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.mosaics import digit_mosaics
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.training import batches, parameter_groups
from paperworks.swin.swtformer import (
    LocalizationOutput,
    SeedScore,
    SWTformer,
    localize,
    multilabel_map,
    seed_mask,
    seed_miou,
    swtformer_loss,
)

THRESHOLDS = tuple(i / 100 for i in range(101))
SHOWN = 3
"""Test images that the figure shows."""
Data = dict[str, Tensor]
Loss = Callable[[LocalizationOutput, Tensor], Tensor]


def mosaics_of(trial: Trial) -> Data:
    """Training images of one digit and of several, and test images, with labels; masks of the test images."""
    s = trial.settings
    options = {
        "digits": tuple(int(c) for c in s["digits"]), "texture": s["texture"], "signs": (1, -1)[: s["signs"]],
        "contrast": (0.6, 1.0),
    }  # fmt: skip

    def make() -> Data:
        found: Data = {}
        for name, n, most, held_out in (
            ("single", s["train_size"], 1, False),
            ("train", s["train_size"], s["most"], False),
            ("test", s["test_size"], s["most"], True),
        ):
            part = digit_mosaics(n, s["size"], trial.generator(name), held_out=held_out, most=most, **options)
            # the three channels are equal: one is kept
            found[f"{name} images"], found[f"{name} labels"] = part.images[:, :1], part.labels
            if held_out:
                found["test masks"] = part.masks.to(torch.uint8)
        return found

    identity = {name: s[name] for name in ("size", "digits", "most", "texture", "signs", "train_size", "test_size")}
    return trial.stage("mosaics", make, **identity)


def _groups(model: SWTformer, lr: float, share: float) -> list[dict[str, object]]:
    """The backbone at `share` of the learning rate of head and sides; vectors are not decayed."""
    groups: list[dict[str, object]] = []
    for module, rate in ((model.backbone, share * lr), (model.head, lr), (model.sides, lr)):
        groups += [{**group, "lr": rate} for group in parameter_groups(module, 0.05) if group["params"]]
    return groups


def _train(
    trial: Trial,
    model: SWTformer,
    data: tuple[Tensor, Tensor],
    epochs: int,
    loss: Loss,
    share: float = 1.0,
) -> None:
    """`epochs` of AdamW in one cycle of the learning rate, warm-up in the first fifth."""
    (images, labels), s, device = data, trial.settings, trial.device
    order = trial.generator(f"batches of {len(labels)} for {epochs}")
    groups = _groups(model, s["lr"], share)
    optimizer = torch.optim.AdamW(groups)
    steps = epochs * -(-len(labels) // s["batch_size"])
    peaks = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=steps + 1, pct_start=0.2)  # type: ignore[arg-type]
    model.train()
    for _ in range(epochs):
        for index in batches(len(labels), s["batch_size"], order):
            tags = labels[index].to(device)
            out = model(images[index].to(device).expand(-1, 3, -1, -1), tags)
            optimizer.zero_grad()
            loss(out, tags).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def _tag_loss(out: LocalizationOutput, tags: Tensor) -> Tensor:
    return F.multilabel_soft_margin_loss(out.logits, tags)


def _single_loss(out: LocalizationOutput, tags: Tensor) -> Tensor:
    return F.cross_entropy(out.logits, tags.argmax(1))


def _classifier(trial: Trial, arm: Arm, data: Data) -> Data:
    """The weights of backbone and head after the parts that all arms of one backbone share."""
    s = trial.settings
    own = ("gsc", "ccl", "epochs", "share")

    def make() -> Data:
        with trial.global_generators("weights"):
            options = {"version": 1} if "version" in arm.options else {}
            model = Arm(arm.name, arm.target).build(s, _classes(data), **options).to(trial.device)
        _train(trial, model, (data["single images"], data["single labels"]), s["single_epochs"], _single_loss)
        trial.progress(0.4, "single digits")
        _train(trial, model, (data["train images"], data["train labels"]), s["tag_epochs"], _tag_loss)
        return dict(model.state_dict())

    identity = {name: value for name, value in s.items() if name not in own}
    return trial.stage("classifier", make, target=arm.target, **identity)


def _classes(data: Data) -> int:
    """Number of classes."""
    return data["train labels"].shape[1]


def train_from_tags(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.mosaics_seeds.seeds_from_tags`."""
    s, data = trial.settings, mosaics_of(trial)
    weights = {name: float(arm.options.get(name, s[name])) for name in ("gsc", "ccl")}
    with trial.global_generators("weights"):
        model: SWTformer = arm.build(s, _classes(data)).to(trial.device)
    missing = model.load_state_dict(_classifier(trial, arm, data), strict=False)
    if missing.unexpected_keys or any(not name.startswith("sides.") for name in missing.missing_keys):
        raise ValueError(f"arm: the weights of {arm.target} do not fit what it builds: {missing}")
    trial.progress(0.7, "tags")
    _train(
        trial,
        model,
        (data["train images"], data["train labels"]),
        s["epochs"],
        lambda out, tags: swtformer_loss(out, tags, **weights)["total"],
        share=s["share"],
    )
    trial.progress(0.95, "all losses")
    return _scored(trial, model, data)


def _recall(maps: Iterable[Tensor], masks: Tensor, labels: Tensor, threshold: float | None) -> float:
    """Share of the pixels with a class that the seeds give that class."""
    hit, total = 0, 0
    for found, mask, label in zip(maps, masks, labels, strict=True):
        object_ = mask > 0
        hit += int((seed_mask(found, label, threshold) == mask)[object_].sum())
        total += int(object_.sum())
    return hit / max(total, 1)


def _scored(trial: Trial, model: SWTformer, data: Data) -> dict[str, float]:
    images, labels, masks = data["test images"].expand(-1, 3, -1, -1), data["test labels"], data["test masks"].long()
    model.eval()
    maps, scores = [], []
    for image, label in zip(images, labels, strict=True):
        given = image.to(trial.device)
        maps.append(localize(model, given, label.to(trial.device), scales=(1,), flip=False).cpu())
    with torch.no_grad():
        for some in images.split(100):
            scores.append(model(some.to(trial.device)).logits.cpu())
    constant = seed_miou(maps, list(masks), list(labels), THRESHOLDS)
    best = constant if model.version == 1 else seed_miou(maps, list(masks), list(labels))
    _keep(trial, maps, data, best)
    return {
        "miou": best.miou,
        "miou_constant": constant.miou,
        "recall": _recall(maps, masks, labels, best.best_threshold),
        "map": multilabel_map(torch.cat(scores), labels),
    }


def _keep(trial: Trial, maps: list[Tensor], data: Data, score: SeedScore) -> None:
    """Images, masks and seeds of the first test images, for the figure."""
    several = [i for i, label in enumerate(data["test labels"]) if int(label.sum()) > 1]
    shown = (several + list(range(len(maps))))[:SHOWN]
    seeds = [seed_mask(maps[i], data["test labels"][i], score.best_threshold) for i in shown]
    trial.curve("images", data["test images"][shown].flatten().tolist())
    trial.curve("masks", data["test masks"][shown].flatten().tolist())
    trial.curve("seeds", torch.stack(seeds).flatten().tolist())
    trial.curve("coverage", torch.stack([maps[i][1:].amax(0) for i in shown]).flatten().tolist())
