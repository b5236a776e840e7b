"""AF-KAN beside the layers one would use instead: a training step and inference of 784-64-10."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from paperworks.lab.benchmark import Case
from paperworks.papers.protocols import af_kan_arms as arms

METHOD = "AF-KAN"
Call = Callable[[], object]


def compiled() -> nn.Module:
    """The straightforward form, fused by torch.compile. Raises ImportError where nothing can compile it."""
    network = arms.straightforward_af_kan(784, 10, width=64)
    network.compile()
    try:
        network(torch.zeros(8, 784)).sum().backward()
    except Exception as error:  # Dynamo, Inductor and a missing C++ compiler each have an exception of their own
        raise ImportError(f"torch.compile does not work here: {type(error).__name__}") from error
    return network


def pykan() -> nn.Module:
    """pykan's network of the same shape, grid 5 and order 3. Raises ImportError where pykan is not installed."""
    from kan import KAN

    network: nn.Module = KAN([784, 64, 10], grid=5, k=3, symbolic_enabled=False, auto_save=False)
    return network


CONTENDERS: Mapping[str, Callable[[], nn.Module]] = {
    METHOD: partial(arms.af_kan, 784, 10, width=64),
    "AF-KAN, straightforward": partial(arms.straightforward_af_kan, 784, 10, width=64),
    "AF-KAN, torch.compile": compiled,
    "MLP with LayerNorm": partial(arms.layer_norm_mlp, 784, 10, width=64),
    "ReLU-KAN": partial(arms.relu_kan, 784, 10, width=64),
    "EfficientKAN": partial(arms.efficient_kan, 784, 10, width=64),
    "FastKAN": partial(arms.fast_kan, 784, 10, width=64),
    "pykan": pykan,
}


def training(build: Callable[[], nn.Module], batch: int) -> Call:
    """Forward and backward, without optimizer; the input wants no gradient."""
    network, (x, gradient) = build(), inputs(batch)

    def call() -> object:
        network.zero_grad()
        network(x).backward(gradient)
        return network

    return call


def inference(build: Callable[[], nn.Module], batch: int) -> Call:
    """The forward pass without a graph."""
    network, (x, _) = build().eval(), inputs(batch)

    def call() -> object:
        with torch.no_grad():
            return network(x)

    return call


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels in [-1, 1] and a gradient of the logits."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(batch, 784, generator=generator) - 1, torch.randn(batch, 10, generator=generator)


def cases() -> list[Case]:
    """A training step and inference at a batch of 256, in float32."""
    batch, entries = 256, 256 * (784 + 64)
    products = 2 * 256 * (784 * 64 + 64 * 10)
    found = []
    for name, prepare, matrices, passes in (("training step", training, 3, 2), ("inference", inference, 1, 1)):
        found.append(
            Case(
                f"{name}, 784-64-10, batch {batch}",
                METHOD,
                {label: partial(prepare, build, batch) for label, build in CONTENDERS.items()},
                floor=f"{matrices * products / 1e6:.0f} million operations in matrix products; 6 terms and "
                f"{passes} exponential(s) for each of {entries:,} inputs",
            )
        )
    return found
