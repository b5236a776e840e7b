"""Continual training with the sparsity term: a loop that can be interrupted and goes on where it stopped.

For more than one device, mixed precision or gradient accumulation there is `ProSparseTrainer`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.efficiency.prosparse.recorder import ActivationRecorder
from paperworks.efficiency.prosparse.schedule import SparsityRegularisation

Record = dict[str, float]
IGNORED = -100


@dataclass
class History:
    """What `train_prosparse` did: a record a step, with `step`, `factor`, `lm_loss`, `l1` and `sparsity`.

    `l1` is the norm before it is weighted, `sparsity` the share of zeros, a mean over the layers.
    """

    records: list[Record] = field(default_factory=list)

    def curve(self, name: str) -> list[float]:
        """One number of the records, by step."""
        return [record[name] for record in self.records]


def with_labels(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`batch` with `labels`: those it has, else its `input_ids`, with -100 where its `attention_mask` is 0.

    Raises ValueError for a batch that has neither labels nor `input_ids`.
    """
    made = dict(batch)
    if made.get("labels") is None:
        if made.get("input_ids") is None:
            raise ValueError(f"batches: got a batch with {', '.join(made) or 'nothing'}, wanted input_ids or labels")
        labels = made["input_ids"].clone()
        if made.get("attention_mask") is not None:
            labels[made["attention_mask"] == 0] = IGNORED
        made["labels"] = labels
    return made


def train_prosparse(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    schedule: SparsityRegularisation,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float = 3e-5,
    callback: Callable[[Record], object] | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> History:
    """Train `model` on `batches` with the loss of Eq. 2, one step of the optimizer a batch.

    Args:
        model: a causal language model with gated MLPs, called as `model(**batch)`; `relufy` it first. It is trained in
            train mode and handed back in the mode it had.
        batches: dictionaries of tensors: `input_ids` (B, T), `attention_mask` (B, T) where there is padding, and
            `labels` (else the `input_ids`, padding left out). They are moved to the model's device.
        schedule: the factor by step. Training goes on, at the last peak, as long as there are batches.
        optimizer: AdamW over the trainable parameters at `lr` by default. A learning rate schedule of your own can
            step in `callback`.
        callback: called with the record of each step; what it raises ends the training.
        resume: checkpoint file with model, optimizer, step and records. It is written at the end and when the
            training is interrupted by anything. Where it exists, training goes on from it: the batches of its steps
            are skipped. The state of random generators (dropout, the order of the batches) is the caller's.
        progress: show a bar with the sparsity of the latest batch.

    Raises:
        ValueError: a model without gated MLPs, a batch without input_ids or labels, a model that gives no loss.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr) if optimizer is None else optimizer
    recorder = ActivationRecorder(model)
    history = History()
    path = None if resume is None else Path(resume)
    if path is not None and path.exists():
        history.records = _load(path, model, optimizer)
    done = len(history.records)
    device = next(model.parameters()).device
    total = len(batches) if isinstance(batches, Sized) else None
    was_training = model.training
    model.train()
    from rich.progress import Progress

    try:
        with Progress(disable=not progress) as bar, recorder:
            task = bar.add_task("ProSparse", total=total, completed=done)
            for step, batch in enumerate(itertools.islice(batches, done, None), start=done + 1):
                moved = {name: value.to(device) for name, value in with_labels(batch).items()}
                record = _step(model, optimizer, recorder, schedule, step, moved)
                history.records.append(record)
                bar.update(task, advance=1, description=f"sparsity {record['sparsity']:.1%}")
                if callback is not None:
                    callback(dict(record))
    finally:
        model.train(was_training)
        if path is not None:
            _save(path, model, optimizer, history.records)
    return history


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recorder: ActivationRecorder,
    schedule: SparsityRegularisation,
    step: int,
    batch: dict[str, Tensor],
) -> Record:
    optimizer.zero_grad()
    loss = model(**batch).loss
    if loss is None:
        raise ValueError(f"model: {type(model).__name__} gave no loss for a batch with {', '.join(batch)}")
    mask = batch.get("attention_mask")
    factor, l1 = schedule.factor(step), recorder.l1(mask, schedule.reduction)
    (loss + factor * l1.to(loss.device) if factor else loss).backward()
    optimizer.step()
    sparsity = float(recorder.sparsity(mask).mean())
    return {"step": step, "factor": factor, "lm_loss": loss.item(), "l1": l1.item(), "sparsity": sparsity}


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, records: list[Record]) -> None:
    state: dict[str, Any] = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": len(records), "records": records,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)  # an interruption while writing leaves the earlier file whole


def _load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Record]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    missing = {"model", "optimizer", "step", "records"} - set(state if isinstance(state, dict) else ())
    if missing:
        raise ValueError(f"resume: {path} has no {', '.join(sorted(missing))}, wanted a file of train_prosparse")
    records: list[Record] = state["records"]
    if state["step"] != len(records):
        raise ValueError(f"resume: {path} is at step {state['step']} with {len(records)} records")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return records
