"""Weights of Swin networks under the names that other libraries give them, in both directions.

One table of rules: a pattern of our name, and the name it has in each layout. Masks and indices, which some layouts
keep among the weights, are computed here and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paperworks.swin.backbone import SwinBackbone, SwinClassifier

__all__ = ["LAYOUTS", "load_swin_state_dict", "swin_state_dict"]

LAYOUTS = ("timm", "torchvision", "transformers", "monai", "official")

_COMPUTED = re.compile(r"(?:^|\.)(?:attn_mask|relative_position_index|relative_coords_table)$")
_PREFIXES = {"transformers": ("swin.",), "monai": ("module.swinViT.", "swinViT.", "module."), "official": ("module.",)}

_BLOCK = r"stages\.(\d+)\.blocks\.(\d+)\."
_TABLE = "relative_position_bias_table"


def _their_names(name: str, layout: str) -> tuple[str, ...]:
    """The name or, for queries, keys and values kept apart, the three names that one of our weights has in a layout."""
    name = name.removeprefix("backbone.")
    if found := re.fullmatch(rf"{_BLOCK}(.+)", name):
        stage, block, rest = int(found[1]), found[2], found[3].replace(f"attn.bias.{_TABLE}", f"attn.{_TABLE}")
        if layout in ("timm", "official"):
            return (f"layers.{stage}.blocks.{block}.{rest}",)
        if layout == "monai":
            return (f"layers{stage + 1}.0.blocks.{block}.{rest.replace('mlp.fc', 'mlp.linear')}",)
        if layout == "torchvision":
            rest = rest.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
            return (f"features.{2 * stage + 1}.{block}.{rest}",)
        return tuple(f"encoder.layers.{stage}.blocks.{block}.{one}" for one in _transformers(rest))
    if found := re.fullmatch(r"merges\.(\d+)\.(.+)", name):
        stage, rest = int(found[1]), found[2]
        return (
            {
                "timm": f"layers.{stage + 1}.downsample.{rest}",
                "official": f"layers.{stage}.downsample.{rest}",
                "monai": f"layers{stage + 1}.0.downsample.{rest}",
                "torchvision": f"features.{2 * stage + 2}.{rest}",
                "transformers": f"encoder.layers.{stage}.downsample.{rest}",
            }[layout],
        )
    if name.startswith("head.") and layout == "timm":
        return (name.replace("head.", "head.fc."),)
    if layout == "torchvision":
        return (name.replace("patch_embed.proj", "features.0.0").replace("patch_embed.norm", "features.0.2"),)
    if layout == "transformers":
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("patch_embed.norm", "embeddings.norm")
        return (re.sub(r"^norm\.", "layernorm.", re.sub(r"^head\.", "classifier.", name)),)
    return (name,)


def _transformers(rest: str) -> tuple[str, ...]:
    if found := re.fullmatch(r"attn\.qkv\.(.+)", rest):
        return tuple(f"attention.{one}_proj.{found[1]}" for one in "qkv")
    rest = rest.replace("attn.proj", "attention.o_proj")
    rest = rest.replace(f"attn.{_TABLE}", f"attention.relative_position_bias.{_TABLE}")
    return (rest.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after"),)


def _names(model: nn.Module, layout: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(model, SwinClassifier | SwinBackbone):
        raise TypeError(f"model: got {type(model).__name__}, wanted a SwinClassifier or a SwinBackbone")
    if layout not in LAYOUTS:
        raise ValueError(f"layout: got {layout!r}, wanted one of {', '.join(LAYOUTS)}")
    return {name: _their_names(name, layout) for name in model.state_dict()}


def load_swin_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], layout: str = "timm") -> None:
    """Load weights that have the names of a layout into `model`, in place.

    Args:
        model: a `SwinClassifier`, or a `SwinBackbone`, which takes no final norm and no head.
        state_dict: as the library saves it, with or without the prefix of a larger model.
        layout: ``"timm"``, ``"torchvision"``, ``"transformers"``, ``"monai"`` or ``"official"``.

    Raises ValueError that names what is missing, what is left over, and what has another shape; nothing is loaded then.
    """
    names, given = _names(model, layout), _stripped(state_dict, layout)
    if isinstance(model, SwinBackbone) and not any(name.startswith("norms.") for name in names):
        given = {
            name: value for name, value in given.items() if not re.match(r"(?:norm|layernorm|head|classifier)\.", name)
        }
    wanted = {one for several in names.values() for one in several}
    problems = [
        f"{what}: {', '.join(sorted(found)[:8])}{f' and {len(found) - 8} more' if len(found) > 8 else ''}"
        for what, found in (("missing", wanted - given.keys()), ("left over", given.keys() - wanted))
        if found
    ]
    if problems:
        raise ValueError(f"state_dict: does not fit the layout {layout!r}; {'; '.join(problems)}")
    own = model.state_dict()
    values = {name: torch.cat([given[one] for one in several]) for name, several in names.items()}
    wrong = [
        f"{n} {tuple(v.shape)}, wanted {tuple(own[n].shape)}" for n, v in values.items() if v.shape != own[n].shape
    ]
    if wrong:
        raise ValueError(f"state_dict: of another shape: {'; '.join(wrong[:8])}")
    model.load_state_dict(values)


def _stripped(state_dict: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    found = {name: value for name, value in state_dict.items() if not _COMPUTED.search(name)}
    for prefix in _PREFIXES.get(layout, ()):
        inside = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
        if inside:
            rest = {name: v for name, v in found.items() if re.match(r"(?:head|classifier)\.", name)}
            return inside | rest
    return found


def swin_state_dict(model: nn.Module, layout: str = "timm") -> dict[str, Tensor]:
    """The weights of `model` under the names of a layout: the inverse of `load_swin_state_dict`."""
    own = model.state_dict()
    found = {}
    for name, several in _names(model, layout).items():
        for one, value in zip(several, own[name].chunk(len(several)), strict=True):
            found[one] = value.clone()
    return found
