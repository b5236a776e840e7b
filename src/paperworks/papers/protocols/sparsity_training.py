"""The continual training of the sparsity protocol: substitution, a factor by step, and a threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from paperworks.data.text import sample_windows
from paperworks.efficiency.prosparse.calibration import sparsity_report
from paperworks.efficiency.prosparse.fatrelu import relufy, set_threshold
from paperworks.efficiency.prosparse.schedule import SparsityRegularisation
from paperworks.efficiency.prosparse.training import train_prosparse
from paperworks.lab.nouns import Arm
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.language_models import is_made_here, warm_up_then_cosine
from paperworks.papers.protocols.language_training import GRADIENT_NORM, LanguageTask, fit, language_task, task_loss
from paperworks.papers.protocols.training import parameter_groups

HALVINGS = 12
CALIBRATION_WINDOWS = 32


@dataclass(frozen=True)
class Recipe:
    """How a model is made sparse.

    Attributes:
        peaks: of the factor, by stage; none for substitution alone.
        ends: of the stages, as shares of the steps.
        start: end of the substitution stage, as a share of the steps.
        points: percentage points of sparsity that the threshold of step 3 is chosen to add, on training text.
    """

    peaks: Sequence[float] = ()
    ends: Sequence[float] = ()
    start: float = 0.0
    points: float = 0.0

    def schedule(self, steps: int) -> SparsityRegularisation:
        """The factor over `steps` steps."""
        if not self.peaks:
            return SparsityRegularisation([1.0], [steps + 1], start=steps)
        ends = [round(end * steps) for end in self.ends]
        return SparsityRegularisation(self.peaks, ends, start=round(self.start * steps))


def sparsify_language_model(trial: Trial, arm: Arm) -> dict[str, float]:
    """See `paperworks.papers.protocols.sparsity.sparsification`."""
    recipe: Recipe = arm.build()
    task = language_task(trial)
    task.model.load_state_dict(_base(task, trial))
    trained = _continued(task, trial, recipe)
    relufy(task.model)
    task.model.load_state_dict({k.removeprefix("model:"): v for k, v in trained.items() if k.startswith("model:")})
    task.model.eval()
    if recipe.points:
        windows = _windows(task, trial, "calibration", CALIBRATION_WINDOWS, 1)
        set_threshold(task.model, threshold_that_adds(task.model, list(windows), recipe.points))
    by_layer = 100 * sparsity_report(task.model, _validation(task, trial)).mean(1)
    for name in ("factor", "sparsity", "lm_loss"):
        trial.curve(f"{name} by step", trained[f"curve:{name}"].tolist())
    trial.curve("sparsity by layer", by_layer.tolist())
    return {
        "validation_loss": task_loss(task, trial),
        "sparsity": float(by_layer.mean()),
        "least_sparse_layer": float(by_layer.min()),
    }


def _base(task: LanguageTask, trial: Trial) -> dict[str, Tensor]:
    """The SiLU model of the seed: trained here once, or the checkpoint as it is."""
    if not is_made_here(trial.settings["language_model"]):
        return task.model.state_dict()

    def make() -> dict[str, Tensor]:
        fit(task, trial, steps=trial.settings["base_steps"], lr=trial.settings["base_lr"], purpose="base batches")
        return task.model.state_dict()

    continued = ("steps", "lr")
    identity = {name: value for name, value in trial.settings.items() if name not in continued}
    return trial.stage("base", make, **identity)


def _continued(task: LanguageTask, trial: Trial, recipe: Recipe) -> dict[str, Tensor]:
    """Weights after the continual training (`model:...`) and its curves (`curve:...`), once a recipe and seed."""
    settings = trial.settings

    def make() -> dict[str, Tensor]:
        model = relufy(task.model)
        steps: int = settings["steps"]
        optimizer = torch.optim.AdamW(parameter_groups(model, settings["weight_decay"]), lr=settings["lr"])
        learning_rate = warm_up_then_cosine(optimizer, steps)

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)

        def after(record: dict[str, float]) -> None:
            learning_rate.step()
            trial.progress(record["step"] / steps, f"step {record['step']}, sparsity {record['sparsity']:.1%}")

        optimizer.register_step_pre_hook(clip)
        windows = _windows(task, trial, "continual batches", settings["batch_size"], steps)
        with trial.global_generators("continual training"):  # for a checkpoint with dropout
            history = train_prosparse(
                model, windows, recipe.schedule(steps), optimizer=optimizer, callback=after, progress=False
            )
        curves = {f"curve:{n}": torch.tensor(history.curve(n)) for n in ("factor", "sparsity", "lm_loss")}
        return {f"model:{name}": value for name, value in model.state_dict().items()} | curves

    trained = {name: value for name, value in asdict(recipe).items() if name != "points"}
    return trial.stage("continual training", make, **settings, **{f"recipe {k}": v for k, v in trained.items()})


def _windows(task: LanguageTask, trial: Trial, purpose: str, size: int, n: int) -> Iterator[dict[str, Tensor]]:
    order = trial.generator(purpose)
    for _ in range(n):
        inputs, _ = sample_windows(task.train, batch_size=size, length=task.validation[0].shape[1], generator=order)
        yield {"input_ids": inputs}


def _validation(task: LanguageTask, trial: Trial) -> Iterator[dict[str, Tensor]]:
    for part in task.validation[0].split(trial.settings["batch_size"]):
        yield {"input_ids": part}


def threshold_that_adds(model: nn.Module, batches: list[dict[str, Tensor]], points: float) -> float:
    """The one threshold for all layers of a relufied model that raises its sparsity by `points` percentage points."""

    def sparsity(threshold: float) -> float:
        set_threshold(model, threshold)
        return 100 * float(sparsity_report(model, batches).nanmean())

    wanted = min(sparsity(0.0) + points, 100.0)
    low, high = 0.0, 1e-3
    while sparsity(high) < wanted:
        high *= 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sparsity(middle) < wanted else (low, middle)
    return high
