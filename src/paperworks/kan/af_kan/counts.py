"""Parameters and operations of one `AFKANLayer`, by formula."""

from __future__ import annotations

from paperworks.kan.af_kan.functional import REDUCTIONS
from paperworks.kan.af_kan.layer import check_choice, check_grid
from paperworks.kan.linear import check_sizes
from paperworks.kan.pairs import COMBINATIONS

_COMBINING = {"sum": 1, "prod": 1, "sum_prod": 3, "quad1": 2, "quad2": 5, "cubic1": 5, "cubic2": 3}
"""Additions and multiplications of each function of a pair."""


def parameter_count(
    in_features: int,
    out_features: int,
    *,
    grid_size: int = 3,
    spline_order: int = 3,
    reduction: str = "global_attn",
    layer_norm: bool = True,
) -> int:
    """Parameters of one layer: D O + 2 D (LayerNorm) + 2 G (phases) + those of the reduction.

    The reduction has G + 2 for global_attn, 4 G + 1 for spatial_attn, G + 1 for multistep, with G = grid_size +
    spline_order. Raises ValueError as `AFKANLayer` does.
    """
    check_sizes(in_features=in_features, out_features=out_features)
    check_grid(grid_size, spline_order)
    check_choice("reduction", reduction, REDUCTIONS)
    terms = grid_size + spline_order
    reducing = {"global_attn": terms + 2, "spatial_attn": 4 * terms + 1, "multistep": terms + 1}[reduction]
    return in_features * out_features + (2 * in_features if layer_norm else 0) + 2 * terms + reducing


def flop_count(
    in_features: int,
    out_features: int,
    *,
    batch: int = 1,
    grid_size: int = 3,
    spline_order: int = 3,
    reduction: str = "global_attn",
    layer_norm: bool = True,
    function: str = "quad1",
) -> dict[str, int]:
    """Floating point operations of one forward pass, equation by equation, with their "total".

    An addition, a multiplication, a comparison, a division and a call of an activation, an exponential or a root are
    one operation each. "features": shifts, activations and combination of every pair; "feature_norm": least, largest,
    subtraction and division; "reduction"; "layer_norm"; "activation"; "linear": 2 D O. Raises ValueError as
    `AFKANLayer` does, and for a batch below 1.
    """
    check_sizes(in_features=in_features, out_features=out_features)
    check_grid(grid_size, spline_order)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("function", function, COMBINATIONS)
    check_sizes(batch=batch)
    terms = grid_size + spline_order
    softmax = 5  # temperature, largest, subtraction and exponential, sum, division
    reducing = {
        "multistep": 2 * terms,
        "global_attn": 2 * terms + softmax + terms,
        "spatial_attn": terms * (6 + softmax + 2),
    }[reduction]
    entries = batch * in_features
    found = {
        "features": entries * terms * (2 + 2 + _COMBINING[function]),
        "feature_norm": entries * terms * 4,
        "reduction": entries * reducing,
        "layer_norm": entries * 8 if layer_norm else 0,
        "activation": entries,
        "linear": 2 * entries * out_features,
    }
    return found | {"total": sum(found.values())}
