"""CRReLU beside the activations one would use instead, on a ViT-Base layer's tensor and on one that stays in cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from paperworks.activations.crrelu import CRReLU
from paperworks.lab.benchmark import Case
from paperworks.papers.protocols.composites import CompositeCRReLU

LARGE, SMALL = (64, 197, 768), (4, 65, 192)
METHOD = "CRReLU"
Call = Callable[[], object]


def compiled_composite() -> nn.Module:
    """The formula in separate operations, fused by torch.compile. Raises ImportError where nothing can compile it."""
    module = CompositeCRReLU()
    module.compile()
    try:
        module(torch.zeros(8, requires_grad=True)).sum().backward()
    except Exception as error:  # Dynamo, Inductor and a missing C++ compiler each have an exception of their own
        raise ImportError(f"torch.compile does not work here: {type(error).__name__}") from error
    return module


def timm_activation(name: str) -> nn.Module:
    """One of timm's memory-efficient activations."""
    from timm.layers import activations_me

    module: nn.Module = getattr(activations_me, name)()
    return module


CONTENDERS: Mapping[str, Callable[[], nn.Module]] = {
    METHOD: CRReLU,
    "CRReLU, separate operations": CompositeCRReLU,
    "CRReLU, torch.compile": compiled_composite,
    "nn.ReLU": nn.ReLU,
    "nn.PReLU": nn.PReLU,
    "nn.GELU": nn.GELU,
    "nn.SiLU": nn.SiLU,
    "timm SwishMe": partial(timm_activation, "SwishMe"),
    "timm HardSwishMe": partial(timm_activation, "HardSwishMe"),
}


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A standard normal input and the gradient of the output, of the given shape."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def forward(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Call:
    """The forward pass without a graph."""
    module, (x, _) = build(), inputs(shape)

    def call() -> object:
        with torch.no_grad():
            return module(x)

    return call


def forward_and_backward(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Call:
    """The forward pass and the gradients of the input and of the parameters."""
    module, (x, gradient) = build(), inputs(shape)
    x.requires_grad_()
    wanted = [x, *module.parameters()]

    def call() -> object:
        return torch.autograd.grad(module(x), wanted, gradient)

    return call


def cases() -> list[Case]:
    """Forward, and forward with backward, at two sizes, in float32."""
    found = []
    for shape in (LARGE, SMALL):
        bytes_a_tensor = 4 * torch.Size(shape).numel()
        size = "x".join(map(str, shape))
        for name, prepare, tensors, floor in (
            ("forward", forward, 2, "read x, write y"),
            ("forward and backward", forward_and_backward, 5, "read x, write y; read x and dy, write dx"),
        ):
            found.append(
                Case(
                    f"{name}, {size}",
                    METHOD,
                    {label: partial(prepare, build, shape) for label, build in CONTENDERS.items()},
                    floor=f"{tensors} tensors of {bytes_a_tensor / 2**20:.3g} MiB: {floor}",
                    floor_bytes=tensors * bytes_a_tensor,
                )
            )
    return found
