"""SWTformer's localisation maps beside Grad-CAM on the same Swin, and its seeds beside the form of its parent.

Swin-T has the same weights everywhere. Grad-CAM at the last norm needs one backward pass for each class, and gives the
maps of version 1 (see the card): version 1 and Grad-CAM do the same work. Maps are not enlarged to the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from paperworks.lab.benchmark import Case
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.state_dicts import swin_state_dict
from paperworks.swin.swtformer import SWTformer, normalize_cam, structure_seeds

CLASSES, LABELLED = 20, (2, 7, 14)
Call = Callable[[], Tensor]


@lru_cache(maxsize=1)
def classifier() -> SwinClassifier:
    """Swin-T with random weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return SwinClassifier(CLASSES).eval()


@lru_cache(maxsize=1)
def theirs() -> Any:
    """Swin-T of transformers with the same weights. Raises ImportError without it."""
    from transformers import SwinConfig, SwinForImageClassification

    model = SwinForImageClassification(SwinConfig(num_labels=CLASSES)).eval()
    weights = swin_state_dict(classifier(), "transformers")
    model.load_state_dict({name if name in model.state_dict() else f"swin.{name}": w for name, w in weights.items()})
    return model


def swtformer(backbone: Callable[[], Any], version: int, image: Tensor, labels: Tensor) -> Call:
    """Maps of the labelled classes in one forward pass: class maps, or prototype maps."""
    model, head = SWTformer(backbone(), CLASSES, version).eval(), classifier().head
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        model.head.weight.copy_(head.weight[:, :, None, None])

    @torch.no_grad()
    def call() -> Tensor:
        out = model(image, labels)
        found = out.norm_cam if out.prototype_map is None else out.prototype_map
        return found[0, [label + 1 for label in LABELLED]]

    return call


def grad_cam(image: Tensor) -> Call:
    """Grad-CAM at the last norm of transformers' Swin: a forward pass, and a backward pass for each labelled class."""
    model, seen = theirs(), []
    model.swin.layernorm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    side = image.shape[-1] // 32

    def call() -> Tensor:
        seen.clear()
        logits = model(image, interpolate_pos_encoding=True).logits[0]
        tokens = seen[-1]
        maps = []
        for label in LABELLED:
            (grad,) = torch.autograd.grad(logits[label], tokens, retain_graph=True)
            maps.append((tokens * grad.mean(1, keepdim=True)).sum(-1))
        return normalize_cam(side**2 * torch.stack(maps, 1).detach().view(1, len(LABELLED), side, side))[0]

    return call


def grad_cam_of_inputs(image: Tensor) -> Call:
    """As the package grad-cam runs it: the whole model forward and backward for each class."""
    model, seen = theirs(), []
    model.swin.layernorm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    side = image.shape[-1] // 32

    def call() -> Tensor:
        maps = []
        for label in LABELLED:
            seen.clear()
            model.zero_grad()
            logits = model(image, interpolate_pos_encoding=True).logits[0]
            seen[-1].retain_grad()
            logits[label].backward()
            maps.append((seen[-1] * seen[-1].grad.mean(1, keepdim=True)).sum(-1))
        return normalize_cam(side**2 * torch.stack(maps, 1).detach().view(1, len(LABELLED), side, side))[0]

    return call


def grad_cam_package(image: Tensor) -> Call:
    """The package grad-cam on transformers' Swin. Raises ImportError without it."""
    package: Any = import_module("pytorch_grad_cam")
    targets: Any = import_module("pytorch_grad_cam.utils.model_targets")

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = theirs()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x, interpolate_pos_encoding=True).logits

    side = image.shape[-1] // 32
    cam = package.GradCAM(
        model=Logits(),
        target_layers=[theirs().swin.layernorm],
        reshape_transform=lambda tokens: tokens.unflatten(1, (side, side)).movedim(-1, 1),
    )

    def call() -> Tensor:
        maps = [cam(input_tensor=image, targets=[targets.ClassifierOutputTarget(label)])[0] for label in LABELLED]
        return torch.stack([torch.from_numpy(one) for one in maps])

    return call


def seeds_blockwise(maps: Tensor, features: Tensor, labels: Tensor) -> Call:
    """Seeds from rows of the correlations."""
    return lambda: structure_seeds(maps, features, labels)


def seeds_broadcast(maps: Tensor, features: Tensor, labels: Tensor) -> Call:
    """Seeds as the parent computes them: an intersection of every map with every row, (B, K + 1, hw, hw)."""

    @torch.no_grad()
    def call() -> Tensor:
        x = features.flatten(2)
        x = x / (x.norm(dim=1, keepdim=True) + 1e-5)
        r = (x.transpose(1, 2) @ x).relu()[:, None]
        m = maps.flatten(2)[:, :, None]
        inter = (r * m).sum(-1)
        iou = inter / (r.sum(-1) + m.sum(-1) - inter)
        iou[:, 0] *= 0.5
        iou[:, 1:].masked_fill_(labels[:, :, None] == 0, -1)
        return torch.zeros_like(iou).scatter_(1, iou.argmax(1, keepdim=True), 1.0).view(maps.shape)

    return call


def network_floor(size: int) -> str:
    """Multiply-adds of the backbone, which every contender runs once."""
    with torch.device("meta"):
        macs = count_multiply_adds(SwinClassifier(0).eval(), torch.empty(1, 3, size, size)).macs
    return f"{macs / 1e9:.2f} G multiply-adds of the backbone's forward pass"


def seed_inputs(grid: int, channels: int, present: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, features and labels of one image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(1, CLASSES)
    labels[0, list(present)] = 1
    maps = torch.rand(1, CLASSES + 1, grid, grid, generator=generator)
    maps[:, 1:] *= labels[:, :, None, None]
    return maps, torch.randn(1, channels, grid, grid, generator=generator), labels


def cases() -> list[Case]:
    """Localisation maps of one image with three labels at 224 and 448 pixels, and seeds on the grid of the latter."""
    found = []
    labels = torch.zeros(1, CLASSES)
    labels[0, list(LABELLED)] = 1
    for size in (224, 448):
        image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
        found.append(
            Case(
                f"maps of {len(LABELLED)} of {CLASSES} classes, 1 x 3 x {size} x {size}",
                "SWTformer-V1",
                {
                    "SWTformer-V1": partial(swtformer, classifier, 1, image, labels),
                    "SWTformer-V2": partial(swtformer, classifier, 2, image, labels),
                    "SWTformer-V1 on transformers' Swin": partial(swtformer, theirs, 1, image, labels),
                    "Grad-CAM, transformers' Swin": partial(grad_cam, image),
                    "Grad-CAM, a full pass a class": partial(grad_cam_of_inputs, image),
                    "Grad-CAM, package grad-cam": partial(grad_cam_package, image),
                },
                floor=network_floor(size),
            )
        )
    inputs = seed_inputs(28, 768, LABELLED)
    found.append(
        Case(
            f"seeds, 28 x 28 pixels of 768 channels, {CLASSES} classes",
            "in rows",
            {"in rows": partial(seeds_blockwise, *inputs), "broadcast, as SIPE": partial(seeds_broadcast, *inputs)},
            floor=f"{784**2 * (768 + CLASSES + 1) / 1e9:.2f} G multiply-adds of the two products",
        )
    )
    return found
