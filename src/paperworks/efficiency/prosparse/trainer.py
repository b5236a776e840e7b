"""ProSparse through `transformers.Trainer`: its data, devices, mixed precision, accumulation and checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from paperworks.efficiency.prosparse.recorder import ActivationRecorder
from paperworks.efficiency.prosparse.schedule import SparsityRegularisation
from paperworks.efficiency.prosparse.training import IGNORED


class ProSparseTrainer(Trainer):
    """A Trainer whose training loss has the sparsity term; evaluation is that of the language model alone.

    The factor goes by optimizer steps (`state.global_step`, which a resumed training goes on counting). With gradient
    accumulation the L1 norm of each part weighs as its language loss does. The logs tell `factor`, `l1` and `sparsity`
    of the latest training batch.

    Args:
        schedule: the factor by step.
        arguments: those of `transformers.Trainer`. The model has to have gated MLPs; `relufy` it first.
    """

    def __init__(self, *args: Any, schedule: SparsityRegularisation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.schedule = schedule
        self._recorder: ActivationRecorder | None = None
        self._recorded: nn.Module | None = None
        self._latest: tuple[float, Tensor, Tensor] | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's loss, and in training lambda times the L1 norm of x1 over the tokens that are no padding."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._recorder is None or self._recorded is not model:
            self._recorder, self._recorded = ActivationRecorder(model), model
        mask = inputs.get("attention_mask")
        share = self._share(inputs, num_items_in_batch)
        with self._recorder:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        step = self.state.global_step + 1
        l1 = self._recorder.l1(mask, self.schedule.reduction)
        factor = self.schedule.factor(step)
        self._latest = (factor, l1.detach(), self._recorder.sparsity(mask).mean())
        if factor:
            loss = loss + factor * share * l1.to(loss.device)
        return (loss, outputs) if return_outputs else loss

    def _share(self, inputs: dict[str, Any], items: Tensor | int | None) -> Tensor | float:
        """What this part of an accumulated batch weighs in the language loss that the Trainer sums up."""
        scaled = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        if not scaled:
            return 1.0  # the Trainer divides the whole loss by the number of parts
        labels = inputs.get("labels")
        if items is None or labels is None:
            return 1.0 / self.current_gradient_accumulation_steps
        own = (labels[..., 1:] if getattr(self, "_loss_shifts_labels", False) else labels).ne(IGNORED).sum()
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        total = torch.as_tensor(items, device=own.device).flatten()[0]
        return own * processes / total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what the Trainer logs; beside a training loss also `factor`, `l1` and `sparsity`."""
        if self._latest is not None and "loss" in logs:
            factor, l1, sparsity = self._latest
            logs = {**logs, "factor": factor, "l1": float(l1), "sparsity": float(sparsity)}
        super().log(logs, start_time)
