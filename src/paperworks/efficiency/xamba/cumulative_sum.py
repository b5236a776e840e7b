"""CumBA: a cumulative sum as a product with a constant triangular matrix (XAMBA, arXiv 2502.06924).

y = T x along axis -2 and y = x T^T along the last axis, with T[i, j] = 1 for j <= i. `exclusive` makes the triangle
strict, `reverse` transposes it. L M additions of M vectors become L^2 M multiply-adds, of which (L + 1) / (2 L) have
a one to multiply with: worth it where a matrix unit is idle and a vector unit walks element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paperworks.efficiency.xamba.graph import (
    fixed_axes,
    fixed_length,
    graphs,
    is_float,
    prepare,
    replace,
    same_type_constant,
    transposed,
)

if TYPE_CHECKING:
    import openvino


@dataclass(frozen=True)
class CumsumCost:
    """Work of cumulative sums done either way.

    Attributes:
        additions: of the sums themselves.
        macs: multiply-adds of the product with the full matrix.
        useful: share of those that meet a one.
    """

    additions: int
    macs: int
    useful: float


def cumsum_cost(length: int, vectors: int = 1) -> CumsumCost:
    """Cost of `vectors` cumulative sums of `length` numbers: L M additions, or L^2 M multiply-adds as a product.

    Raises ValueError for a length or a number of vectors below one.
    """
    for name, value in (("length", length), ("vectors", vectors)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, want at least 1")
    return CumsumCost(length * vectors, length * length * vectors, (length + 1) / (2 * length))


def triangle(length: int, *, exclusive: bool = False, reverse: bool = False) -> np.ndarray:
    """T of shape (length, length) float32, ones and zeros, with y = T x."""
    ones = np.tri(length, k=-1 if exclusive else 0, dtype=np.float32)
    return ones.T.copy() if reverse else ones


def cumba(model: openvino.Model, *, match: Callable[[openvino.Node], bool] | None = None) -> int:
    """Rewrite CumSum ops, in place, as products with a triangular constant of the graph's own type.

    Sums of integers stay (positions must be exact), and so does an op whose axis is not constant, with a warning, or
    that sums nothing. Bodies of If, Loop and TensorIterator are rewritten too. In a product 0 * inf is NaN: an
    infinity in a vector reaches all of it, where CumSum leaves what comes before it alone.

    Args:
        model: changed; constants are folded on the way.
        match: op -> whether to rewrite it; all by default.

    Returns:
        The number of rewritten ops.

    Raises:
        TypeError: `model` is no openvino.Model.
        ValueError: the summed axis of a matching op has a dynamic length.
        ImportError: openvino is missing.
    """
    prepare(model)
    rewritten = 0
    for graph in graphs(model):
        constants: dict[tuple[object, ...], openvino.Output] = {}
        for node in graph.get_ordered_ops():
            if node.get_type_name() != "CumSum" or not is_float(node.output(0)):
                continue
            if match is not None and not match(node):
                continue
            axes = fixed_axes(node)
            if axes and fixed_length(node, axes[0]):
                replace(node, _product(node, axes[0], constants))
                rewritten += 1
        graph.validate_nodes_and_infer_types()
    return rewritten


def _product(node: openvino.Node, axis: int, constants: dict[tuple[object, ...], openvino.Output]) -> openvino.Output:
    from openvino import opset13

    x, attributes = node.input_value(0), node.get_attributes()
    rank, length = x.get_partial_shape().rank.get_length(), fixed_length(node, axis)
    flags = {name: bool(attributes[name]) for name in ("exclusive", "reverse")}
    key = (length, x.get_element_type().get_type_name(), *flags.values())
    if key not in constants:
        constants[key] = same_type_constant(triangle(length, **flags), x)
    matrix = constants[key]
    if axis == rank - 2:
        return opset13.matmul(matrix, x, False, False).output(0)
    if axis == rank - 1:
        return opset13.matmul(x, matrix, False, True).output(0)
    swapped = list(range(rank))
    swapped[axis], swapped[-1] = swapped[-1], swapped[axis]
    product = opset13.matmul(transposed(x, swapped), matrix, False, True)
    return transposed(product.output(0), swapped)
