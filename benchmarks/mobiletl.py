"""MobileTL beside other ways to fine-tune the last blocks: training steps, and the pass of norm and activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from paperworks.efficiency.mobiletl import ShiftOnlyNorm2d, SignedHardswish, mobiletl
from paperworks.lab.benchmark import Case
from paperworks.papers.protocols.mobilenets import mobilenet_v2, mobilenet_v3_large
from paperworks.papers.protocols.transfer_arms import whole_blocks
from paperworks.surgery.inverted_residuals import find_inverted_residuals, inverted_residuals

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "MobileNetV2": mobilenet_v2,
    "MobileNetV3-Large": mobilenet_v3_large,
}
METHOD = "MobileTL"
BATCH, SIDE, BLOCKS = 4, 224, 5
Call = Callable[[], object]


def signed(model: nn.Module) -> nn.Module:
    """The method."""
    return mobiletl(model, BLOCKS).model


def two_bits(model: nn.Module) -> nn.Module:
    """The method with two bits for hard-swish."""
    return mobiletl(model, BLOCKS, backward="two_bit").model


def recomputed(model: nn.Module) -> nn.Module:
    """Fine-tuning of the same blocks, each computed again in the backward pass."""
    whole_blocks(model, BLOCKS)
    for _, block in find_inverted_residuals(model)[-BLOCKS:]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model


def lora(model: nn.Module) -> nn.Module:
    """peft's LoRA of rank 8 on the pointwise convolutions of the same blocks, and the classifier."""
    import peft

    blocks = inverted_residuals(model)[-BLOCKS:]
    targets = [stage.convolution for block in blocks for stage in (*block.inner, block.project)]
    pointwise = [name for name in targets if model.get_submodule(name).kernel_size == (1, 1)]
    config = peft.LoraConfig(r=8, target_modules=pointwise, modules_to_save=["classifier"])
    return peft.get_peft_model(model, config)


def timm_freeze(model: nn.Module) -> nn.Module:
    """timm's `freeze` of what lies below the same blocks."""
    from timm.utils import freeze

    first = find_inverted_residuals(model)[-BLOCKS][0]
    below = int(first.rpartition(".")[2])
    freeze(model, [f"features.{i}" for i in range(below)])
    return model


CONTENDERS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    METHOD: signed,
    "MobileTL, two bits": two_bits,
    "fine-tuning the same blocks": partial(whole_blocks, blocks=BLOCKS),
    "fine-tuning, recomputed (torch checkpoint)": recomputed,
    "LoRA of the same blocks (peft)": lora,
    "timm freeze": timm_freeze,
}


def step(prepare: Callable[[nn.Module], nn.Module], build: Callable[..., nn.Module]) -> Call:
    """Forward, backward and Adam on one batch."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = prepare(build(10)).train()
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator), torch.arange(BATCH)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def call() -> object:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


class _SignTensors(nn.Module):
    """Shift and hard-swish by the sign rule in separate tensor operations, a byte a value."""

    def __init__(self, norm: ShiftOnlyNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        act, self.norm.act = self.norm.act, None
        z = self.norm(x)
        self.norm.act = act
        through = z.relu()
        return through + (functional.hardswish(z) - through).detach()


def passes(kind: str) -> Call:
    """Forward and backward of norm and hard-swish on the wide map of a MobileNetV3-Large block."""
    norm = nn.BatchNorm2d(960).eval()
    modules: dict[str, Callable[[], nn.Module]] = {
        METHOD: lambda: ShiftOnlyNorm2d.from_norm(norm, SignedHardswish()),
        "MobileTL, two bits": lambda: ShiftOnlyNorm2d.from_norm(norm, SignedHardswish("two_bit")),
        "separate tensor operations": lambda: _SignTensors(ShiftOnlyNorm2d.from_norm(norm)),
        "batch norm in eval mode and hard-swish": lambda: nn.Sequential(norm, nn.Hardswish()),
        "batch norm in train mode and hard-swish": lambda: nn.Sequential(nn.BatchNorm2d(960), nn.Hardswish()),
    }
    module = modules[kind]()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 960, 14, 14, generator=generator).requires_grad_()
    g = torch.randn(x.shape, generator=generator)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    return lambda: torch.autograd.grad(module(x), wanted, g)


KINDS = (
    METHOD,
    "MobileTL, two bits",
    "separate tensor operations",
    "batch norm in eval mode and hard-swish",
    "batch norm in train mode and hard-swish",
)


def cases() -> list[Case]:
    """A training step of each network, and the wide part of one block."""
    found = [
        Case(
            f"{name}: step, the last {BLOCKS} blocks, {BATCH} images of {SIDE} pixels",
            METHOD,
            {label: partial(step, prepare, build) for label, prepare in CONTENDERS.items()},
            floor="the forward pass of the whole network, and twice that of what trains",
        )
        for name, build in NETWORKS.items()
    ]
    bytes_a_map = 4 * 32 * 960 * 14 * 14
    moved = 4 * bytes_a_map + bytes_a_map // 16
    found.append(
        Case(
            "norm and hard-swish, forward and backward, 32x960x14x14",
            METHOD,
            {kind: partial(passes, kind) for kind in KINDS},
            floor=f"{moved / 2**20:.0f} MiB: read x, write y and bits; read bits and dy, write dx",
            floor_bytes=moved,
        )
    )
    return found
