"""Expressions on AffectNet, after fine-tuning a pretrained Swin on it and on other face data sets."""

from __future__ import annotations

from typing import Any

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.sharpness_tasks import _not_negative, _positive


def faces_listing(path: str) -> str:
    """Names, sizes and times of the files below a folder; of nothing for no folder."""
    if not path:
        return ""
    from paperworks.data.picture_crops import listing_signature

    return listing_signature(path)


def weights_listing(path: str) -> str:
    """What the pretrained weights are: a name, or a file with its size and time."""
    from pathlib import Path

    file = Path(path).expanduser()
    if not path or not file.exists():
        return path
    return f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}"


def _recipe(value: str) -> None:
    if value not in ("sgd", "adamw"):
        raise ValueError(f"got {value!r}, wanted sgd or adamw")


_FOLDER = "paperworks.papers.protocols.sharpness_expressions:faces_listing"


@protocol(
    "expression recognition",
    metrics={
        "macro_f1": "macro F1 over 8 expressions on AffectNet's validation set, at the best epoch",
        "last_macro_f1": "the same after the last epoch",
    },
    settings=(
        Setting("affectnet", str, "", "folder of AffectNet", signature=_FOLDER),
        Setting("fer2013", str, "", "folder with fer2013.csv, to train on as well", signature=_FOLDER),
        Setting("ckplus", str, "", "folder of CK+, to train on as well", signature=_FOLDER),
        Setting("weights", str, "", "imagenet (from the hub), or a file of Swin weights",
                signature="paperworks.papers.protocols.sharpness_expressions:weights_listing"),
        Setting("backbone", str, "swin_tiny_patch4_window7_224", "timm's name of a Swin"),
        Setting("size", int, 224, "side of the pictures", _positive),
        Setting("recipe", str, "sgd", "sgd: a tenth of the rate every 10 epochs; adamw: for small sets", _recipe),
        Setting("lr", float, 1e-3, "learning rate of sgd; of adamw a twentieth, and the head half", _positive),
        Setting("epochs", int, Tiers(smoke=1, gpu=5, full=25), "passes over the training faces", _positive),
        Setting("batch_size", int, Tiers(smoke=4, gpu=64), "faces a step", _positive),
        Setting("rho", float, 0.05, "radius of the climb", _not_negative),
        Setting("workers", int, Tiers(smoke=0, gpu=8), "processes that read pictures", _not_negative),
    ),
    time_limit=14 * 86400.0,
)  # fmt: skip
def expression_recognition(trial: Trial, arm: Arm) -> dict[str, float]:
    """Fine-tune with the arm's recipe, and test on AffectNet's validation set after every epoch.

    F1 of each expression at the best epoch, with the ends of its bootstrap interval, is kept as curves.
    """
    return _fine_tuned(trial, arm)


def training_faces(trial: Trial) -> Any:
    """AffectNet's training faces, with those of the other sets that the settings name."""
    from paperworks.swin.swin_se_fer import FaceTransform, FERDataset, HybridFER

    small = trial.settings["recipe"] == "adamw"
    changes: dict[str, Any] = {"rotation": 0.0, "autocontrast": 0.0, "jitter": 0.3, "erasing": 0.25} if small else {}
    transform = FaceTransform(trial.settings["size"], train=True, **changes)
    sets = [
        FERDataset(trial.settings[layout], layout, "train", transform)
        for layout in ("affectnet", "fer2013", "ckplus")
        if trial.settings[layout]
    ]
    return HybridFER(sets)


def _optimizer(trial: Trial, arm: Arm, model: Any) -> tuple[Any, Any]:
    import torch

    from paperworks.swin.swin_se_fer import SAM, finetune_groups

    settings, recipe, epochs = trial.settings, arm.build(), trial.settings["epochs"] * arm.build().times
    options: dict[str, Any] = {"lr": settings["lr"]}
    base: type[torch.optim.Optimizer] = torch.optim.SGD
    if settings["recipe"] == "sgd":
        groups: Any = [{"params": list(model.parameters())}]
        options |= {"momentum": 0.9, "weight_decay": 1e-4}
    else:
        base, groups = torch.optim.AdamW, finetune_groups(model, settings["lr"] / 20, settings["lr"] / 2, 0.05)
    optimizer: torch.optim.Optimizer = (
        SAM(groups, base, settings["rho"], every=recipe.every, **options) if recipe.sam else base(groups, **options)
    )
    if settings["recipe"] == "sgd":
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.1)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs - 1))
    return optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [1])


def _fine_tuned(trial: Trial, arm: Arm) -> dict[str, float]:
    import torch
    from torch.utils.data import DataLoader, WeightedRandomSampler

    from paperworks.swin import swin_se_fer as fer

    settings, recipe = trial.settings, arm.build()
    faces = training_faces(trial)
    held_out = fer.FERDataset(settings["affectnet"], "affectnet", "val", fer.FaceTransform(settings["size"]))
    pretrained: Any = True if settings["weights"] == "imagenet" else (settings["weights"] or False)
    with trial.global_generators("weights"):
        model = fer.build_fer_model(settings["backbone"], len(fer.EXPRESSIONS), pretrained)
        if not recipe.squeeze:
            fer.remove_squeeze_excite(model)
    model.to(trial.device)
    optimizer, schedule = _optimizer(trial, arm, model)
    order, small = trial.generator("batches"), settings["recipe"] == "adamw"
    sampler = WeightedRandomSampler(faces.sample_weights().tolist(), len(faces), generator=order) if small else None
    loader: Any = DataLoader(
        faces, settings["batch_size"], shuffle=sampler is None, sampler=sampler, generator=order,
        num_workers=settings["workers"],
    )  # fmt: skip
    epochs, scores, best = settings["epochs"] * recipe.times, [], torch.empty(0)
    tests: Any = DataLoader(held_out, settings["batch_size"], num_workers=settings["workers"])

    def tested(epoch: int, _: float) -> None:
        nonlocal best
        model.eval()
        with torch.no_grad():
            logits = torch.cat([model(images.to(trial.device)).cpu() for images, _ in tests])
        scores.append(fer.macro_f1(logits, held_out.labels, len(fer.EXPRESSIONS)))
        best = logits if scores[-1] == max(scores) else best
        trial.progress((epoch + 1) / epochs, f"epoch {epoch + 1}/{epochs}, macro F1 {scores[-1]:.4f}")

    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1 if small else 0.0)
    with trial.global_generators("training"):
        fer.fit_sam(model, loader, optimizer, loss, epochs, schedule=schedule, callback=tested)
    k = len(fer.EXPRESSIONS)
    ends, _ = fer.f1_intervals(best, held_out.labels, k, trial.generator("bootstrap"), resamples=200)
    trial.curve("macro F1", scores)
    trial.curve("F1 by expression", fer.per_class_f1(best, held_out.labels, k).tolist())
    trial.curve("F1 by expression, low", ends[:, 0].tolist())
    trial.curve("F1 by expression, high", ends[:, 1].tolist())
    return {"macro_f1": max(scores), "last_macro_f1": scores[-1]}
