"""Weights of RMT as its own code names them, for the networks here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from paperworks.swin.gated_swinrmt.network import GatedSwinRMT

__all__ = ["load_rmt_state_dict"]

RULES = (
    (r"^patch_embed\.proj\.", "stem."),
    (r"^layers\.(\d+)\.downsample\.", r"merges.\1."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
    (r"\.retention_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.retention\.lepe\.conv\.", ".attn.lce."),
    (r"\.retention\.", ".attn."),
    (r"\.ffn\.dwconv\.conv\.", ".mlp.dwconv."),
    (r"\.ffn\.", ".mlp."),
    (r"\.pos\.conv\.", ".pos."),
)
TABLES = re.compile(r"^layers\.\d+\.Relpos\.(angle|decay)$")
SCALES = {"gamma_1": "attn.out_proj", "gamma_2": "mlp.fc2"}
"""Learned factors of a branch, and the layer at its end that takes them up."""


def load_rmt_state_dict(model: GatedSwinRMT, state_dict: Mapping[str, Tensor], start: bool = False) -> None:
    """Load a `state_dict` of the official RMT into a network here, in place.

    Layer scales are multiplied into the layers before them, which changes nothing in the function.

    Args:
        model: of the variant "rmt"; or with `start` any variant of the same sizes, whose gates keep what they have.
        state_dict: names and tensors.
        start: take the weights as a start of a gated network.

    Raises:
        ValueError: weights that are missing, left over, or of another shape, by name.
    """
    found: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if TABLES.match(name):
            continue
        for pattern, instead in RULES:
            name = re.sub(pattern, instead, name)
        found[name] = value
    for name in [name for name in found if name.rpartition(".")[2] in SCALES]:
        block, _, which = name.rpartition(".")
        scale = found.pop(name).reshape(-1)
        for part, shape in (("weight", (-1, 1)), ("bias", (-1,))):
            layer = f"{block}.{SCALES[which]}.{part}"
            if layer not in found:
                raise ValueError(f"state_dict: {name!r} is there without {layer!r}")
            found[layer] = found[layer] * scale.view(shape)
    wanted = model.state_dict()
    kept = {name for name in wanted if start and re.search(r"\.attn\.(gate|v_gate)\.", name)}
    missing, left = sorted(set(wanted) - set(found) - kept), sorted(set(found) - set(wanted))
    other = sorted(n for n in set(found) & set(wanted) if found[n].shape != wanted[n].shape)
    for problem, names in (("misses", missing), ("has left over", left), ("has of another shape", other)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"state_dict: it {problem} {', '.join(names[:3])}{more}")
    model.load_state_dict(found, strict=False)
