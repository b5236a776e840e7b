"""ActiBA: Swish and SoftPlus as piecewise-linear functions in the graph (XAMBA, arXiv 2502.06924).

On the NPU the compiler's piecewise-linear unit evaluates such a table while the matrix unit drains, so nothing has to
be rewritten there (`"native"`). Elsewhere `"pwl"` puts a fitted table into the graph, exactly, to study what it costs
in accuracy: cell = floor((x + bound) / width), then slope[cell] x + intercept[cell]. `"cheap"` puts the op in the place
that plugins compute fastest: HSwish, ReLU, HardSigmoid.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from paperworks.efficiency.xamba.graph import (
    constant_value,
    described,
    graphs,
    is_float,
    prepare,
    replace,
    same_type_constant,
)
from paperworks.efficiency.xamba.piecewise import PiecewiseLinear

if TYPE_CHECKING:
    import openvino

    Build = Callable[[openvino.Output], openvino.Output]

REALISATIONS = ("pwl", "cheap", "native")
TABLES = {"Swish": "silu", "SoftPlus": "softplus", "Sigmoid": "sigmoid"}
"""The op types that can be rewritten, and the tables' names for them."""


def actiba(
    model: openvino.Model,
    *,
    ops: Iterable[str] = ("Swish", "SoftPlus"),
    segments: int = 32,
    realise: Literal["pwl", "cheap", "native"] = "pwl",
    bound: float = 8.0,
) -> dict[str, int]:
    """Rewrite activations, in place.

    Args:
        model: changed; constants are folded on the way.
        ops: of ``"Swish"``, ``"SoftPlus"``, ``"Sigmoid"``.
        segments, bound: of the table, see `PiecewiseLinear.fit`. Read by ``"pwl"`` alone.
        realise: ``"pwl"``; ``"cheap"``, whose largest errors are 0.142 (HSwish), ln 2 (ReLU for SoftPlus) and 0.069;
            ``"native"``, which leaves the ops to the compiler of the device.

    Returns:
        By op type, the number of rewritten ops. A Swish whose beta is not constant stays, with a warning,
        and so does what has no elements (the CPU plugin cannot compile a table for it).

    Raises:
        TypeError: `model` is no openvino.Model.
        ValueError: an unknown op or realisation, or what `PiecewiseLinear.fit` refuses.
        ImportError: openvino is missing.
    """
    wanted = [ops] if isinstance(ops, str) else list(ops)
    for name in wanted:
        if name not in TABLES:
            raise ValueError(f"ops: got {name!r}, want some of {', '.join(TABLES)}")
    if realise not in REALISATIONS:
        raise ValueError(f"realise: got {realise!r}, want one of {', '.join(REALISATIONS)}")
    counts = dict.fromkeys(wanted, 0)
    builders: dict[str, Build]
    if realise == "pwl":
        builders = {name: _table(PiecewiseLinear.fit(TABLES[name], segments, bound)) for name in counts}
    else:
        builders = {name: CHEAP[name] for name in counts}
    prepare(model)
    if realise == "native":
        return counts
    for graph in graphs(model):
        for node in graph.get_ordered_ops():
            name = node.get_type_name()
            if name not in counts or not is_float(node.output(0)):
                continue
            shape = node.get_output_partial_shape(0)
            beta = None if shape.is_static and 0 in shape.to_shape() else _beta(node)
            if beta is None:
                continue
            replace(node, _scaled(builders[name], node.input_value(0), beta))
            counts[name] += 1
        graph.validate_nodes_and_infer_types()
    return counts


def _beta(node: openvino.Node) -> float | None:
    """beta of x sigmoid(beta x); 1 for the other ops; None, with a warning, where it is not a constant above zero."""
    if node.get_type_name() != "Swish" or node.get_input_size() < 2:
        return 1.0
    value = constant_value(node.input_value(1))
    if value is None or not float(value.reshape(-1)[0]) > 0:
        warnings.warn(f"{described(node)} is left as it is: its beta is not a constant above zero", stacklevel=3)
        return None
    return float(value.reshape(-1)[0])


def _scaled(build: Build, x: openvino.Output, beta: float) -> openvino.Output:
    """swish(beta x) / beta."""
    from openvino import opset13

    if beta == 1.0:
        return build(x)
    inner = build(opset13.multiply(x, same_type_constant(np.array(beta), x)).output(0))
    return opset13.multiply(inner, same_type_constant(np.array(1 / beta), x)).output(0)


def _table(table: PiecewiseLinear) -> Build:
    """slope[cell] x + intercept[cell]; the cell is found in float32, whatever the graph's type."""
    slopes, intercepts = table.by_cell()
    cells, low, high = len(slopes) - 2, float(table.knots[0]), float(table.knots[-1])

    def build(x: openvino.Output) -> openvino.Output:
        from openvino import opset13 as op

        axis = op.constant(np.int32(0))
        wide: Any = x if x.get_element_type().get_type_name() == "f32" else op.convert(x, "f32")
        scaled = op.multiply(op.subtract(wide, np.float32(low)), np.float32(cells / (high - low)))
        cell = op.convert(op.add(op.floor(op.clamp(scaled, -1.0, float(cells))), np.float32(1)), "i32")
        slope, intercept = (op.gather(same_type_constant(part, x), cell, axis) for part in (slopes, intercepts))
        return op.add(op.multiply(slope, x), intercept).output(0)

    return build


def _hard_sigmoid(x: openvino.Output) -> openvino.Output:
    from openvino import opset13

    sixth, half = (same_type_constant(np.array(v), x) for v in (1 / 6, 0.5))
    return opset13.hard_sigmoid(x, sixth, half).output(0)


def _hard_swish(x: openvino.Output) -> openvino.Output:
    from openvino import opset13

    return opset13.hswish(x).output(0)


def _relu(x: openvino.Output) -> openvino.Output:
    from openvino import opset13

    return opset13.relu(x).output(0)


CHEAP: dict[str, Build] = {"Swish": _hard_swish, "SoftPlus": _relu, "Sigmoid": _hard_sigmoid}
