"""Predictors of the active channels, for inference that skips the gate projection too (appendices C and F).

A predictor of a layer is a small network d -> rank -> d_ff on the input of its MLP, trained with binary cross entropy
to tell x1 != 0. It errs: a channel that it misses is lost.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.surgery.gated_mlps import find_gated_mlps
from paperworks.surgery.recording import Recorder, valid

HELD_OUT = 0.05
RANK_AT_7B, WIDTH_OF_7B = 1024, 4096


class ActivationPredictor(nn.Module):
    """Two linear layers with ReLU between them, no residual: x (..., d) -> logits (..., d_ff), > 0 = active.

    Args:
        d, d_ff: width of the model and of its MLPs.
        rank: width between the layers.
    """

    def __init__(
        self,
        d: int,
        d_ff: int,
        rank: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("d", d), ("d_ff", d_ff), ("rank", rank)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, wanted 1 or more")
        self.down = nn.Linear(d, rank, device=device, dtype=dtype)
        self.up = nn.Linear(rank, d_ff, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d_ff) logits."""
        logits: Tensor = self.up(torch.relu(self.down(x)))
        return logits


def predictor_metrics(active: Tensor, score: Tensor) -> tuple[float, float]:
    """Activation recall and predicted sparsity, over all elements together.

    Args:
        active: bool, of any shape: x1 != 0.
        score: logits of the same shape; > 0 is predicted active.

    Returns:
        (predicted and active / active, predicted inactive / all). The recall is NaN where nothing is active; both are
        for empty tensors.

    Raises ValueError where the shapes differ, TypeError where `active` is not bool.
    """
    if active.dtype != torch.bool:
        raise TypeError(f"active: got {active.dtype}, wanted bool")
    if active.shape != score.shape:
        raise ValueError(f"score: got shape {tuple(score.shape)}, wanted that of active, {tuple(active.shape)}")
    predicted = score > 0
    n_active, n = int(active.sum()), active.numel()
    recall = int((predicted & active).sum()) / n_active if n_active else float("nan")
    return recall, int((~predicted).sum()) / n if n else float("nan")


def default_rank(d: int) -> int:
    """1024 at the width of the 7B model and above, a quarter of a smaller width."""
    return RANK_AT_7B if d >= WIDTH_OF_7B else max(1, d // 4)


def fit_predictors(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    rank: int | None = None,
    *,
    max_pairs: int = 400_000,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[ActivationPredictor]:
    """Train a predictor for every gated MLP of `model`, in its order, on its own inputs and activations.

    Each layer has its own pass over `batches`, so that the pairs of one layer are in memory at a time. A twentieth of
    the tokens is held out; what is returned is the state of the epoch with the highest recall there.

    Args:
        batches: dictionaries for `model(**batch)`; tokens with `attention_mask` 0 are left out.
        rank: width of the predictors, `default_rank` of the model's width by default.
        max_pairs: tokens used, the first ones.
        epochs, batch_size, lr: of Adam.
        seed: makes weights, split and order.

    Raises ValueError for a model without gated MLPs or batches with fewer than two valid tokens.
    """
    kept = list(batches)
    predictors = []
    for index, (_, module) in enumerate(find_gated_mlps(model)):
        inputs, active = active_channels(model, kept, index, max_pairs)
        if len(inputs) < 2:
            raise ValueError(f"batches: got {len(inputs)} valid tokens, wanted at least 2")
        d, d_ff = inputs.shape[1], active.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + index)
            predictor = ActivationPredictor(d, d_ff, default_rank(d) if rank is None else rank)
        order = torch.Generator().manual_seed(seed + index)
        device = next(module.parameters()).device
        _fit(predictor.to(device), inputs, active, order, epochs=epochs, batch_size=batch_size, lr=lr)
        predictors.append(predictor.eval())
    return predictors


@torch.no_grad()
def active_channels(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], layer: int, max_pairs: int = 400_000
) -> tuple[Tensor, Tensor]:
    """What the predictor of one layer learns: inputs of the MLP (N, d) and x1 != 0, bool (N, d_ff), on the CPU.

    Of the first `max_pairs` valid tokens of `batches`. Raises ValueError for a model without gated MLPs, or no batch.
    """
    name = find_gated_mlps(model)[layer].name
    names = [f"{name}.{part}" if name else part for part in ("gate_proj", "down_proj")]
    device = next(model.parameters()).device
    inputs: list[Tensor] = []
    active: list[Tensor] = []
    found, was_training = 0, model.training
    model.eval()
    try:
        with Recorder(model, names) as recorder:
            for batch in batches:
                model(**{key: value.to(device) for key, value in batch.items()})
                mask: Any = batch.get("attention_mask")
                x, x1 = (valid(values[-1], mask)[: max_pairs - found].cpu() for values in recorder.values.values())
                inputs.append(x)
                active.append(x1 != 0)
                found += len(x)
                if found >= max_pairs:
                    break
    finally:
        model.train(was_training)
    if not inputs:
        raise ValueError("batches: got none, wanted at least one")
    return torch.cat(inputs), torch.cat(active)


def _fit(
    predictor: ActivationPredictor,
    inputs: Tensor,
    active: Tensor,
    order: torch.Generator,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
) -> None:
    device = predictor.down.weight.device
    shuffled = torch.randperm(len(inputs), generator=order)
    held, used = shuffled.tensor_split([max(1, round(HELD_OUT * len(inputs)))])
    optimizer = torch.optim.Adam(predictor.parameters(), lr=lr)
    best: tuple[float, dict[str, Tensor]] | None = None
    for _ in range(epochs):
        for part in used[torch.randperm(len(used), generator=order)].split(batch_size):
            logits = predictor(inputs[part].to(device, torch.float32))
            loss = functional.binary_cross_entropy_with_logits(logits, active[part].to(device, torch.float32))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        recall = _recall(predictor, inputs[held], active[held], batch_size)
        if best is None or recall > best[0]:
            best = recall, copy.deepcopy(predictor.state_dict())
    if best is not None:
        predictor.load_state_dict(best[1])


@torch.no_grad()
def _recall(predictor: ActivationPredictor, inputs: Tensor, active: Tensor, batch_size: int) -> float:
    device = predictor.down.weight.device
    scores = torch.cat([predictor(part.to(device, torch.float32)).cpu() for part in inputs.split(batch_size)])
    recall, _ = predictor_metrics(active, scores)
    return 0.0 if recall != recall else recall  # nothing active: no epoch is better than another
