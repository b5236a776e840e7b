"""ReduBA: a sum over an axis as a product with a vector of ones (XAMBA, arXiv 2502.06924).

sum_k x[..., k] = x 1, with 1 of shape (n, 1) shared by all sums of that length. With `fuse` a Multiply that only feeds
the sum goes into the product: sum_k a[..., k] b[..., k] is a batched matrix product, and the elementwise product, the
largest tensor of the naive structured-state-space-duality graph, is never made.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from paperworks.efficiency.xamba.graph import (
    fixed_axes,
    fixed_length,
    graphs,
    integers,
    is_float,
    prepare,
    replace,
    same_type_constant,
    transposed,
)

if TYPE_CHECKING:
    import openvino

Vectors = dict[tuple[object, ...], "openvino.Output"]


def reduba(model: openvino.Model, *, include_mean: bool = False, fuse: bool = False) -> int:
    """Rewrite ReduceSum ops, in place, as products with a constant vector of ones.

    Sums of integers stay, and so does an op whose axes are not constant, with a warning, or that sums nothing. Bodies
    of If, Loop and TensorIterator are rewritten too. Several axes are flattened to one, after a transpose where they
    are not the last ones.

    Args:
        model: changed; constants are folded on the way.
        include_mean: ReduceMean too, with a vector of 1 / n.
        fuse: where the sum is the only consumer of a Multiply of static shape, both become one batched MatMul.

    Returns:
        The number of rewritten sums and means.

    Raises:
        TypeError: `model` is no openvino.Model.
        ValueError: a summed axis has a dynamic length.
        ImportError: openvino is missing.
    """
    prepare(model)
    kinds = ("ReduceSum", "ReduceMean") if include_mean else ("ReduceSum",)
    rewritten = 0
    for graph in graphs(model):
        vectors: Vectors = {}
        for node in graph.get_ordered_ops():
            if node.get_type_name() not in kinds or not is_float(node.output(0)):
                continue
            axes = fixed_axes(node)
            if not axes or not math.prod(fixed_length(node, axis) for axis in axes):
                continue
            new = _contraction(node, axes) if fuse and node.get_type_name() == "ReduceSum" else None
            replace(node, new if new is not None else _product(node, axes, vectors))
            rewritten += 1
        graph.validate_nodes_and_infer_types()
    return rewritten


def _product(node: openvino.Node, axes: list[int], vectors: Vectors) -> openvino.Output:
    from openvino import opset13

    x = node.input_value(0)
    rank = x.get_partial_shape().rank.get_length()
    kept = [axis for axis in range(rank) if axis not in axes]
    n = math.prod(fixed_length(node, axis) for axis in axes)
    fill = 1.0 / n if node.get_type_name() == "ReduceMean" else 1.0
    key = (n, fill, x.get_element_type().get_type_name())
    if key not in vectors:
        vectors[key] = same_type_constant(np.full((n, 1), fill), x)
    ones = vectors[key]
    if axes == [rank - 2]:  # 1^T x: the axis before the last needs no transpose
        summed, axis = opset13.matmul(ones, x, True, False), rank - 2
    else:
        x = transposed(x, kept + axes)
        if len(axes) > 1:  # a zero takes the length from the input, so the other axes may be dynamic
            x = opset13.reshape(x, integers([0] * len(kept) + [n]), True).output(0)
        summed, axis = opset13.matmul(x, ones, False, False), len(kept)
    return _with_kept_axes(node, opset13.squeeze(summed, integers([axis])).output(0), axes)


def _with_kept_axes(node: openvino.Node, summed: openvino.Output, axes: list[int]) -> openvino.Output:
    from openvino import opset13

    if not node.get_attributes()["keep_dims"]:
        return summed
    return opset13.unsqueeze(summed, integers(axes)).output(0)


def _contraction(node: openvino.Node, axes: list[int]) -> openvino.Output | None:
    """sum over `axes` of a * b as a batched MatMul; None where the sum's input is no product that allows it."""
    from openvino import opset13

    product = node.input_value(0).get_node()
    if product.get_type_name() != "Multiply" or len(product.output(0).get_target_inputs()) > 1:
        return None
    factors = [product.input_value(0), product.input_value(1)]
    if any(factor.get_partial_shape().is_dynamic for factor in factors):
        return None
    rank = len(product.get_output_shape(0))
    shapes = [[1] * (rank - len(f.get_shape())) + list(f.get_shape()) for f in factors]
    a, b = shapes
    if any(a[axis] != b[axis] for axis in axes):  # one factor is constant along the sum: no contraction
        return None
    kept = [axis for axis in range(rank) if axis not in axes]
    rows = [axis for axis in kept if b[axis] == 1 and a[axis] != 1]
    columns = [axis for axis in kept if a[axis] == 1 and b[axis] != 1]
    batch = [axis for axis in kept if axis not in rows and axis not in columns]

    def arranged(index: int, order: list[int], split: int) -> openvino.Output:
        """A factor as (batch..., first group, second group), the batch as it is."""
        shape, output = shapes[index], factors[index]
        if len(output.get_shape()) < rank:
            output = opset13.reshape(output, integers(shape), False).output(0)
        output = transposed(output, order)
        start = len(batch)
        sizes = [shape[axis] for axis in order]
        target = [*sizes[:start], math.prod(sizes[start:split]), math.prod(sizes[split:])]
        return opset13.reshape(output, integers(target), False).output(0)

    # axes that the other factor spans are 1 here: they are put where they do not disturb
    left = arranged(0, batch + rows + columns + axes, len(batch) + len(rows) + len(columns))
    right = arranged(1, batch + rows + axes + columns, len(batch) + len(rows) + len(axes))
    summed = opset13.matmul(left, right, False, False).output(0)
    order = batch + rows + columns
    sizes = product.get_output_shape(0)
    if order:
        summed = opset13.reshape(summed, integers([sizes[axis] for axis in order]), False).output(0)
    else:  # a Reshape to no axes at all crashes the CPU plugin
        summed = opset13.squeeze(summed, integers([0, 1])).output(0)
    summed = transposed(summed, [order.index(axis) for axis in kept])
    return _with_kept_axes(node, summed, axes)
