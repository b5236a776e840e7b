"""Parameters and multiply-adds of a pruned network, layer by layer from its masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperworks.measure.multiply_adds import Row, count_multiply_adds, layer_calls
from paperworks.measure.parameters import count_parameters
from paperworks.surgery.swin_parts import find_modules, parent_of

__all__ = ["FlopReport", "sparse_flops"]


@dataclass(frozen=True)
class FlopReport:
    """Counts of one network for one image; a multiply-add counts as one.

    Attributes:
        params: all parameters.
        nonzero: parameters less removed weights.
        macs: multiply-adds of the dense network: linear layers, convolutions and attention products.
        macs_pruned: of the pruned one, without the removed weights; attention products in full.
        rows: (module name, macs, macs_pruned) in the order of use; attention products under the attention's name.
    """

    params: int
    nonzero: int
    macs: int
    macs_pruned: int
    rows: list[tuple[str, int, int]]


def sparse_flops(
    model: nn.Module, input_size: int | tuple[int, int], masks: Mapping[str, Tensor] | None = None
) -> FlopReport:
    """Count one forward pass of one image. The model's mode and weights are left as they are.

    Args:
        model: takes (1, C, H, W); on any device, "meta" too: there nothing is computed.
        input_size: side of the image in pixels, or (height, width).
        masks: True = kept. None takes the weights that are 0 in the layers of `find_modules` as removed (none on meta).

    Raises:
        ValueError: a size below 1, masks that do not fit, a model without convolution to read the channels from.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if min(height, width) < 1:
        raise ValueError(f"input_size: got {input_size!r}, wanted at least 1")
    if masks is None:
        masks = _zeros_as_masks(model)
    stem = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if stem is None:
        raise ValueError(f"model: got {type(model).__name__} without nn.Conv2d, wanted one that takes images")
    image = torch.zeros(1, stem.in_channels, height, width, dtype=stem.weight.dtype, device=stem.weight.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        counted = count_multiply_adds(model, image, masks=masks)
        rows = _with_layers_used_by_their_parent(model, image, counted.rows, masks)
    finally:
        for module, training in modes:
            module.training = training
    params = count_parameters(model)
    removed = sum(mask.numel() - int(torch.count_nonzero(mask)) for mask in masks.values())
    finished = [(row.name, row.macs, round(row.macs_kept)) for row in rows]
    return FlopReport(params, params - removed, sum(r[1] for r in finished), sum(r[2] for r in finished), finished)


def _zeros_as_masks(model: nn.Module) -> dict[str, Tensor]:
    linears = [pair for pairs in find_modules(model).values() for pair in pairs]
    return {f"{name}.weight": linear.weight != 0 for name, linear in linears if not linear.weight.is_meta}


def _with_layers_used_by_their_parent(
    model: nn.Module, image: Tensor, rows: list[Row], masks: Mapping[str, Tensor]
) -> list[Row]:
    """Rows for masked layers that are never called: torchvision's attention takes the weights of its layers itself.

    Their multiply-adds stand in the attention's row: one for each weight and token.
    """
    present = {row.name for row in rows}
    silent = [name.removesuffix(".weight") for name in masks if name.removesuffix(".weight") not in present]
    if not silent:
        return rows
    parents = {parent_of(name) for name in silent}
    kinds = tuple({type(model.get_submodule(name)) for name in parents})
    tokens = {c.name: math.prod(c.input_shape[:-1]) for c in layer_calls(model, image, kinds=kinds)}
    made = []
    for row in rows:
        own = [name for name in silent if parent_of(name) == row.name]
        macs, kept = row.macs, row.macs_kept
        for name in own:
            mask = masks[f"{name}.weight"]
            layer = tokens[row.name] * mask.numel()
            made.append(Row(name, layer, tokens[row.name] * float(torch.count_nonzero(mask))))
            macs, kept = macs - layer, kept - layer
        made.append(Row(row.name, macs, kept))
    return made
