"""The networks of the pruning papers at their real size, as transformers builds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SWINS = {
    "Swin-T": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "Swin-S": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "Swin-B": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
}
"""Width, blocks and heads a stage, for 224 pixels, patch 4, window 7, 1000 classes."""


def real_swin(name: str, device: str = "meta", generator: torch.Generator | None = None) -> nn.Module:
    """One of `SWINS`: on "meta" shapes alone, elsewhere with normal weights of deviation 0.02 from the generator."""
    from transformers import SwinConfig, SwinForImageClassification

    width, depths, heads = SWINS[name]
    with torch.device("meta"):
        model: nn.Module = SwinForImageClassification(
            SwinConfig(embed_dim=width, depths=depths, num_heads=heads, num_labels=1000)
        )
    if device != "meta":
        model = model.to_empty(device=device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.02, generator=generator)
            for module in model.modules():
                make: Any = getattr(module, "_create_relative_position_index", None)
                if make is not None:  # a buffer that no state_dict holds
                    module.relative_position_index = make().view(-1).to(device)
    return model.eval()
