"""ProSparse's feed-forward network of one token, at the sizes and sparsities of the paper's 7B and 13B models.

Beside it: the dense MLP of transformers, the same with zeros that dense kernels do not use, and what one writes with
torch's sparse tensors or with indexing. Every call takes another of twelve tokens, each with active rows of its own, so
that no contender finds its rows in cache. Weights are random; the threshold is where it leaves the published share.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from paperworks.efficiency.prosparse.fatrelu import FATReLU
from paperworks.efficiency.prosparse.predictor import ActivationPredictor
from paperworks.efficiency.prosparse.sparse_ffn import ffn_weights, sparse_down, sparse_up
from paperworks.efficiency.prosparse.sparse_mlp import SparseGatedMLP
from paperworks.lab.benchmark import Case

METHOD = "ProSparse"
TOKENS = 12
PREDICTED = 0.77  # predicted sparsity, as published for the released predictors (75-79 %)
Call = Callable[[], object]


class Size(NamedTuple):
    """A model's widths, the published sparsity, and the dtype of the weights."""

    name: str
    d: int
    d_ff: int
    sparsity: float
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.name} ({self.d} x {self.d_ff}), {self.sparsity:.2%} zeros, {str(self.dtype).split('.')[-1]}"

    @property
    def part(self) -> int:
        """Bytes of one of the three matrices."""
        return self.d * self.d_ff * self.dtype.itemsize


SIZES = (
    Size("7B", 4096, 11008, 0.8932, torch.float32),
    Size("7B", 4096, 11008, 0.8932, torch.bfloat16),
    Size("13B", 5120, 13824, 0.8880, torch.bfloat16),
)


class Layer(NamedTuple):
    """One layer's dense MLP, tokens (TOKENS, 1, d), their gate values, and the threshold of the wanted sparsity."""

    mlp: Any
    tokens: Tensor
    gates: Tensor
    threshold: float


@cache
def layer(size: Size) -> Layer:
    """The MLP of a Llama of this size with random weights. Raises ImportError without transformers."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        mlp = LlamaMLP(LlamaConfig(hidden_size=size.d, intermediate_size=size.d_ff)).to(size.dtype)
    mlp = mlp.to_empty(device="cpu").requires_grad_(False)
    for weight in mlp.parameters():
        weight.normal_(0, size.d**-0.5, generator=generator)
    tokens = torch.randn(TOKENS, 1, size.d, generator=generator).to(size.dtype)
    gates = torch.stack([mlp.gate_proj(token) for token in tokens])
    threshold = gates.float().flatten().kthvalue(round(size.sparsity * gates.numel())).values.item()
    return Layer(mlp, tokens, gates, threshold)


@cache
def sparse(size: Size) -> SparseGatedMLP:
    """The method on that layer: the other two matrices are shared with it."""
    return SparseGatedMLP.from_dense(layer(size).mlp, layer(size).threshold)


def over_tokens(size: Size, network: Callable[[Tensor], object]) -> Call:
    """A call that takes the next token each time."""
    turns = itertools.cycle(layer(size).tokens)

    def call() -> object:
        with torch.inference_mode():
            return network(next(turns))

    return call


def over_gates(size: Size, step: Callable[[Tensor, Tensor], object]) -> Call:
    """The same for a step that is given the gate values."""
    turns: Iterator[tuple[Tensor, Tensor]] = itertools.cycle(zip(layer(size).tokens, layer(size).gates, strict=True))

    def call() -> object:
        with torch.inference_mode():
            return step(*next(turns))

    return call


def method(size: Size) -> Call:
    """Exact: a dense gate, the rest sparse."""
    return over_tokens(size, sparse(size))


def tensor_operations(size: Size) -> Call:
    """The same without C."""
    return over_tokens(size, SparseGatedMLP.from_dense(sparse(size), backend="torch"))


def predicted(size: Size) -> Call:
    """The gate only where a predictor of rank d / 4 says; its random answers name the published share of rows."""
    first = layer(size)
    predictor = ActivationPredictor(size.d, size.d_ff, size.d // 4, dtype=size.dtype).requires_grad_(False)
    scores = torch.stack([predictor(token) for token in first.tokens]).float()
    predictor.up.bias.sub_(scores.flatten().kthvalue(round(PREDICTED * scores.numel())).values)
    return over_tokens(size, SparseGatedMLP.from_dense(sparse(size), predictor=predictor))


def dense(size: Size) -> Call:
    """The MLP that is replaced, with SiLU."""
    return over_tokens(size, layer(size).mlp)


def masked(size: Size) -> Call:
    """The same zeros as the method's, handed to dense products."""
    mlp, activation = layer(size).mlp, FATReLU(layer(size).threshold)
    return over_tokens(size, lambda x: mlp.down_proj(activation(mlp.gate_proj(x)) * mlp.up_proj(x)))


def indexed(size: Size) -> Call:
    """Gather the active rows, then multiply."""
    mlp, down_t, threshold = layer(size).mlp, sparse(size).W_down_t, layer(size).threshold

    def network(x: Tensor) -> object:
        gate = mlp.gate_proj(x).flatten()
        index = (gate >= threshold).nonzero().flatten()
        return (gate[index] * (mlp.up_proj.weight[index] @ x.flatten())) @ down_t[index]

    return over_tokens(size, network)


def csr(size: Size) -> Call:
    """Step 3 with x1 as a CSR tensor; step 2 is dense, since torch has no product for it."""
    mlp, down_t, activation = layer(size).mlp, sparse(size).W_down_t, FATReLU(layer(size).threshold)
    _csr_or_missing(size)

    def network(x: Tensor) -> object:
        return (activation(mlp.gate_proj(x)) * mlp.up_proj(x)).to_sparse_csr() @ down_t

    return over_tokens(size, network)


def _csr_or_missing(size: Size) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CSR tensors are called a beta feature
            torch.eye(2, dtype=size.dtype).to_sparse_csr() @ torch.eye(2, dtype=size.dtype)
    except RuntimeError as error:
        raise ImportError(f"torch's CSR product does not take {size.dtype}: {error}".splitlines()[0]) from error


FFN: Mapping[str, Callable[[Size], Call]] = {
    METHOD: method,
    "ProSparse, PAPERWORKS_NATIVE=0": tensor_operations,
    "ProSparse with a predictor (inexact)": predicted,
    "transformers LlamaMLP, SiLU": dense,
    "dense products of the masked x1": masked,
    "index, then multiply": indexed,
    "torch.sparse CSR for step 3": csr,
}


def step_up(size: Size, how: str) -> Call:
    """Step 2: x1 given the gate values."""
    W, t = layer(size).mlp.up_proj.weight, layer(size).threshold
    ways: dict[str, Callable[[Tensor, Tensor], object]] = {
        METHOD: lambda x, gate: sparse_up(x, gate, W, t),
        "dense": lambda x, gate: gate.masked_fill(gate < t, 0.0) * F.linear(x, W),
        "index, then multiply": lambda x, gate: W[(gate >= t).flatten().nonzero().flatten()] @ x.flatten(),
    }
    return over_gates(size, ways[how])


def step_down(size: Size, how: str) -> Call:
    """Step 3: the output given x1, which is taken to be the gate values above the threshold."""
    W, W_t, activation = layer(size).mlp.down_proj.weight, sparse(size).W_down_t, FATReLU(layer(size).threshold)

    def bag(x1: Tensor) -> object:
        index = x1.flatten().nonzero().T
        return F.embedding_bag(index, W_t, mode="sum", per_sample_weights=x1.flatten()[index])

    ways: dict[str, Callable[[Tensor], object]] = {
        METHOD: lambda x1: sparse_down(x1, W_t),
        "dense": lambda x1: F.linear(x1, W),
        "index, then multiply": lambda x1: x1[x1 != 0] @ W_t[x1.flatten().nonzero().flatten()],
        "embedding_bag": bag,
        "torch.sparse CSR": lambda x1: x1.to_sparse_csr() @ W_t,
    }
    if "CSR" in how:
        _csr_or_missing(size)
    return over_gates(size, lambda _, gate: ways[how](activation(gate)))


def cases() -> list[Case]:
    """The whole network, and its steps 2 and 3 alone."""
    found = []
    for size in SIZES:
        read = round(ffn_weights(size.d, size.d_ff, size.sparsity)[0]) * size.dtype.itemsize
        found.append(
            Case(
                f"one token, {size}",
                METHOD,
                {name: partial(prepare, size) for name, prepare in FFN.items()},
                floor=f"{read / 2**20:.0f} MiB of weights read, of {3 * size.part / 2**20:.0f} MiB: at most "
                f"{3 * size.part / read:.2f} times as fast as the dense MLP at its bandwidth",
                floor_bytes=read,
            )
        )
    for size in SIZES[:2]:
        read = round((1 - size.sparsity) * size.part)
        up = (METHOD, "dense", "index, then multiply")
        down = (*up, "embedding_bag", "torch.sparse CSR")
        for step, function, names in (("step 2", step_up, up), ("step 3", step_down, down)):
            found.append(
                Case(
                    f"{step}, {size}",
                    METHOD,
                    {name: partial(function, size, name) for name in names},
                    floor=f"{read / 2**20:.1f} MiB of active rows of {size.part / 2**20:.0f} MiB",
                    floor_bytes=read,
                )
            )
    return found
