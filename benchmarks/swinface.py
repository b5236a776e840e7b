"""SwinFace for all tasks beside the same network with module after module, on our Swin and on that of transformers.

These contenders have the same weights and the same outputs. The networks of `insightface` and timm are other ones: they
are what people run instead, where they are installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.lab.benchmark import Case
from paperworks.swin.state_dicts import swin_state_dict
from paperworks.swin.swinface import SwinFace, pool_levels

METHOD = "SwinFace"
Call = Callable[[], object]
Levels = Callable[[Tensor], list[Tensor]]


def network() -> SwinFace:
    """The published size with one draw of weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return SwinFace().eval()


def faces(batch: int) -> Tensor:
    """Standard normal pictures."""
    return torch.randn(batch, 3, 112, 112, generator=torch.Generator().manual_seed(1))


def ours(batch: int, tasks: list[str] | None = None) -> Call:
    """`SwinFace`."""
    model, x = network(), faces(batch)

    def call() -> dict[str, Tensor]:
        with torch.no_grad():
            return model(x, tasks)

    return call


def in_bfloat16(batch: int) -> Call:
    """`SwinFace` with its weights in bfloat16: half the bytes to read."""
    model, x = network().to(torch.bfloat16), faces(batch).to(torch.bfloat16)

    def call() -> dict[str, Tensor]:
        with torch.no_grad():
            return model(x)

    return call


def one_by_one(batch: int, prepare: Callable[[SwinFace], Levels]) -> Call:
    """The published way: every module, subnet and head on its own, the gate on the map."""
    model, x = network(), faces(batch)
    bank, levels = model._banks()[0], prepare(model)
    modules = [bank.mlca.branch(g) for g in range(len(bank.groups))]

    def call() -> dict[str, Tensor]:
        with torch.no_grad():
            maps = levels(x)
            found = {"recognition": model.embedding(model.norm(maps[-1].flatten(2).mT).mean(1))}
            pyramid = torch.cat(pool_levels(maps), 1)
            for g, (module, head, group) in enumerate(zip(modules, bank.heads, bank.groups, strict=True)):
                joined = module._joined(pyramid)
                gated = F.relu(joined * module._gate(joined)[:, :, None, None])
                y = module.norm(F.adaptive_max_pool2d(gated, 1).flatten(1))
                for layer in (bank.subnet1, bank.subnet2):
                    y = F.relu(F.linear(y, layer.weight[g], layer.bias[g]))
                parts = head(y).split(list(group.outputs.values()), 1)
                found |= dict(zip(group.outputs, parts, strict=True))
            return found

    return call


def our_levels(model: SwinFace) -> Levels:
    """Of our Swin."""
    return model.levels


def transformers_levels(model: SwinFace) -> Levels:
    """Of the Swin of transformers with the same weights. Raises ImportError without it."""
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(image_size=112, patch_size=2, drop_path_rate=0.0)
    theirs: Any = SwinModel(config, add_pooling_layer=False).eval()
    swin = model.backbone
    missing, left = theirs.load_state_dict(swin_state_dict(swin, "transformers"), strict=False)
    if left or set(missing) - {"layernorm.weight", "layernorm.bias"}:
        raise ImportError(f"this version of transformers names its weights otherwise: {missing}, {left}")

    def levels(x: Tensor) -> list[Tensor]:
        return list(theirs(x, output_hidden_states=True).reshaped_hidden_states[1:])

    return levels


def insightface(batch: int) -> Call:
    """Its networks of the pack `buffalo_l`. Raises ImportError without it."""
    from insightface.app import FaceAnalysis  # type: ignore[import-not-found]

    app = FaceAnalysis(name="buffalo_l")
    app.prepare(ctx_id=-1)
    aligned = ((faces(batch).permute(0, 2, 3, 1) * 60 + 128).clamp(0, 255)).byte().numpy()
    models = [m for name, m in app.models.items() if name in ("recognition", "genderage")]

    def call() -> object:
        return [m.forward(aligned) for m in models]

    return call


def timm_swin(batch: int) -> Call:
    """Swin-T of timm at 224 pixels: about as many multiply-adds, one task. Raises ImportError without it."""
    import timm

    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=7).eval()
    x = F.interpolate(faces(batch), (224, 224))

    def call() -> object:
        with torch.no_grad():
            return model(x)

    return call


def cases() -> list[Case]:
    """All tasks for one face and for eight, and one task."""
    contenders: dict[str, Callable[[int], Call]] = {
        METHOD: ours,
        "module after module": partial(one_by_one, prepare=our_levels),
        "transformers, module after module": partial(one_by_one, prepare=transformers_levels),
        "insightface, identity, age and gender": insightface,
        "timm's Swin-T at 224 pixels, one task": timm_swin,
    }
    weights = 4 * 67_415_538
    found = [
        Case(
            f"all tasks, {batch} face{'s' * (batch > 1)}, without gradients",
            METHOD,
            {name: partial(prepare, batch) for name, prepare in contenders.items()},
            floor=f"{6.09 * batch:.1f} G multiply-adds, and all weights read",
            floor_bytes=weights if batch == 1 else 0,
        )
        for batch in (1, 8)
    ]
    found.append(
        Case(
            "expression alone, 1 face",
            METHOD,
            {
                METHOD: partial(ours, 1, ["expression"]),
                "all tasks": partial(ours, 1),
                "all tasks, weights in bfloat16": partial(in_bfloat16, 1),
            },
            floor="4.6 G multiply-adds",
        )
    )
    return found
