"""What rewriting the activations of a trained state-space language model does to its validation loss."""

from __future__ import annotations

from typing import Any

from paperworks.lab.nouns import Arm, Setting, Tiers, protocol
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.language import TASK, above_zero, at_least_one


@protocol(
    "rewritten language model",
    metrics={
        "loss": "cross entropy in nats a token on held-out windows, computed by the rewritten graph",
        "loss_before": "the same by the graph as it is",
        "loss_change": "|loss / loss_before - 1|",
        "output_error": "largest difference of a logit by the largest logit",
    },
    settings=(
        *(
            Setting(s.name, s.kind, "mamba2", s.help, s.check, s.signature) if s.name == "language_model" else s
            for s in TASK
        ),
        Setting("steps", int, Tiers(smoke=3, desk=120, gpu=1000), "optimiser steps of a model made here", at_least_one),
        Setting("lr", float, Tiers(smoke=5e-3, gpu=1e-3), "peak learning rate of AdamW", above_zero),
    ),
    preload=("transformers.models.mamba2.modeling_mamba2",),
)
def rewritten_language_model(trial: Trial, arm: Arm) -> dict[str, float]:
    """Train once a seed, or load a checkpoint; export; let the arm's target rewrite the graph in place; compare."""
    import numpy as np
    import torch
    from torch.nn import functional

    from paperworks.efficiency.xamba import export_mamba
    from paperworks.efficiency.xamba.inspection import compiled
    from paperworks.papers.protocols.language_models import is_made_here
    from paperworks.papers.protocols.language_training import fit, language_task
    from paperworks.papers.protocols.openvino_graphs import kept_graph

    settings = trial.settings
    task = language_task(trial)
    if is_made_here(settings["language_model"]):

        def trained() -> dict[str, Any]:
            fit(task, trial, steps=settings["steps"], lr=settings["lr"])
            return dict(task.model.state_dict())

        task.model.load_state_dict(trial.stage("trained", trained, **settings))
    inputs, targets = task.validation
    batch, length = min(len(inputs), settings["batch_size"]), inputs.shape[1]
    graph = kept_graph(trial, lambda: export_mamba(task.model, batch=batch, seq_len=length), **settings)
    changed = graph.clone()
    arm.build(changed)
    runs = [compiled(each, "CPU", 1) for each in (changed, graph)]
    totals, largest, difference = [0.0, 0.0], 0.0, 0.0
    for start in range(0, len(inputs) - batch + 1, batch):
        window, target = inputs[start : start + batch], targets[start : start + batch]
        new, old = (torch.from_numpy(np.array(run([window.numpy()])[0])) for run in runs)
        for i, logits in enumerate((new, old)):
            totals[i] += float(functional.cross_entropy(logits.flatten(0, 1).double(), target.flatten()))
        difference = max(difference, float((new - old).abs().max()))
        largest = max(largest, float(old.abs().max()))
        trial.progress((start + batch) / len(inputs))
    batches = len(inputs) // batch
    loss, before = (total / batches for total in totals)
    return {
        "loss": loss,
        "loss_before": before,
        "loss_change": abs(loss / before - 1),
        "output_error": difference / largest,
    }
