"""Counting, measuring, and the report of the passes."""

import subprocess
import sys

import numpy as np
import pytest

from paperworks.efficiency.xamba import benchmark, largest_intermediate, op_histogram, pass_report
from paperworks.efficiency.xamba.inspection import product_multiply_adds

ov = pytest.importorskip("openvino", reason="graphs need OpenVINO")
op = ov.opset13


def test_histogram_and_largest(unary):
    model = unary(
        lambda x: op.reduce_sum(
            op.add(op.unsqueeze(x, np.int64(0)), np.zeros((7, 3), np.float32)), np.array([0]), False
        ),
        (3,),
    )
    assert op_histogram(model)["Add"] == 1
    assert largest_intermediate(model) == 7 * 3 * 4
    half = unary(lambda x: op.relu(x), (5, 3), np.float16)
    assert largest_intermediate(half) == 5 * 3 * 2


def test_constants_are_folded_first(unary):
    """A large table that is computed from constants is no intermediate."""

    def build(x):
        table = op.add(op.constant(np.zeros((100, 100), np.float32)), op.constant(np.float32(1)))
        return op.add(x, op.gather(table, np.int64(0), np.int64(0)))

    model = unary(build, (100,))
    assert largest_intermediate(model) == 400


def test_a_dynamic_shape_is_refused():
    x = op.parameter([-1, 3], np.float32)
    with pytest.raises(ValueError, match="static"):
        largest_intermediate(ov.Model([op.relu(x)], [x]))


def test_multiply_adds_of_products():
    a, b = op.parameter([2, 5, 3], np.float32), op.parameter([2, 7, 5], np.float32)
    model = ov.Model([op.matmul(a, b, True, True)], [a, b])
    assert product_multiply_adds(model) == 2 * 3 * 7 * 5


def test_benchmark_gives_times_and_where_they_go(unary):
    model = unary(lambda x: op.softplus(op.matmul(x, x, False, True)), (64, 64))
    found = benchmark(model, [np.ones((64, 64), np.float32)], threads=1, runs=3)
    assert 0 < found.p10 <= found.median_ms <= found.p90
    assert "MatMul" in found.per_op
    assert all(value >= 0 for value in found.per_op.values())
    assert list(found.per_op.values()) == sorted(found.per_op.values(), reverse=True)


def test_bad_input(unary):
    model = unary(lambda x: op.relu(x), (2,))
    x = np.zeros(2, np.float32)
    for arguments, message in (
        ({"inputs": []}, "inputs"),
        ({"inputs": [x], "runs": 0}, "runs"),
        ({"inputs": [x], "device": "TPU"}, "device"),
        ({"inputs": [x], "threads": 0}, "threads"),
    ):
        with pytest.raises(ValueError, match=message):
            benchmark(model, **arguments)
    with pytest.raises(TypeError, match="model"):
        op_histogram(None)


def test_report(prompt_graph, tokens):
    report = pass_report(prompt_graph, [tokens], threads=1, runs=1)
    rows = {row.name: row for row in report}
    assert rows["as it is"].ops == {}
    assert rows["as it is"].relative_error == 0
    assert rows["CumBA"].ops["CumSum"] == (6, 0)
    assert rows["ReduBA"].ops["ReduceSum"] == (10, 0)
    assert rows["CumBA"].relative_error < 1e-5
    assert rows["CumBA"].macs > rows["as it is"].macs
    assert rows["ReduBA, fused"].largest < rows["as it is"].largest == rows["ReduBA"].largest
    assert rows["ActiBA, cheap"].relative_error > rows["ActiBA, 32 segments"].relative_error > 1e-5
    assert "CumSum 6 -> 0" in str(report)
    assert len(str(report).splitlines()) == len(report) + 1


def test_scan_and_tables_need_no_openvino():
    """With OpenVINO made impossible to import, the graph passes name the extra and the rest works."""
    program = """
import sys
sys.modules["openvino"] = None
import torch
from paperworks.efficiency.xamba import PiecewiseLinear, cumba, export_mamba, ssd_scan
assert PiecewiseLinear.fit("silu", 4)(torch.zeros(2)).shape == (2,)
ssd_scan(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2), torch.zeros(2), *torch.zeros(2, 1, 3, 1, 2))
try:
    cumba(None)
except ImportError as error:
    assert "paperworks[openvino]" in str(error)
else:
    raise AssertionError("no ImportError")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
