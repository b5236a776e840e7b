"""Weights of SwinFace under the names of its published code, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paperworks.swin.backbone import SwinBackbone
from paperworks.swin.state_dicts import load_swin_state_dict, swin_state_dict

if TYPE_CHECKING:
    from paperworks.swin.swinface.network import SwinFace

__all__ = ["load_official", "official_state_dict"]

PARTS = ("backbone", "fam", "tss", "om")
_UNUSED = re.compile(r"^backbone\.(?:head\.|.*(?:attn_mask|relative_position_index)$)")
_OWN = re.compile(r"^backbone\.(?:norm|feature)\.")
_COUNT = "num_batches_tracked"


def _own_names(model: SwinFace) -> dict[str, Tensor]:
    """Published names of all that is not the Swin, with views of our weights."""
    bank = model._banks()[0]
    mlca, found = bank.mlca, {}
    for name in ("weight", "bias"):
        found[f"backbone.norm.{name}"] = getattr(model.norm, name)
    for name, value in model.embedding.state_dict(keep_vars=True).items():
        found[f"backbone.feature.{name}"] = value
    for g in range(len(bank.groups)):
        fam, tss = f"fam.nets.{g}", f"tss.nets.{g}.feature"
        for level in range(len(mlca.widths)):
            found[f"{fam}.conv.convs.{level}.weight"] = mlca.kernel(level, (g, g + 1))
        for number, ours in ((1, mlca.fc1), (3, mlca.fc2)):
            found[f"{fam}.channel_attention.mlp.{number}.weight"] = ours.weight[g]
            found[f"{fam}.channel_attention.mlp.{number}.bias"] = ours.bias[g]
        part = slice(g * mlca.out_channels, (g + 1) * mlca.out_channels)
        for name in ("weight", "bias", "running_mean", "running_var"):
            found[f"{fam}.norm.{name}"] = getattr(mlca.norm, name)[part]
        assert mlca.norm.num_batches_tracked is not None
        found[f"{fam}.norm.{_COUNT}"] = mlca.norm.num_batches_tracked
        for number, ours in ((0, bank.subnet1), (3, bank.subnet2)):
            found[f"{tss}.{number}.weight"], found[f"{tss}.{number}.bias"] = ours.weight[g], ours.bias[g]
    number = 0
    for group, head in zip(bank.groups, bank.heads, strict=True):
        counts = list(group.outputs.values())
        weights, biases = (head.get_parameter(name).split(counts) for name in ("weight", "bias"))
        for weight, bias in zip(weights, biases, strict=True):
            found[f"om.output_fcs.{number}.weight"], found[f"om.output_fcs.{number}.bias"] = weight, bias
            number += 1
    return {name: value.detach() for name, value in found.items()}


def _swin(model: SwinFace) -> SwinBackbone:
    if not isinstance(model.backbone, SwinBackbone):
        kind = type(model.backbone).__name__
        raise ValueError(f"backbone: got {kind}, wanted the Swin: published weights fit no other")
    return model.backbone


def official_state_dict(model: SwinFace) -> dict[str, Tensor]:
    """Copies of the weights under the published names; the unused linear layer ``backbone.head`` is left out."""
    found = {f"backbone.{name}": value for name, value in swin_state_dict(_swin(model), "official").items()}
    return found | {name: value.clone() for name, value in _own_names(model).items()}


def _flat(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """One dict with prefixes: of one, or of four, which checkpoints hold as ``state_dict_backbone`` and so on."""
    parts = {name.removeprefix("state_dict_"): part for name, part in state_dict.items() if isinstance(part, Mapping)}
    parts = {name: part for name, part in parts.items() if name in PARTS}
    if parts:
        state_dict = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    found = {}
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"state_dict: got {type(value).__name__} for {name!r}, wanted a tensor")
        found[re.sub(r"^(\w+\.)?module\.", r"\1", name)] = value
    return found


def load_official(model: SwinFace, state_dict: Mapping[str, Any]) -> None:
    """See `SwinFace.load_official_state_dict`."""
    swin, own = _swin(model), _own_names(model)
    given = {name: value for name, value in _flat(state_dict).items() if not _UNUSED.search(name)}
    inner = {k: v for k, v in given.items() if k.startswith("backbone.") and not _OWN.search(k)}
    mine = {k: v for k, v in given.items() if k not in inner}
    problems = [
        f"{what}: {', '.join(sorted(names)[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for what, names in (
            ("missing", {n for n in own.keys() - mine.keys() if not n.endswith(_COUNT)}),
            ("left over", mine.keys() - own.keys()),
        )
        if names
    ]
    problems += [
        f"{name} {tuple(mine[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in own.items()
        if name in mine and mine[name].shape != value.shape
    ][:8]
    if problems:
        raise ValueError(f"state_dict: does not fit; {'; '.join(problems)}")
    load_swin_state_dict(swin, {name.removeprefix("backbone."): value for name, value in inner.items()}, "official")
    with torch.no_grad():
        for name, value in mine.items():
            own[name].copy_(value)
