"""Pruning a published Swin: the user's checkpoint, and ImageNet or any pictures in class folders."""

from __future__ import annotations

from pathlib import Path

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.images import _positive
from paperworks.papers.protocols.pruning import RATIO, _not_negative


def file_signature(path: str) -> str:
    """Digest of a checkpoint: its name, size and time."""
    if not path:
        return ""
    stat = Path(path).expanduser().stat()
    return f"{Path(path).name}-{stat.st_size}-{stat.st_mtime_ns}"


def folder_signature(spec: str) -> str:
    """Digest of the pictures a spec names."""
    from paperworks.data.sources import data_signature

    return data_signature(spec) if spec else ""


WEIGHTS = Setting(
    "weights",
    str,
    "",
    "a Swin checkpoint: the official .pth, or .safetensors with timm's or transformers' names",
    signature=f"{__name__}:file_signature",
)
IMAGE_SIZE = Setting("image_size", int, 224, "side of the pictures in pixels", _positive)


@protocol(
    "pruning a checkpoint",
    metrics={
        "parameters_removed": "per cent of all parameters",
        "macs_removed": "per cent of the multiply-adds, counted layer by layer from the masks",
        "macs_shortfall": "points by which that misses the part of the prunable multiply-adds that the ratio names",
    },
    settings=(WEIGHTS, RATIO, IMAGE_SIZE),
)
def pruned_counts(trial: Trial, arm: Arm) -> dict[str, float]:
    """What goes from the user's trained network. Nothing is drawn at random: all seeds give the same."""
    from paperworks.efficiency.dimap import find_modules, sparse_flops
    from paperworks.efficiency.dimap.checkpoints import load_swin

    size, ratio = trial.settings["image_size"], trial.settings["ratio"]
    model = load_swin(Path(trial.settings["weights"]).expanduser(), size)
    masks = arm.build(model, ratio)
    report = sparse_flops(model, size, masks)
    prunable = {name for pairs in find_modules(model).values() for name, _ in pairs}
    nominal = ratio * sum(macs for name, macs, _ in report.rows if name in prunable)
    removed = report.macs - report.macs_pruned
    return {
        "parameters_removed": 100 * (1 - report.nonzero / report.params),
        "macs_removed": 100 * removed / report.macs,
        "macs_shortfall": 100 * (nominal - removed) / report.macs,
    }


@protocol(
    "pruning on ImageNet",
    metrics={
        "top1": "validation accuracy in per cent",
        "top5": "part of the validation pictures whose label is among the first five answers, in per cent",
        "top1_change": "top1 less that of the dense network, in points",
        "top5_change": "top5 less that of the dense network, in points",
    },
    settings=(
        Setting(
            "data",
            str,
            "",
            "imagefolder:PATH with PATH/train and PATH/val, one folder a class",
            signature=f"{__name__}:folder_signature",
        ),
        WEIGHTS,
        RATIO,
        IMAGE_SIZE,
        Setting("finetune_epochs", int, 0, "passes after pruning; 0 tests what one shot leaves", _not_negative),
        Setting("batch_size", int, Tiers(smoke=64, gpu=256, full=1024), "pictures a step", _positive),
        Setting("finetune_lr", float, 2e-5, "peak learning rate for a batch of 1024, scaled with it", _positive),
        Setting("workers", int, Tiers(smoke=0, gpu=8), "processes that read pictures", _not_negative),
    ),
    time_limit=30 * 86400.0,
    memory_limit_gib=64.0,
)
def imagenet_pruning(trial: Trial, arm: Arm) -> dict[str, float]:
    """Prune the checkpoint by the arm, train on with the paper's schedule where asked, test before and after.

    The order of the class folders is that of the checkpoint's classes.
    """
    from paperworks.efficiency.dimap import finetune
    from paperworks.efficiency.dimap.checkpoints import load_swin
    from paperworks.papers.protocols.pruning_pictures import Pictures, TrainingBatches, top1_and_top5

    settings = trial.settings
    size, batch = settings["image_size"], settings["batch_size"]
    model = load_swin(Path(settings["weights"]).expanduser(), size).to(trial.device)
    validation = Pictures(settings["data"], "val", size)
    before = top1_and_top5(model, validation, batch, settings["workers"])
    masks = arm.build(model, settings["ratio"])
    if settings["finetune_epochs"]:
        training = Pictures(settings["data"], "train", size)
        if training.classes != validation.classes:
            raise ValueError(
                f"data: got {len(training.classes)} and {len(validation.classes)} classes, wanted the same"
            )
        rate = settings["finetune_lr"] * batch / 1024
        finetune(
            model, masks, TrainingBatches(training, batch, settings["workers"], trial.generator("pictures")),
            epochs=settings["finetune_epochs"], lr=rate, min_lr=rate / 100, warmup_lr=rate / 1000,
            seed=trial.derived_seed("finetuning") % 2**31, progress=trial.progress,
        )  # fmt: skip
    top1, top5 = top1_and_top5(model, validation, batch, settings["workers"])
    return {"top1": top1, "top5": top5, "top1_change": top1 - before[0], "top5_change": top5 - before[1]}
