"""Weights of Swin UNETR under the names MONAI gives them, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from paperworks.swin.backbone import SwinBackbone
from paperworks.swin.state_dicts import load_swin_state_dict, swin_state_dict
from paperworks.swin.windows import RelativePositionBias, relative_position_index

__all__ = ["encoder_from_monai", "encoder_to_monai", "from_monai", "to_monai"]

PREFIX = "swinViT."


def _theirs(name: str) -> str:
    """MONAI's name of one of our weights outside of the encoder."""
    name = re.sub(r"^(encoder\d+)\.", r"\1.layer.", name)
    return re.sub(r"^out\.", "out.conv.conv.", name)


def encoder_to_monai(encoder: SwinBackbone) -> dict[str, Tensor]:
    """The encoder's weights and, beside each table of position biases, its index."""
    found: dict[str, Tensor] = {}
    windows = [m.window for m in encoder.modules() if isinstance(m, RelativePositionBias)]
    for name, value in swin_state_dict(encoder, "monai").items():
        name = re.sub(r"^convs\.(\d+)\.", lambda at: f"layers{int(at[1]) + 1}c.0.layer.", name)
        found[name] = value
        if name.endswith("relative_position_bias_table"):
            found[name.replace("bias_table", "index")] = relative_position_index(windows[0]).to(value.device)
    return found


def encoder_from_monai(encoder: SwinBackbone, state_dict: Mapping[str, Tensor]) -> None:
    """Load an encoder's weights, of a whole network's or its own state dict, in place."""
    given = {name.removeprefix("module."): value for name, value in state_dict.items()}
    inside = {name.removeprefix(PREFIX): value for name, value in given.items() if name.startswith(PREFIX)}
    renamed = {}
    for name, value in (inside or given).items():
        name = re.sub(r"^layers(\d+)c\.0\.layer\.", lambda at: f"convs.{int(at[1]) - 1}.", name)
        renamed[name.replace(".mlp.fc", ".mlp.linear")] = value  # as the encoders pretrained in 2022 have it
    load_swin_state_dict(encoder, renamed, "monai")


def to_monai(model: nn.Module) -> dict[str, Tensor]:
    """The whole network's weights."""
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, SwinBackbone)
    found = {PREFIX + name: value for name, value in encoder_to_monai(encoder).items()}
    return found | {_theirs(n): v.clone() for n, v in model.state_dict().items() if not n.startswith("encoder.")}


def from_monai(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load the whole network's weights in place."""
    given = {name.removeprefix("module."): value for name, value in state_dict.items()}
    inside = {name: value for name, value in given.items() if name.startswith(PREFIX)}
    rest = {name: value for name, value in given.items() if name not in inside}
    own = {
        _theirs(name): (name, value) for name, value in model.state_dict().items() if not name.startswith("encoder.")
    }
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
    if not inside:
        problems.append(f"missing: every name that begins with {PREFIX}")
    if problems:
        raise ValueError(f"state_dict: does not fit; {'; '.join(problems)}")
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, SwinBackbone)
    encoder_from_monai(encoder, inside)
    model.load_state_dict({own[name][0]: value for name, value in rest.items()}, strict=False)
