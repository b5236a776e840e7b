"""Calls to time: the feed-forward network of one token at the real sizes, dense and sparse, on equal tensors.

Each function of a trial prepares its call; size, sparsity and dtype are options. At the tier `smoke` widths are an
eighth. Every call takes another of a few tokens. Weights are random numbers that repeat: times do not depend on them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperworks.efficiency.prosparse.sparse_ffn import sparse_down as skip_down
from paperworks.efficiency.prosparse.sparse_ffn import sparse_up as skip_up
from paperworks.efficiency.prosparse.sparse_mlp import SparseGatedMLP
from paperworks.lab.trial import Trial

Call = Callable[[], object]
DISTINCT = (1 << 20) - 3
"""Random numbers drawn a matrix: a prime, so that no two rows are alike."""
TOKENS = 8


class DenseGatedMLP(nn.Module):
    """The MLP of a Llama with SiLU, as transformers computes it, with the given weights and no biases."""

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = map(_linear, (gate, up, down))
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return y


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


def weights(trial: Trial, purpose: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns) on the trial's device, of the size that a linear layer starts with."""
    drawn = torch.randn(DISTINCT, generator=trial.generator(purpose), dtype=torch.float64) / math.sqrt(columns)
    repeats = -(-rows * columns // DISTINCT)
    return drawn.to(trial.device, dtype).repeat(repeats)[: rows * columns].view(rows, columns)


def random_mlp(
    trial: Trial, d: int, d_ff: int, sparsity: float, dtype: str = "float32"
) -> tuple[DenseGatedMLP, Tensor, float]:
    """A gated MLP, a token (1, d), and the threshold, between two of its gate values, with the share `sparsity` below.

    The rows of the gate are turned so that all gate values of the token are positive: every sparsity can be had.
    """
    kind: torch.dtype = getattr(torch, dtype)
    x = torch.randn(1, d, generator=trial.generator("token")).to(trial.device, kind)
    W_gate = weights(trial, "gate", d_ff, d, kind)
    W_gate.mul_(torch.where(functional.linear(x, W_gate).T < 0, -1.0, 1.0).to(kind))
    ordered = functional.linear(x, W_gate).double().flatten().sort().values
    below = round(sparsity * d_ff)
    neighbours = ordered[max(0, below - 1) : below + 1]
    threshold = float(neighbours.mean()) if below < d_ff else 2 * float(ordered[-1])
    mlp = DenseGatedMLP(W_gate, weights(trial, "up", d_ff, d, kind), weights(trial, "down", d, d_ff, kind))
    return mlp, x, threshold


def _widths(trial: Trial, d: int, d_ff: int) -> tuple[int, int]:
    scale = 8 if trial.tier == "smoke" else 1
    return d // scale, d_ff // scale


def _normal(trial: Trial, purpose: str, width: int, dtype: str) -> Tensor:
    """(TOKENS, 1, width) standard normal numbers."""
    drawn = torch.randn(TOKENS, 1, width, generator=trial.generator(purpose))
    return drawn.to(trial.device, getattr(torch, dtype))


def _quantile(values: Tensor, share: float) -> float:
    return float(values.float().flatten().kthvalue(round(share * values.numel())).values)


def _in_turn(function: Callable[..., Tensor], *operands: Tensor) -> Call:
    """A call that takes the next token each time: the active rows of one token would stay in cache."""
    turns = itertools.cycle(zip(*operands, strict=True))

    def call() -> Tensor:
        with torch.inference_mode():
            return function(*next(turns))

    return call


def _step_2(trial: Trial, d: int, d_ff: int, sparsity: float, dtype: str) -> tuple[Tensor, Tensor, Tensor, float]:
    """Tokens, their gate values, W_up and the threshold."""
    d, d_ff = _widths(trial, d, d_ff)
    gates = _normal(trial, "gates", d_ff, dtype)
    W_up = weights(trial, "up", d_ff, d, gates.dtype)
    return _normal(trial, "tokens", d, dtype), gates, W_up, _quantile(gates, sparsity)


def dense_up(trial: Trial, d: int, d_ff: int, sparsity: float, dtype: str = "float32") -> Call:
    """Step 2 dense: the product with W_up, then with the activated gate values."""
    x, gates, W_up, t = _step_2(trial, d, d_ff, sparsity, dtype)
    return _in_turn(lambda token, gate: gate * functional.linear(token, W_up), x, gates.masked_fill(gates < t, 0.0))


def sparse_up(trial: Trial, d: int, d_ff: int, sparsity: float, dtype: str = "float32", backend: str = "auto") -> Call:
    """Step 2 by `paperworks.efficiency.prosparse.sparse_ffn.sparse_up`."""
    x, gates, W_up, t = _step_2(trial, d, d_ff, sparsity, dtype)
    return _in_turn(lambda token, gate: skip_up(token, gate, W_up, t, backend=backend), x, gates)


def _step_3(trial: Trial, d: int, d_ff: int, sparsity: float, dtype: str) -> tuple[Tensor, Tensor]:
    """x1 of the tokens, and W_down."""
    d, d_ff = _widths(trial, d, d_ff)
    gates = _normal(trial, "gates", d_ff, dtype)
    x1 = gates.masked_fill(gates < _quantile(gates, sparsity), 0.0)
    return x1, weights(trial, "down", d, d_ff, gates.dtype)


def dense_down(trial: Trial, d: int, d_ff: int, sparsity: float, dtype: str = "float32") -> Call:
    """Step 3 dense: the product of x1 with W_down."""
    x1, W_down = _step_3(trial, d, d_ff, sparsity, dtype)
    return _in_turn(lambda token: functional.linear(token, W_down), x1)


def sparse_down(
    trial: Trial, d: int, d_ff: int, sparsity: float, dtype: str = "float32", backend: str = "auto"
) -> Call:
    """Step 3 by `paperworks.efficiency.prosparse.sparse_ffn.sparse_down`, on W_down transposed once."""
    x1, W_down = _step_3(trial, d, d_ff, sparsity, dtype)
    W_down_t = W_down.T.contiguous()
    return _in_turn(lambda token: skip_down(token, W_down_t, backend=backend), x1)


@functools.lru_cache(maxsize=1)
def _network(seed: int, device: str, d: int, d_ff: int, dtype: str) -> tuple[DenseGatedMLP, Tensor]:
    """The MLP and tokens that the two calls timed beside each other share."""
    trial = Trial(seed, device=device)
    x = _normal(trial, "tokens", d, dtype)
    gate, up = (weights(trial, name, d_ff, d, x.dtype) for name in ("gate", "up"))
    return DenseGatedMLP(gate, up, weights(trial, "down", d, d_ff, x.dtype)), x


def dense_ffn(trial: Trial, d: int, d_ff: int, sparsity: float, dtype: str = "float32") -> Call:
    """The whole feed-forward network of one token, dense, with SiLU: what is replaced. The sparsity is not used."""
    mlp, x = _network(trial.seed, trial.device, *_widths(trial, d, d_ff), dtype)
    return _in_turn(mlp, x)


def sparse_mlp(trial: Trial, d: int, d_ff: int, sparsity: float, dtype: str = "float32", backend: str = "auto") -> Call:
    """The whole feed-forward network of one token by `SparseGatedMLP`, its gate product included."""
    mlp, x = _network(trial.seed, trial.device, *_widths(trial, d, d_ff), dtype)
    threshold = _quantile(mlp.gate_proj(x), sparsity)
    return _in_turn(SparseGatedMLP.from_dense(mlp, threshold, backend=backend), x)
