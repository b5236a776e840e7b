"""What the rewrites share: walking an `openvino.Model` and its bodies, reading constants, replacing ops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import openvino


def require_openvino() -> Any:
    """The `openvino` package. Raises ImportError that names the extra where it is missing."""
    try:
        import openvino
    except ImportError as error:
        raise ImportError("OpenVINO is not installed: pip install 'paperworks[openvino]'") from error
    return openvino


def check_model(model: Any) -> None:
    """Raise TypeError unless `model` is an `openvino.Model`."""
    if not isinstance(model, require_openvino().Model):
        raise TypeError(f"model: got {type(model).__name__}, want an openvino.Model (see openvino.convert_model)")


def graphs(model: openvino.Model) -> Iterator[openvino.Model]:
    """The model, and the bodies of its If, Loop and TensorIterator ops at any depth."""
    yield model
    for node in model.get_ordered_ops():
        for body in _bodies(node):
            yield from graphs(body)


def _bodies(node: Any) -> list[openvino.Model]:
    kind = node.get_type_name()
    if kind == "If":
        return [node.get_function(0), node.get_function(1)]
    return [node.get_function()] if kind in ("Loop", "TensorIterator") else []


def prepare(model: openvino.Model) -> None:
    """Infer shapes and fold what depends on constants alone, so that axes and lengths can be read."""
    check_model(model)
    model.validate_nodes_and_infer_types()
    with _compressed_weights_aside(model):
        fold_constants(model)


def fold_constants(model: openvino.Model) -> None:
    """Replace everything that depends on constants and fixed shapes alone by its value, weights included."""
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    for _ in range(2):  # what the first round makes constant, the second reads
        for graph in graphs(model):
            for node in graph.get_ordered_ops():
                _fold_what_openvino_keeps(node)
        manager.run_passes(model)


def _fold_what_openvino_keeps(node: openvino.Node) -> None:
    """The shape of a tensor (kept so that a model can be reshaped) and a negated mask (it has no evaluation)."""
    from openvino import opset13

    kind = node.get_type_name()
    if kind == "ShapeOf" and node.get_input_partial_shape(0).is_static:
        shape = np.array(node.get_input_shape(0), dtype=np.int64)
        if node.get_output_element_type(0).get_type_name() == "i32":
            shape = shape.astype(np.int32)
        replace(node, opset13.constant(shape).output(0))
    if kind == "BitwiseNot" and node.get_output_element_type(0).get_type_name() == "boolean":
        value = constant_value(node.input_value(0))
        if value is not None:
            replace(node, opset13.constant(~value.astype(bool)).output(0))


@contextmanager
def _compressed_weights_aside(model: openvino.Model) -> Iterator[None]:
    """Put a parameter in the place of each weight that is kept in half precision: folding would make it float32."""
    from openvino import opset13

    held = []
    for node in model.get_ordered_ops():
        if any(key.startswith("decompression") for key in node.get_rt_info()):
            weight = node.input_value(0)
            stand_in = opset13.parameter(weight.get_partial_shape(), weight.get_element_type())
            node.input(0).replace_source_output(stand_in.output(0))
            held.append((node, weight, stand_in))
    model.add_parameters([stand_in for _, _, stand_in in held])
    try:
        yield
    finally:
        for node, weight, stand_in in held:
            node.input(0).replace_source_output(weight)
            model.remove_parameter(stand_in)


def constant_value(output: openvino.Output) -> np.ndarray | None:
    """The value of an output of a Constant; None for any other op."""
    node = output.get_node()
    return np.asarray(node.data) if node.get_type_name() == "Constant" else None


def fixed_axes(node: openvino.Node, index: int = 1) -> list[int] | None:
    """The axes in input `index`, from 0 to rank - 1 and ascending; None, with a warning, where they are not fixed."""
    value, rank = constant_value(node.input_value(index)), node.get_input_partial_shape(0).rank
    if value is None or rank.is_dynamic:
        what = "axis" if value is None else "rank"
        warnings.warn(f"{described(node)} is left as it is: its {what} is not constant", stacklevel=4)
        return None
    return sorted({int(axis) % rank.get_length() for axis in value.reshape(-1)}) if rank.get_length() else []


def fixed_length(node: openvino.Node, axis: int) -> int:
    """Length of an axis of the first input. Raises ValueError that names the op where it is dynamic."""
    dimension = node.get_input_partial_shape(0)[axis]
    if dimension.is_dynamic:
        shape = node.get_input_partial_shape(0)
        raise ValueError(
            f"model: {described(node)} runs over axis {axis} of {shape}, which is dynamic; wanted a fixed length: "
            "call model.reshape(...) first"
        )
    return int(dimension.get_length())


def is_float(output: openvino.Output) -> bool:
    """Whether the element type is a floating-point type."""
    return bool(output.get_element_type().is_real())


def described(node: openvino.Node) -> str:
    """Type and friendly name, for messages."""
    return f"{node.get_type_name()} {node.get_friendly_name()!r}"


def same_type_constant(value: np.ndarray, output: openvino.Output) -> openvino.Output:
    """A Constant with the element type of `output`."""
    from openvino import opset13

    element_type = output.get_element_type()
    name = element_type.get_type_name()
    if name in ("f16", "f32", "f64"):
        return opset13.constant(value.astype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[name])).output(0)
    return opset13.convert(opset13.constant(value.astype(np.float32)), name).output(0)


def integers(values: Sequence[int]) -> openvino.Node:
    """A 1-d i64 Constant: axes, orders, shapes."""
    from openvino import opset13

    return opset13.constant(np.asarray(values, dtype=np.int64))


def transposed(output: openvino.Output, order: Sequence[int]) -> openvino.Output:
    """A Transpose; nothing where the order is that of the input already."""
    from openvino import opset13

    return output if list(order) == sorted(order) else opset13.transpose(output, integers(order)).output(0)


def replace(old: openvino.Node, new: openvino.Output) -> None:
    """Hand the consumers of `old`'s output to `new`; names of op and tensor go with them."""
    output = old.output(0)
    new.get_node().set_friendly_name(old.get_friendly_name())
    new.get_tensor().set_names(new.get_names() | output.get_names())
    for consumer in output.get_target_inputs():
        consumer.replace_source_output(new)
