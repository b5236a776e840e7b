"""The recipe: a Swin with squeeze-and-excitation for expressions, groups for fine-tuning, and the training loop."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.swin.backbone import SwinClassifier
from paperworks.swin.state_dicts import load_swin_state_dict
from paperworks.swin.swin_se_fer.sam import SAM, frozen_norm_stats
from paperworks.swin.swin_se_fer.squeeze_excite import add_squeeze_excite

__all__ = ["BACKBONES", "build_fer_model", "finetune_groups", "fit_sam"]

BACKBONES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}
_NAME = re.compile(r"swin_(tiny|small|base|large)_patch4_window(7|12)_(?:224|384)(?:\.\w+)?")
_HEAD = re.compile(r"(?:^|\.)(?:head|classifier|fc)\.")
_NEW = re.compile(r"^(?:se|head|classifier)\.|\.(?:se|head|classifier)\.")
_BLOCK = re.compile(r"(?:stages|layers)\.(\d+)\.blocks\.(\d+)\.")
_MERGE = re.compile(r"(?:merges\.(\d+)|layers\.(\d+)\.downsample)\.")


class DroppedLinear(nn.Linear):
    """A linear layer behind dropout, with the names of a linear layer."""

    def __init__(self, in_features: int, out_features: int, p: float) -> None:
        super().__init__(in_features, out_features)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(F.dropout(x, self.p, self.training))


def build_fer_model(
    backbone: str = "swin_tiny_patch4_window7_224",
    num_classes: int = 8,
    pretrained: bool | str | Path = False,
    reduction: int = 16,
    *,
    dropout: float = 0.0,
    drop_path_rate: float = 0.0,
    residual_init: bool = False,
) -> nn.Module:
    """A Swin with squeeze-and-excitation between its last norm and the mean over tokens, and a new linear head.

    Args:
        backbone: timm's name of a Swin: `swin_{tiny,small,base,large}_patch4_window{7,12}_{224,384}` are built here;
            any other Swin of timm by timm.
        num_classes: expressions.
        pretrained: True for the ImageNet weights of that name from the Hugging Face hub (through transformers), or a
            file of weights: .safetensors or .pth, in the layout of timm, torchvision, transformers or Swin's own code.
        reduction, residual_init: of `SqueezeExcite`.
        dropout: before the head.
        drop_path_rate: of the backbone.

    Raises ValueError for a name that is not known where timm is not installed either, or weights that do not fit.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes!r}, wanted a whole number, 1 or more")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: got {dropout}, wanted 0 <= dropout < 1")
    found = _NAME.fullmatch(backbone)
    if found is None:
        model = _timm_model(backbone, pretrained, num_classes, dropout, drop_path_rate)
    else:
        options = BACKBONES[found[1]]
        swin = SwinClassifier(0, window=int(found[2]), drop_path_rate=drop_path_rate, **options)
        if pretrained:
            state, layout = _weights(backbone.partition(".")[0], pretrained)
            load_swin_state_dict(swin, {k: v for k, v in state.items() if not _HEAD.search(k)}, layout)
        width = swin.backbone.channels[-1]
        swin.head = DroppedLinear(width, num_classes, dropout) if dropout else nn.Linear(width, num_classes)
        model = swin
    return add_squeeze_excite(model, reduction, residual_init=residual_init)


def _timm_model(name: str, pretrained: bool | str | Path, num_classes: int, drop: float, path: float) -> nn.Module:
    known = ", ".join(f"swin_{size}_patch4_window7_224" for size in BACKBONES)
    if not isinstance(pretrained, bool):
        raise ValueError(f"pretrained: got a file for {name!r}, wanted True, False, or one of {known}")
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"backbone: got {name!r}, wanted {known}, or what timm has (pip install timm)") from error
    made: nn.Module = timm.create_model(
        name, pretrained=pretrained, num_classes=num_classes, drop_rate=drop, drop_path_rate=path
    )
    return made


def _weights(name: str, pretrained: bool | str | Path) -> tuple[dict[str, Tensor], str]:
    """Weights and their layout."""
    if isinstance(pretrained, bool):
        try:
            from transformers import SwinForImageClassification
        except ImportError as error:
            message = "pretrained weights come through transformers: pip install 'paperworks[swin]'"
            raise ImportError(message) from error
        network = SwinForImageClassification.from_pretrained("microsoft/" + name.replace("_", "-"))
        return network.state_dict(), "transformers"
    path = Path(pretrained).expanduser()
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "state_dict"):
            state = state.get(key, state)
    if any(".encoder.layers." in f".{name}" for name in state):
        return state, "transformers"
    if any(name.startswith("features.") for name in state):
        return state, "torchvision"
    merges_first = any(re.search(r"layers\.0\.downsample\.", name) for name in state)
    return state, "official" if merges_first else "timm"


def finetune_groups(
    model: nn.Module,
    lr: float = 5e-5,
    head_lr: float = 5e-4,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups for fine-tuning: new parts at `head_lr`, the pretrained ones at `lr`, matrices decayed.

    Args:
        model: a Swin with the names of timm, transformers or `SwinClassifier`; new parts are `se` and the head.
        lr, head_lr, weight_decay: of the groups.
        layer_decay: the learning rate of a block over that of the block behind it; patches get the least.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay: got {layer_decay}, wanted a number in (0, 1]")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    blocks = sorted({(int(m[1]), int(m[2])) for name in names if (m := _BLOCK.search(name))})
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        rate = head_lr if _NEW.search(name) else lr * layer_decay ** _behind(name, blocks)
        decay = weight_decay if p.ndim > 1 and "relative_position_bias_table" not in name else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(p)
    return list(groups.values())


def _behind(name: str, blocks: list[tuple[int, int]]) -> int:
    """Blocks between a weight and the head."""
    if found := _BLOCK.search(name):
        return len(blocks) - 1 - blocks.index((int(found[1]), int(found[2])))
    if found := _MERGE.search(name):
        stage = int(found[1] or found[2])
        return sum(1 for s, _ in blocks if s > stage)
    return len(blocks) if "embed" in name else 0


Batch = tuple[Tensor, Tensor]


def fit_sam(
    model: nn.Module,
    loader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Any, Tensor], Tensor],
    epochs: int,
    *,
    callback: Callable[[int, float], object] | None = None,
    resume: str | Path | None = None,
    schedule: Any = None,
    accumulate: int = 1,
) -> list[float]:
    """Train with `SAM`, or with any optimiser of torch: one loop for both, so that they can be compared.

    Running statistics move in the first pass alone. With distributed data parallelism each process climbs along its
    own gradient and the second pass is shared (m-sharpness).

    Args:
        model: trained in place, where it is.
        loader: (inputs, target) batches, e.g. a `DataLoader`.
        optimizer: steps by ``optimizer.step(closure)``.
        loss_fn: ``loss_fn(model(inputs), target)``, a mean over the batch.
        epochs: passes over the loader in all, those before `resume` included.
        callback: called after each epoch with its number, from 0, and its mean loss; True ends the training.
        resume: a file, written after each epoch; where it exists, training goes on from it as if it had not stopped.
        schedule: a learning-rate schedule of torch, advanced after each epoch.
        accumulate: batches a step: their gradients are added up, and the same ones are run again at w + e.

    Returns the mean loss of each epoch.
    """
    if epochs < 0 or accumulate < 1:
        raise ValueError(f"epochs, accumulate: got {epochs} and {accumulate}, wanted 0 or more, and 1 or more")
    parts = {"model": model, "optimizer": optimizer} | ({} if schedule is None else {"schedule": schedule})
    path = None if resume is None else Path(resume)
    losses = _resumed(path, parts, loader) if path is not None and path.exists() else []
    device = next(model.parameters()).device
    for epoch in range(len(losses), epochs):
        model.train()
        total, items = 0.0, 0
        for batches in _taken(loader, accumulate):
            batches = [(inputs.to(device), target.to(device)) for inputs, target in batches]
            n = sum(len(target) for _, target in batches)
            closure: Any = _closure(model, optimizer, loss_fn, batches)
            total, items = total + n * float(optimizer.step(closure)), items + n
        if not items:
            raise ValueError("loader: got no batch, wanted one or more")
        if schedule is not None:
            schedule.step()
        losses.append(total / items)
        if path is not None:
            _save(path, parts, loader, losses)
        if callback is not None and callback(epoch, losses[-1]) is True:
            break
    return losses


def _taken(loader: Iterable[Batch], n: int) -> Iterator[list[Batch]]:
    batches = iter(loader)
    while taken := list(islice(batches, n)):
        yield taken


def _closure(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Callable[[Any, Tensor], Tensor], batches: list[Batch]
) -> Callable[[], Tensor]:
    n = sum(len(target) for _, target in batches)

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=batches[0][1].device)
        with ExitStack() as stack:
            if isinstance(optimizer, SAM) and optimizer.climbed:
                stack.enter_context(frozen_norm_stats(model))
            elif isinstance(optimizer, SAM) and optimizer.climbs_next and hasattr(model, "no_sync"):
                stack.enter_context(model.no_sync())  # type: ignore[operator]
            for inputs, target in batches:
                loss = loss_fn(model(inputs), target) * (len(target) / n)
                loss.backward()
                total += loss.detach()
        return total

    return closure


def _generators(loader: Iterable[Batch]) -> list[torch.Generator]:
    held = (getattr(loader, "generator", None), getattr(getattr(loader, "sampler", None), "generator", None))
    return list({id(g): g for g in held if isinstance(g, torch.Generator)}.values())


def _save(path: Path, parts: dict[str, Any], loader: Iterable[Batch], losses: list[float]) -> None:
    """All that the next epoch depends on, in place of the file there was, at once."""
    state = {name: part.state_dict() for name, part in parts.items()}
    random = {"cpu": torch.get_rng_state(), "loader": [g.get_state() for g in _generators(loader)]}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state_all()
    part = path.with_name(f"{path.name}.part")
    torch.save({"parts": state, "losses": losses, "random": random}, part)
    os.replace(part, path)


def _resumed(path: Path, parts: dict[str, Any], loader: Iterable[Batch]) -> list[float]:
    kept = torch.load(path, map_location="cpu", weights_only=True)
    if set(kept.get("parts", ())) != set(parts):
        raise ValueError(f"resume: {path} holds {sorted(kept.get('parts', ()))}, wanted {sorted(parts)}")
    for name, part in parts.items():
        part.load_state_dict(kept["parts"][name])
    random = kept["random"]
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(random["cuda"])
    for generator, state in zip(_generators(loader), random["loader"], strict=True):
        generator.set_state(state)
    return list(kept["losses"])
