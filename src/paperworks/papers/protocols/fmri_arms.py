"""Arms of the fMRI protocols: SwiFT and its ablations, correlations of regions, and a CNN of single volumes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paperworks.data.fmri import FMRIClips, SubjectBatches
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.fmri_data import Clips, Task, pair_of
from paperworks.papers.protocols.fmri_training import Predictor, fit, predict
from paperworks.swin.swift import ClipAugment, ContrastiveHead, SwiFT, pretrain

SMALL = {
    "embed_dim": 16, "patch_size": (4, 4, 4, 1), "window_size": (2, 2, 2, 2), "depths": (2, 2), "num_heads": (2, 4),
}  # fmt: skip
MIDDLE = {"embed_dim": 24, "patch_size": (4, 4, 4, 1), "depths": (2, 2, 2), "num_heads": (2, 4, 8)}


def network(task: Task, **options: Any) -> SwiFT:
    """SwiFT for clips of the task: of the paper's size at 96 voxels, a middle one from 32, else a small one."""
    edge = task.size[0]
    sizes = {} if edge >= 96 else MIDDLE if edge >= 32 else SMALL
    return SwiFT(task.size, **{**sizes, "num_outputs": 1, **options})


def swift(
    trial: Trial, task: Task, *, regression: bool = False, positions: str | None = "absolute", pretraining: bool = False
) -> Predictor:
    """SwiFT, trained from random weights or from contrastive pre-training on the task's unlabelled subjects."""
    model, shift, width = trained(trial, task, regression=regression, positions=positions, pretraining=pretraining)
    return lambda clips: predict(model, clips, trial) * width + shift


def trained(
    trial: Trial, task: Task, *, regression: bool = False, positions: str | None = "absolute", pretraining: bool = False
) -> tuple[SwiFT, float, float]:
    """The trained network, and the deviation and mean of the targets it was trained on."""
    with trial.global_generators("weights"):
        model = network(task, positions=positions).to(trial.device)
    if pretraining:
        state = trial.stage("pretrained", lambda: _pretrained(trial, task, model), **trial.settings)
        model.load_state_dict(state, strict=False)
    shift, width = fit(model, task.train, trial, regression=regression)
    return model, shift, width


def _pretrained(trial: Trial, task: Task, model: SwiFT) -> dict[str, Tensor]:
    """The backbone after contrastive pre-training."""
    settings, clips, generator = trial.settings, task.unlabelled, trial.generator("pairs")
    batch = min(settings["batch_size"], len(set(clips.subjects)))
    sampler = SubjectBatches(clips.subjects, batch, generator)

    def report(step: int, loss: float) -> None:
        trial.progress(step / settings["pretraining_steps"], f"pre-training, loss {loss:.3f}")

    with trial.global_generators("pre-training"):
        backbone, head = copy.deepcopy(model), ContrastiveHead(model.num_features).to(trial.device)
        pretrain(
            backbone, head, _Pairs(clips, sampler, generator, trial.device), augment=ClipAugment(),
            steps=settings["pretraining_steps"], lr=settings["pretraining_lr"], weight_decay=settings["weight_decay"],
            progress=report,
        )  # fmt: skip
    return {name: value for name, value in backbone.state_dict().items() if not name.startswith("head.")}


class _Pairs:
    """Pairs of clips, drawn anew at each pass."""

    def __init__(self, clips: Clips, sampler: SubjectBatches, generator: torch.Generator, device: str) -> None:
        self.clips, self.sampler, self.generator, self.device = clips, sampler, generator, device
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(self.clips, FMRIClips):
            self.clips.set_epoch(self.epoch)
        self.epoch += 1
        for index in self.sampler:
            yield pair_of(self.clips, index, self.generator, self.device)


def region_correlations(trial: Trial, task: Task, *, regression: bool = False, edge: int = 0) -> Predictor:
    """Hand-made features: correlations of the mean courses of cubes, with a linear model tuned by cross-validation.

    Args:
        trial, task, regression: as of every arm.
        edge: of the cubes in voxels; a quarter of the grid's if 0. On simulated data of that edge they are the parcels.
    """
    from sklearn.linear_model import LogisticRegressionCV, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cube = edge or task.size[0] // 4
    features, targets = _by_subject(task.train, cube)
    if regression:
        estimator = RidgeCV(alphas=np.logspace(-1, 5, 13))
    else:
        folds = min(5, int(np.bincount(targets.astype(int)).min()))
        estimator = LogisticRegressionCV(
            Cs=np.logspace(-5, 1, 7), cv=max(2, folds), scoring="neg_log_loss", max_iter=2000, l1_ratios=(0.0,),
            use_legacy_attributes=False,
        )  # fmt: skip
    model = make_pipeline(StandardScaler(), estimator).fit(features, targets)

    def scores(clips: Clips) -> Tensor:
        rows, _ = _by_subject(clips, cube)
        found = model.predict(rows) if regression else model.decision_function(rows)
        by_name = dict(zip(dict.fromkeys(clips.subjects), found.tolist(), strict=True))
        return torch.tensor([by_name[name] for name in clips.subjects])

    return scores


def _by_subject(clips: Clips, edge: int) -> tuple[Any, Any]:
    """Fisher's z of the correlations over all clips of a subject (subjects, pairs), and the targets (subjects,)."""
    courses: dict[str, list[Tensor]] = {}
    for i, name in enumerate(clips.subjects):
        image = clips[i]["image"][0]
        cubes = torch.nn.functional.avg_pool3d(image.movedim(-1, 0).unsqueeze(1), edge, ceil_mode=True)
        courses.setdefault(name, []).append(cubes.flatten(1))
    rows = []
    for parts in courses.values():
        series = torch.cat(parts).double()
        series = series - series.mean(0)
        series = series / series.norm(dim=0).clamp(min=1e-9)
        r = (series.t() @ series).clamp(-0.999, 0.999)
        above = torch.triu_indices(len(r), len(r), 1)
        rows.append(torch.atanh(r[above[0], above[1]]))
    return torch.stack(rows).numpy(), np.array([clips.targets[name] for name in courses])


class VolumeCNN(nn.Module):
    """A 3-D CNN on every volume, the mean over frames and places, and a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(1, width, 4, 4), nn.GELU(),
            nn.Conv3d(width, 2 * width, 3, padding=1), nn.GroupNorm(4, 2 * width), nn.GELU(),
            nn.Conv3d(2 * width, 2 * width, 3, padding=1), nn.GroupNorm(4, 2 * width), nn.GELU(),
        )  # fmt: skip
        self.head = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W, D, T) -> (B, 1)."""
        batch, frames = x.shape[0], x.shape[-1]
        maps = self.layers(x.movedim(-1, 1).flatten(0, 1))
        return self.head(maps.flatten(2).mean(2).view(batch, frames, -1).mean(1))


def volume_cnn(trial: Trial, task: Task, *, regression: bool = False) -> Predictor:
    """`VolumeCNN`, trained as SwiFT is."""
    with trial.global_generators("weights"):
        model = VolumeCNN().to(trial.device)
    shift, width = fit(model, task.train, trial, regression=regression)
    return lambda clips: predict(model, clips, trial) * width + shift
