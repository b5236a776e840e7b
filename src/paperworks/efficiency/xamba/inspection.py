"""What is in a graph and what it costs: op counts, the largest intermediate, multiply-adds, time on a device."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paperworks.efficiency.xamba.graph import check_model, described, fold_constants, graphs, require_openvino

if TYPE_CHECKING:
    import openvino

_NOT_COMPUTED = ("Constant", "Parameter", "Result")
_PROFILED_RUNS = 3


@dataclass(frozen=True)
class Latency:
    """Time of a graph on a device.

    Attributes:
        median_ms, p10, p90: milliseconds an inference, over the runs.
        per_op: milliseconds by the plugin's op type, largest first, from runs of their own with its counters on.
    """

    median_ms: float
    p10: float
    p90: float
    per_op: Mapping[str, float]


def op_histogram(model: openvino.Model) -> Counter[str]:
    """Number of ops by type, those of If, Loop and TensorIterator bodies included."""
    check_model(model)
    return Counter(node.get_type_name() for graph in graphs(model) for node in graph.get_ordered_ops())


def largest_intermediate(model: openvino.Model) -> int:
    """Bytes of the largest output of an op that is no Constant, Parameter or Result, after folding constants.

    A plugin may do without some of these tensors. The given model stays as it is. Raises ValueError for a dynamic
    shape.
    """
    check_model(model)
    folded = model.clone()
    fold_constants(folded)
    largest = 0
    for graph in graphs(folded):
        for node in graph.get_ordered_ops():
            for output in node.outputs() if node.get_type_name() not in _NOT_COMPUTED else ():
                if output.get_partial_shape().is_dynamic:
                    shape = output.get_partial_shape()
                    raise ValueError(f"model: {described(node)} has the shape {shape}; wanted a static one")
                bits = int(np.prod(output.get_shape(), dtype=np.int64)) * output.get_element_type().bitwidth
                largest = max(largest, -(-bits // 8))
    return largest


def product_multiply_adds(model: openvino.Model) -> int:
    """Multiply-adds of the MatMul ops of static shape: a triangle or a vector of ones counts in full."""
    check_model(model)
    total = 0
    for graph in graphs(model):
        for node in graph.get_ordered_ops():
            if node.get_type_name() != "MatMul" or node.output(0).get_partial_shape().is_dynamic:
                continue
            shape = node.get_input_shape(0)
            column = len(shape) >= 2 and node.get_attributes()["transpose_a"]
            outputs = int(np.prod(node.get_output_shape(0), dtype=np.int64))
            total += outputs * int(shape[-2] if column else shape[-1])
    return total


def compiled(
    model: openvino.Model, device: str = "CPU", threads: int | None = None, *, counters: bool = False
) -> openvino.CompiledModel:
    """The model compiled for `device`, in float32 on a CPU or GPU, whatever the plugin would choose.

    Raises ValueError for a device that OpenVINO does not find, or a number of threads below one.
    """
    check_model(model)
    ov = require_openvino()
    core = ov.Core()
    found = list(core.available_devices)
    if not any(device == name or device.split(".")[0] == name.split(".")[0] for name in found):
        raise ValueError(f"device: got {device!r}, want one of {', '.join(found)}")
    settings: dict[str, Any] = {}
    if device.startswith(("CPU", "GPU")):
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: got {threads}, want 1 or more")
        if device.startswith("CPU"):
            settings["INFERENCE_NUM_THREADS"] = threads
    if counters:
        settings["PERF_COUNT"] = True
    return core.compile_model(model, device, settings)


def benchmark(
    model: openvino.Model,
    inputs: Sequence[np.ndarray],
    device: str = "CPU",
    threads: int | None = None,
    runs: int = 30,
) -> Latency:
    """Time of an inference, and where it goes.

    To compare two graphs time them alternately, see `paperworks.measure.latency.paired_latency`: a machine drifts.

    Args:
        model: of static shape.
        inputs: arrays in the order of `model.inputs`.
        device: ``"CPU"``, ``"GPU"``, ``"NPU"``: a name that OpenVINO lists.
        threads: of the CPU; None: as many as the plugin takes.
        runs: timed, after two that are not.

    Raises:
        ValueError: another number of inputs or of runs, or what `compiled` refuses.
    """
    check_model(model)
    if len(inputs) != len(model.inputs):
        raise ValueError(f"inputs: got {len(inputs)} arrays, want {len(model.inputs)}")
    if runs < 1:
        raise ValueError(f"runs: got {runs}, want 1 or more")
    request = compiled(model, device, threads).create_infer_request()
    seconds = []
    for run in range(runs + 2):
        start = time.perf_counter()
        request.infer(list(inputs))
        if run >= 2:
            seconds.append(time.perf_counter() - start)
    low, middle, high = np.percentile(np.array(seconds) * 1e3, (10, 50, 90))
    return Latency(float(middle), float(low), float(high), _by_op(model, inputs, device, threads))


def _by_op(model: openvino.Model, inputs: Sequence[np.ndarray], device: str, threads: int | None) -> dict[str, float]:
    request = compiled(model, device, threads, counters=True).create_infer_request()
    totals: list[Counter[str]] = []
    for _ in range(_PROFILED_RUNS + 1):
        request.infer(list(inputs))
        total: Counter[str] = Counter()
        for entry in request.profiling_info:
            if entry.status == entry.status.EXECUTED:
                total[entry.node_type] += entry.real_time.total_seconds() * 1e3
        totals.append(total)
    names = {name for total in totals[1:] for name in total}
    found = {name: statistics.median(total[name] for total in totals[1:]) for name in names}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
