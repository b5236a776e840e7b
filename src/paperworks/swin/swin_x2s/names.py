"""Weights of Swin-X2S under the names of the authors' code, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from paperworks.swin.backbone import SwinBackbone
from paperworks.swin.state_dicts import load_swin_state_dict, swin_state_dict

__all__ = ["from_official", "to_official"]

ENCODER = "swinViT."


def _encoder(model: nn.Module) -> SwinBackbone:
    encoder = model.get_submodule("swinViT")
    assert isinstance(encoder, SwinBackbone)
    return encoder


def _theirs(name: str) -> str:
    return re.sub(r"^out\.", "out.conv.conv.", name)


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The whole network's weights."""
    found = {
        ENCODER + re.sub(r"^norms\.(\d+)\.", r"layers.\1.norm.", name): value
        for name, value in swin_state_dict(_encoder(model), "official").items()
    }
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith(ENCODER)}
    return found | {_theirs(name): value.clone() for name, value in rest.items()}


def from_official(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load the whole network's weights in place."""
    given = {name.removeprefix("module."): value for name, value in state_dict.items()}
    inside = {
        re.sub(r"^layers\.(\d+)\.norm\.", r"norms.\1.", name.removeprefix(ENCODER)): value
        for name, value in given.items()
        if name.startswith(ENCODER)
    }
    rest = {name: value for name, value in given.items() if not name.startswith(ENCODER)}
    own = {_theirs(name): (name, value) for name, value in model.state_dict().items() if not name.startswith(ENCODER)}
    problems = [
        f"{what}: {', '.join(sorted(found)[:8])}{f' and {len(found) - 8} more' if len(found) > 8 else ''}"
        for what, found in (("missing", own.keys() - rest.keys()), ("left over", rest.keys() - own.keys()))
        if found
    ]
    problems += [
        f"{name}: got the shape {tuple(value.shape)}, wanted {tuple(own[name][1].shape)}"
        for name, value in rest.items()
        if name in own and value.shape != own[name][1].shape
    ]
    if problems:
        raise ValueError(f"state_dict: does not fit; {'; '.join(problems)}")
    load_swin_state_dict(_encoder(model), inside, "official")
    model.load_state_dict({own[name][0]: value for name, value in rest.items()}, strict=False)
