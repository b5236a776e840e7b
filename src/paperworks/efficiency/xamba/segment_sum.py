"""Segment sums from one cumulative sum: beyond XAMBA (arXiv 2502.06924).

The segment sum of a vector a of length L is the matrix S[i, j] = a_{j+1} + ... + a_i for j <= i. transformers, and the
paper's code, make it by repeating a over L columns, masking, and summing each column up: L^2 additions, which CumBA
turns into L^3 multiply-adds. But S[i, j] = c_i - c_j with c the cumulative sum of a itself: L additions and L^2
subtractions. The price is rounding: an entry may be off by a few eps |c_L|, where the column sums are off by eps |S|.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from paperworks.efficiency.xamba.graph import (
    constant_value,
    described,
    fixed_axes,
    graphs,
    integers,
    is_float,
    prepare,
    replace,
    same_type_constant,
)

if TYPE_CHECKING:
    import openvino


def segsum_difference(model: openvino.Model) -> int:
    """Rewrite segment sums, in place, as differences of one cumulative sum.

    What is looked for: a CumSum down the rows of (..., L, L) whose input is one vector repeated over the columns, with
    a constant mask that keeps what lies strictly below the diagonal. The result equals it there and is zero above,
    as before, so whatever follows (a mask of -inf, an exponential) sees no overflow. In half precision the rounding
    can be as large as the sums themselves, so those ops stay, with a warning.

    Returns:
        The number of rewritten segment sums.

    Raises:
        TypeError: `model` is no openvino.Model.
        ImportError: openvino is missing.
    """
    prepare(model)
    rewritten = 0
    for graph in graphs(model):
        for node in graph.get_ordered_ops():
            vector = _repeated_vector(node)
            if vector is None:
                continue
            if node.get_output_element_type(0).get_type_name() not in ("f32", "f64"):
                warnings.warn(
                    f"{described(node)} stays a sum of columns: in half precision the difference is too coarse",
                    stacklevel=2,
                )
                continue
            replace(node, _difference(vector))
            rewritten += 1
        graph.validate_nodes_and_infer_types()
    return rewritten


def _difference(vector: openvino.Output) -> openvino.Output:
    from openvino import opset13

    sums = opset13.cum_sum(vector, opset13.constant(np.int64(-1)))
    ends = opset13.unsqueeze(sums, integers([-1]))
    starts = opset13.unsqueeze(sums, integers([-2]))
    length = vector.get_shape()[-1]
    below = opset13.constant(np.tri(length, k=-1, dtype=bool))
    zero = same_type_constant(np.zeros(()), vector)
    return opset13.select(below, opset13.subtract(ends, starts), zero).output(0)


def _repeated_vector(node: openvino.Node) -> openvino.Output | None:
    """The vector (..., L) whose segment sum `node` is; None where it is something else."""
    if node.get_type_name() != "CumSum" or not is_float(node.output(0)):
        return None
    shape = node.get_input_partial_shape(0)
    if shape.is_dynamic or len(shape) < 2 or shape[-1] != shape[-2]:
        return None
    attributes = node.get_attributes()
    if attributes["exclusive"] or attributes["reverse"] or fixed_axes(node) != [len(shape) - 2]:
        return None
    masked = node.input_value(0).get_node()
    repeated = _kept_below_diagonal(masked, shape[-1].get_length())
    return None if repeated is None else _without_columns(repeated)


def _kept_below_diagonal(masked: openvino.Node, length: int) -> openvino.Output | None:
    """What a Select or a Multiply keeps strictly below the diagonal, with zeros elsewhere."""
    below = np.tri(length, k=-1, dtype=bool)
    kind = masked.get_type_name()
    if kind == "Select":
        condition, when_true, when_false = (masked.input_value(i) for i in range(3))
        mask = constant_value(condition)
        if mask is None:
            return None
        for wanted, kept, other in ((below, when_true, when_false), (~below, when_false, when_true)):
            zero = constant_value(other)
            if zero is not None and not zero.any() and _equals(mask, wanted):
                return kept
    if kind == "Multiply":
        for i in (0, 1):
            mask = constant_value(masked.input_value(i))
            if mask is not None and _equals(mask, below):
                return masked.input_value(1 - i)
    return None


def _equals(mask: np.ndarray, wanted: np.ndarray) -> bool:
    return (
        mask.shape[-2:] == wanted.shape
        and mask.size == wanted.size
        and bool((mask.reshape(wanted.shape) == wanted).all())
    )


def _without_columns(repeated: openvino.Output) -> openvino.Output | None:
    """(..., L) of an output (..., L, L) that repeats it over the last axis, by Broadcast, Tile or by its own shape."""
    from openvino import opset13

    node, rank = repeated.get_node(), len(repeated.get_partial_shape())
    narrow = node.input_value(0) if node.get_type_name() in ("Broadcast", "Tile") else repeated
    if node.get_type_name() == "Broadcast" and node.get_attributes()["mode"].lower() not in ("numpy", "bidirectional"):
        return None
    shape, wide = narrow.get_partial_shape(), repeated.get_partial_shape()
    if shape.is_dynamic or len(shape) != rank or shape[-1] != 1 or any(shape[i] != wide[i] for i in range(rank - 1)):
        return None
    return opset13.squeeze(narrow, integers([-1])).output(0)
