"""Training and testing of the fMRI protocols."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from paperworks.data.fmri import SubjectBatches
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.fmri_data import Clips, Task, batch_of, load_task
from paperworks.swin.swift import subject_scores, youden_threshold
from paperworks.swin.swift.contrastive import rate

Predictor = Callable[[Clips], Tensor]
"""One number a clip, in the order of the clips."""


def classify_subjects(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.fmri.subject_classification`."""
    task = load_task(trial)
    predict: Predictor = arm.build(trial, task, regression=False)
    (found, truth), (chosen, known) = (_subjects(predict, part) for part in (task.test, task.validation))
    both = 0 < known.sum() < len(known)
    threshold = youden_threshold(chosen, known) if both else 0.0
    called = (found >= threshold).long()
    return {
        "auroc": float(roc_auc_score(truth, found)),
        "balanced_accuracy": float(balanced_accuracy_score(truth, called)),
    }


def regress_subjects(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.fmri.subject_regression`."""
    task = load_task(trial)
    predict: Predictor = arm.build(trial, task, regression=True)
    found, truth = _subjects(predict, task.test)
    pearson = torch.corrcoef(torch.stack([found, truth]))[0, 1] if len(found) > 1 else torch.tensor(0.0)
    return {
        "pearson": float(pearson.nan_to_num()),
        "mae": float((found - truth).abs().mean()),
        "mse": float((found - truth).square().mean()),
    }


def _subjects(predict: Predictor, clips: Clips) -> tuple[Tensor, Tensor]:
    """Mean scores and targets of the subjects."""
    names, scores = subject_scores(predict(clips).double().cpu(), clips.subjects)
    return scores, torch.tensor([clips.targets[name] for name in names], dtype=torch.float64)


def fit(model: nn.Module, clips: Clips, trial: Trial, *, regression: bool) -> tuple[float, float]:
    """Train with AdamW and the rate's warm-up and cosine, one clip a subject each epoch.

    Returns mean and deviation by which the targets were standardised, 0 and 1 in classification.
    """
    settings = trial.settings
    truth = torch.tensor(list(clips.targets.values()))
    shift, width = (float(truth.mean()), float(truth.std().clamp(min=1e-8))) if regression else (0.0, 1.0)
    size = min(settings["batch_size"], len(clips.targets))
    sampler = SubjectBatches(clips.subjects, size, trial.generator("batches"))
    a_round = len(clips.targets) // size
    steps = settings["epochs"] * a_round
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(i, steps, 0.05))
    model.train()
    done = 0
    with trial.global_generators("training"):
        while done < steps:
            for index in sampler:
                images, targets = batch_of(clips, index, trial.device)
                logits = model(images)[:, 0]
                targets = ((targets - shift) / width).to(logits.dtype)
                loss = (
                    functional.mse_loss(logits, targets)
                    if regression
                    else functional.binary_cross_entropy_with_logits(logits, targets)
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                done += 1
                trial.progress(done / steps, f"step {done}/{steps}")
                if done == steps:
                    break
    return shift, width


@torch.no_grad()
def predict(model: nn.Module, clips: Clips, trial: Trial, batch_size: int = 32) -> Tensor:
    """The network's first output on every clip."""
    model.eval()
    parts = [
        model(batch_of(clips, index.tolist(), trial.device)[0])[:, 0].float().cpu()
        for index in torch.arange(len(clips)).split(batch_size)
    ]
    return torch.cat(parts)


__all__ = ["Predictor", "Task", "classify_subjects", "fit", "predict", "regress_subjects"]
