"""DIMAP beside what one would prune a Swin with instead, and what squeezing a pruned network buys."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from paperworks.efficiency.dimap import dimap_masks, dimap_prune, find_modules, squeeze
from paperworks.lab.benchmark import Case
from paperworks.papers.protocols.pruning_networks import SWINS, real_swin
from paperworks.surgery.swin_parts import find_mlps

METHOD = "DIMAP"
RATIO = 0.55
IMAGE = 224
Call = Callable[[], object]


def network(name: str) -> nn.Module:
    """A Swin at its real size with random weights. Raises ImportError without transformers."""
    return real_swin(name, "cpu", torch.Generator().manual_seed(0))


def linears(model: nn.Module) -> list[nn.Linear]:
    """The prunable layers."""
    return [linear for pairs in find_modules(model).values() for _, linear in pairs]


def dimap(name: str, **options: object) -> Call:
    """Masks of the three modules; the network stays as it is."""
    model = network(name)
    return lambda: dimap_masks(model, RATIO, **options)  # type: ignore[arg-type]


def torch_global(name: str) -> Call:
    """`torch.nn.utils.prune.global_unstructured` with L1, on all layers as one; its masks are taken off again."""
    from torch.nn.utils import prune

    layers = linears(network(name))

    def call() -> None:
        prune.global_unstructured([(x, "weight") for x in layers], prune.L1Unstructured, amount=RATIO)
        for layer in layers:
            weight = layer.weight_orig
            del layer.weight_mask
            layer._forward_pre_hooks.clear()
            del layer._parameters["weight_orig"]
            layer.__dict__.pop("weight", None)
            layer.weight = weight  # type: ignore[assignment]

    return call


def lamp_by_sorting(name: str) -> Call:
    """The same scores with `torch.sort` and a sum of squares by layer, then one sort of all scores of a module."""
    model = network(name)

    def score(weight: torch.Tensor) -> torch.Tensor:
        ordered, index = weight.detach().abs().flatten().sort(descending=True)
        squares = ordered.double().square()
        return torch.empty_like(squares).scatter_(0, index, squares / squares.cumsum(0))

    def call() -> object:
        made = []
        for pairs in find_modules(model).values():
            scores = torch.cat([score(linear.weight) for _, linear in pairs])
            order = scores.argsort()
            mask = torch.ones(len(scores), dtype=torch.bool)
            mask[order[: round(RATIO * len(scores))]] = False
            made.append(mask)
        return made

    return call


def torch_pruning_lamp(name: str) -> Call:
    """torch-pruning's LAMP importance of whole channels of the MLPs: structured, so another thing is removed."""
    import torch_pruning

    model = network(name)
    pairs = [(mlp.fc1[1], mlp.fc2[1]) for mlp in find_mlps(model)]
    image = torch.zeros(1, 3, IMAGE, IMAGE)
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, example_inputs=image, output_transform=lambda output: output.logits
    )
    groups = [
        graph.get_pruning_group(fc1, torch_pruning.prune_linear_out_channels, list(range(fc1.out_features)))
        for fc1, _ in pairs
    ]
    importance = torch_pruning.importance.LAMPImportance(p=2)
    return lambda: [importance(group) for group in groups]


def forward(squeezed: bool) -> Call:
    """Forward pass of Swin-T for one image; a third of its hidden neurons are as good as 0 and die at 55 %."""
    model = network("Swin-T")
    with torch.no_grad():
        for mlp in find_mlps(model):
            mlp.fc1[1].weight[::3] *= 1e-3
    dimap_prune(model, RATIO, permanent=True)
    used = squeeze(model) if squeezed else copy.deepcopy(model)
    image = torch.randn(1, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))

    def call() -> object:
        with torch.no_grad():
            return used(image).logits

    return call


PEERS: Mapping[str, Callable[[str], Call]] = {
    METHOD: dimap,
    "uniform magnitude": partial(dimap, grouping="layer", criterion="magnitude"),
    "the same scores by sorting": lamp_by_sorting,
    "torch prune.global_unstructured": torch_global,
    "torch-pruning LAMP, channels of the MLPs": torch_pruning_lamp,
}


def cases() -> list[Case]:
    """Masks of Swin-T and Swin-B at 55 %, and the forward pass of a squeezed Swin-T."""
    found = []
    for name in ("Swin-T", "Swin-B"):
        width, depths, _ = SWINS[name]
        weights = sum(12 * (width * 2**i) ** 2 * blocks for i, blocks in enumerate(depths))
        found.append(
            Case(
                f"{name}, masks at {RATIO:.0%}",
                METHOD,
                {label: partial(prepare, name) for label, prepare in PEERS.items()},
                floor=f"{weights / 1e6:.1f} M float32 weights read, as many bytes of mask written; the work is a sort",
                floor_bytes=5 * weights,
            )
        )
    found.append(
        Case(
            "Swin-T forward, a third of the neurons dead",
            "squeezed",
            {"squeezed": partial(forward, True), "with zeros": partial(forward, False)},
            floor="the multiply-adds of the neurons that live",
        )
    )
    return found
