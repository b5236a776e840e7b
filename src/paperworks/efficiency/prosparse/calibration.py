"""Thresholds by layer from data, so that every layer is equally sparse; a step beyond the paper's single threshold.

With one threshold for all layers the lower ones stay denser (the paper's appendix on layer-wise sparsity). Here each
layer takes the quantile of its own gate values, from the bottom up, since what a layer drops changes the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.efficiency.prosparse.fatrelu import set_threshold, thresholds
from paperworks.efficiency.prosparse.recorder import ActivationRecorder
from paperworks.efficiency.prosparse.training import with_labels
from paperworks.surgery.gated_mlps import find_gated_mlps
from paperworks.surgery.recording import Recorder, valid

MOST_VALUES = 4_000_000
HALVINGS = 8


def calibrate_thresholds(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    target_sparsity: float | None = None,
    max_loss_increase: float | None = None,
) -> dict[int, float]:
    """Set the threshold of every layer so that the share `target_sparsity` of its gate values falls below it.

    A layer that is sparser at threshold 0 keeps 0. With `max_loss_increase` the target is searched by halving: the
    largest, to 1/256, at which the mean loss on `batches` rises by no more than that, in nats, over threshold 0.

    Args:
        model: a model that went through `relufy`.
        batches: dictionaries for `model(**batch)`, a few thousand tokens; they are run once a layer and target.
        target_sparsity: share in [0, 1), or None.
        max_loss_increase: nats >= 0, or None. Exactly one of the two is given.

    Returns:
        the thresholds, {index of the gated MLP: t}; they are set in the model.

    Raises ValueError for both or none of the two, a value out of range, or a model without FATReLU.
    """
    if (target_sparsity is None) == (max_loss_increase is None):
        raise ValueError("calibrate_thresholds: wanted one of target_sparsity and max_loss_increase")
    kept = [with_labels(batch) for batch in batches]
    if not kept:
        raise ValueError("batches: got none, wanted at least one")
    before = [value.clone() for value in thresholds(model)]
    was_training = model.training
    model.eval()
    try:
        if target_sparsity is not None:
            return _at_target(model, kept, target_sparsity)
        assert max_loss_increase is not None
        if not max_loss_increase >= 0:
            raise ValueError(f"max_loss_increase: got {max_loss_increase}, wanted nats >= 0")
        return _within_loss(model, kept, max_loss_increase)
    except BaseException:
        set_threshold(model, dict(enumerate(before)))
        raise
    finally:
        model.train(was_training)


def _at_target(model: nn.Module, batches: list[dict[str, Tensor]], target: float) -> dict[int, float]:
    if not 0 <= target < 1:
        raise ValueError(f"target_sparsity: got {target}, wanted a share in [0, 1)")
    set_threshold(model, 0.0)
    found: dict[int, float] = {}
    for index, (name, _) in enumerate(find_gated_mlps(model)):
        gate = _gate_values(model, batches, f"{name}.gate_proj" if name else "gate_proj")
        below = int(target * len(gate))
        found[index] = max(0.0, float(gate.kthvalue(below + 1).values)) if len(gate) else 0.0
        set_threshold(model, {index: found[index]})
    return found


def _within_loss(model: nn.Module, batches: list[dict[str, Tensor]], increase: float) -> dict[int, float]:
    set_threshold(model, 0.0)
    limit = mean_loss(model, batches) + increase
    low, high = 0.0, 1.0
    best = dict.fromkeys(range(len(thresholds(model))), 0.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = _at_target(model, batches, middle)
        if mean_loss(model, batches) <= limit:
            low, best = middle, tried
        else:
            high = middle
    set_threshold(model, best)
    return best


@torch.no_grad()
def _gate_values(model: nn.Module, batches: list[dict[str, Tensor]], name: str) -> Tensor:
    """The gate values of valid tokens, evenly thinned out to `MOST_VALUES` where there are more."""
    device = next(model.parameters()).device
    parts: list[Tensor] = []
    share = max(1, MOST_VALUES // len(batches))
    with Recorder(model, [name], at="output") as recorder:
        for batch in batches:
            model(**{key: value.to(device) for key, value in batch.items()})
            mask: Any = batch.get("attention_mask")
            values = valid(recorder.values[name][-1], mask).flatten()
            parts.append(values[:: max(1, -(-len(values) // share))].float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """The model's loss on `batches`, a mean over their labelled tokens, in nats."""
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for batch in batches:
        moved = {key: value.to(device) for key, value in with_labels(batch).items()}
        count = int((moved["labels"][..., 1:] != -100).sum())
        if count:
            total += float(model(**moved).loss) * count
            tokens += count
    if not tokens:
        raise ValueError("batches: got no labelled token, wanted at least one")
    return total / tokens


@torch.no_grad()
def sparsity_report(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """The share of zeros in x1 by layer and position in the window, over the valid tokens of `batches`.

    Returns:
        float64 (layers, longest T), NaN at positions where no batch has a valid token. The mean over a row's positions
        is the layer's sparsity where all windows are full.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with ActivationRecorder(model) as recorder:
            zeros = torch.zeros(len(recorder.names), 0, dtype=torch.float64)
            tokens = torch.zeros(0, dtype=torch.float64)
            for batch in batches:
                model(**{key: value.to(device) for key, value in batch.items()})
                shape = batch["input_ids"].shape
                mask = batch.get("attention_mask")
                mask = (torch.ones(shape) if mask is None else mask.cpu() != 0).double()
                rows = [(row == 0).double().mean(-1).cpu().view(shape) for row in recorder.rows()]
                length = max(len(tokens), shape[1])
                zeros = _padded(zeros, length) + _padded(torch.stack([(row * mask).sum(0) for row in rows]), length)
                tokens = _padded(tokens, length) + _padded(mask.sum(0), length)
    finally:
        model.train(was_training)
    if not tokens.numel():
        raise ValueError("batches: got none, wanted at least one")
    return zeros / tokens.masked_fill(tokens == 0, float("nan"))


def _padded(values: Tensor, length: int) -> Tensor:
    return nn.functional.pad(values, (0, length - values.shape[-1]))
