"""Checks behind the exact claims: the published schedules, what a sparse network needs of its weights, exactness."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch

from paperworks.efficiency import prosparse
from paperworks.efficiency.prosparse.sparse_mlp import SparseGatedMLP
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.sparse_ffn_calls import random_mlp


@dataclass
class Factors:
    """What the factors of schedules show: differences to the peaks, to the means half way through the later stages, to
    the peak of the first stage; the factors before it; how far a factor falls from one step to the next.
    """

    at_peaks: list[float] = field(default_factory=list)
    half_way: list[float] = field(default_factory=list)
    first_stage: list[float] = field(default_factory=list)
    substitution: list[float] = field(default_factory=list)
    falls: list[float] = field(default_factory=list)


def published_factors() -> Factors:
    """Over every step of the schedules of the 7B, 13B and 1B models."""
    found = Factors()
    for name in ("7b", "13b", "1b"):
        schedule = prosparse.published_schedule(name)
        factors = [schedule.factor(step) for step in range(schedule.steps[-1] + 1)]
        found.substitution += factors[: schedule.start + 1]
        found.first_stage += [abs(f - schedule.peaks[0]) for f in factors[schedule.start + 1 : schedule.steps[0] + 1]]
        found.falls += [a - b for a, b in itertools.pairwise(factors)]
        found.at_peaks += [abs(factors[end] - peak) for peak, end in zip(schedule.peaks, schedule.steps, strict=True)]
        stages = zip(itertools.pairwise(schedule.peaks), itertools.pairwise(schedule.steps), strict=True)
        for (low, high), (begin, end) in stages:
            found.half_way.append(abs(factors[(begin + end) // 2] - (low + high) / 2))
    return found


@dataclass(frozen=True)
class WeightsNeeded:
    """Of one token: active channels, all channels, and what becomes of the output without the other weights."""

    active: int
    channels: int
    change: float

    @property
    def share(self) -> float:
        """Steps 1 to 3 read d_ff + 2 active rows of 3 d_ff."""
        return (self.channels + 2 * self.active) / (3 * self.channels)


@torch.inference_mode()
def weights_needed(trial: Trial, d: int, d_ff: int, sparsity: float) -> WeightsNeeded:
    """Counted from the active channels, and shown by overwriting the weights that should not be read with NaN."""
    mlp, x, threshold = random_mlp(trial, d, d_ff, sparsity)
    sparse = SparseGatedMLP.from_dense(mlp, threshold)
    before = sparse(x)
    inactive = (sparse.gate_proj(x) < threshold)[0]
    sparse.up_proj.weight[inactive] = float("nan")
    sparse.down_proj.weight[:, inactive] = float("nan")
    return WeightsNeeded(d_ff - int(inactive.sum()), d_ff, float((sparse(x) - before).abs().max()))


@torch.inference_mode()
def difference_to_dense(trial: Trial, d: int, d_ff: int, sparsity: float, dtype: str) -> float:
    """The largest difference of sparse and dense output with FATReLU, over the largest output; the output at 1."""
    mlp, x, threshold = random_mlp(trial, d, d_ff, sparsity, dtype)
    gate = mlp.gate_proj(x)
    expected = mlp.down_proj(torch.where(gate >= threshold, gate, 0) * mlp.up_proj(x))
    difference = (SparseGatedMLP.from_dense(mlp, threshold)(x) - expected).abs().max()
    return float(difference / expected.abs().max().clamp(min=1e-300 if dtype == "float64" else 1e-30))
