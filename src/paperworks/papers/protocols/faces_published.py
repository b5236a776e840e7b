"""Expressions of RAF-DB, attributes of CelebA and apparent ages of CLAP, by the published weights, or fine-tuned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.faces_tasks import not_negative, positive


def files_listing(path: str) -> str:
    """Names, sizes and times of the files below a folder, or of a file; of nothing for no path."""
    from paperworks.papers.protocols.sharpness_expressions import faces_listing, weights_listing

    folder = bool(path) and Path(path).expanduser().is_dir()
    return faces_listing(path) if folder else weights_listing(path)


_LISTING = "paperworks.papers.protocols.faces_published:files_listing"
WEIGHTS = (
    Setting("weights", str, "", "the published checkpoint of SwinFace", signature=_LISTING),
    Setting("width", int, 96, "channels of the first stage, as the checkpoint has them", positive),
)
SETTINGS = (
    *WEIGHTS,
    Setting("lr", float, 5e-5, "learning rate of fine-tuning; of the backbone a tenth", positive),
    Setting("batch_size", int, Tiers(smoke=4, gpu=128), "faces a step", positive),
    Setting("workers", int, Tiers(smoke=0, gpu=8), "processes that read pictures", not_negative),
)


def said(guess: bool = False) -> bool:
    """Whether an arm looks at no face: it says the commonest label, or the mean age, of the training faces."""
    return guess


@protocol(
    "published expressions",
    metrics={"accuracy": "on RAF-DB's test faces", "balanced": "accuracy averaged over expressions"},
    settings=(
        Setting("rafdb", str, "", "folder of RAF-DB's basic expressions", signature=_LISTING),
        Setting("steps", int, 0, "updates on RAF-DB's training faces before the test", not_negative),
        *SETTINGS,
    ),
    time_limit=86400.0,
)
def published_expressions(trial: Trial, arm: Arm) -> dict[str, float]:
    """The seed draws the test faces with replacement, so that the interval is that of the test set."""
    outputs, targets = _answers(trial, arm, "rafdb", "rafdb")
    from paperworks.swin.swinface import task_scores

    found = task_scores(outputs, targets)["expression"]
    return {"accuracy": found["accuracy"], "balanced": found["balanced"]}


@protocol(
    "published attributes",
    metrics={
        "accuracy": "on CelebA's test faces, averaged over its forty attributes",
        "balanced": "accuracy averaged over both answers, and over attributes",
    },
    settings=(
        Setting("celeba", str, "", "folder of CelebA's aligned faces and lists", signature=_LISTING),
        Setting("steps", int, 0, "updates on CelebA's training faces before the test", not_negative),
        *SETTINGS,
    ),
    time_limit=86400.0,
)
def published_attributes(trial: Trial, arm: Arm) -> dict[str, float]:
    """The seed draws the test faces with replacement."""
    outputs, targets = _answers(trial, arm, "celeba", "celeba")
    from paperworks.swin.swinface import task_scores

    found = task_scores(outputs, targets).values()
    return {name: sum(one[name] for one in found) / len(found) for name in ("accuracy", "balanced")}


@protocol(
    "published ages",
    metrics={"epsilon": "error on CLAP's test faces", "mae": "mean error in years to the mean of people's guesses"},
    settings=(
        Setting("clap", str, "", "folder with CLAP's train.csv and test.csv (image, mean, std)", signature=_LISTING),
        Setting("steps", int, Tiers(smoke=1, gpu=1000), "updates on CLAP's training faces", not_negative),
        *SETTINGS,
    ),
    time_limit=86400.0,
)
def published_ages(trial: Trial, arm: Arm) -> dict[str, float]:
    """Fine-tuned with the age loss; the seed also draws the test faces with replacement."""
    outputs, targets = _answers(trial, arm, "clap", "clap")
    from paperworks.swin.swinface import task_scores

    found = task_scores(outputs, targets)["age"]
    return {"epsilon": found["epsilon"], "mae": found["mae"]}


def network(trial: Trial) -> Any:
    """The SwinFace of the settings' checkpoint, on the trial's device."""
    import torch

    from paperworks.swin.swinface import SwinFace

    path = Path(trial.settings["weights"]).expanduser()
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: Any = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    with trial.global_generators("weights"):
        model = SwinFace(embed_dim=trial.settings["width"])
    model.load_official_state_dict(state)
    return model.to(trial.device)


def _answers(trial: Trial, arm: Arm, setting: str, layout: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of the layout's tasks on test faces that the seed draws, and their targets."""
    import torch
    from torch.utils.data import DataLoader

    from paperworks.swin.swinface import (
        FaceTasks,
        FaceTransform,
        JointBatches,
        Part,
        fit_joint,
        predict,
        training_transform,
    )

    settings = trial.settings
    train = FaceTasks(settings[setting], layout, "train", training_transform())
    test = FaceTasks(settings[setting], layout, "test", FaceTransform(112))
    tasks = [task for task in test.tasks if task != "age_std"]
    if arm.build():
        labels = {task: train.targets[task] for task in tasks}
        rows = {t: x.mean()[None] if t == "age" else torch.bincount(x, minlength=2).float() for t, x in labels.items()}
        outputs = {task: row.expand(len(test), -1) for task, row in rows.items()}
    else:
        model = network(trial)
        if settings["steps"]:
            batches = JointBatches([Part([train], settings["batch_size"])], settings["steps"], trial.generator("faces"))
            with trial.global_generators("training"):
                fit_joint(model, batches, lr=settings["lr"])
        loader: Any = DataLoader(test, settings["batch_size"], num_workers=settings["workers"])

        def images() -> Iterator[Any]:
            for number, (some, _) in enumerate(loader):
                trial.progress(number / len(loader), f"batch {number + 1}/{len(loader)}")
                yield some

        outputs = predict(model, images(), tasks)
    drawn = torch.randint(0, len(test), (len(test),), generator=trial.generator("test faces"))
    return {k: v[drawn] for k, v in outputs.items()}, {k: v[drawn] for k, v in test.targets.items()}
