"""The passes together, and a table of what each one changes in a graph of yours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paperworks.efficiency.xamba.activation import actiba as _actiba
from paperworks.efficiency.xamba.cumulative_sum import cumba as _cumba
from paperworks.efficiency.xamba.graph import check_model
from paperworks.efficiency.xamba.inspection import (
    benchmark,
    compiled,
    largest_intermediate,
    op_histogram,
    product_multiply_adds,
)
from paperworks.efficiency.xamba.reduce_sum import reduba as _reduba
from paperworks.efficiency.xamba.segment_sum import segsum_difference as _segsum_difference

if TYPE_CHECKING:
    import openvino

_OPTIONS = {
    "cumba": ("match",),
    "reduba": ("include_mean", "fuse"),
    "actiba": ("ops", "segments", "realise", "bound"),
}


def xamba(
    model: openvino.Model,
    *,
    cumba: bool = True,
    reduba: bool = True,
    actiba: bool = False,
    segsum_difference: bool = False,
    **kw: Any,
) -> openvino.Model:
    """A rewritten copy of the model; the given one stays as it is.

    Args:
        model: from `openvino.convert_model`, `export_mamba`, ONNX or IR.
        cumba, reduba: the exact rewrites.
        actiba: the approximate one.
        segsum_difference: segment sums as differences, before the other passes (beyond the paper).
        **kw: options of `cumba` (match), `reduba` (include_mean, fuse) and `actiba` (ops, segments, realise, bound).

    Raises:
        TypeError: an option of none of the passes that are on, or what they raise.
        ValueError: see the passes.
    """
    check_model(model)
    on = {"cumba": cumba, "reduba": reduba, "actiba": actiba}
    known = [option for name, options in _OPTIONS.items() if on[name] for option in options]
    for option in kw:
        if option not in known:
            raise TypeError(f"{option}: no option of the passes that are on; want some of {', '.join(known) or 'none'}")
    options = {name: {key: kw[key] for key in _OPTIONS[name] if key in kw} for name in _OPTIONS}
    rewritten = model.clone()
    if segsum_difference:
        _segsum_difference(rewritten)
    if cumba:
        _cumba(rewritten, **options["cumba"])
    if reduba:
        _reduba(rewritten, **options["reduba"])
    if actiba:
        _actiba(rewritten, **options["actiba"])
    return rewritten


Rewrite = Callable[["openvino.Model"], object]

PASSES: Mapping[str, Rewrite] = {
    "CumBA": _cumba,
    "ReduBA": _reduba,
    "ReduBA, fused": lambda model: _reduba(model, fuse=True),
    "segment sums by difference": _segsum_difference,
    "ActiBA, 32 segments": _actiba,
    "ActiBA, cheap": lambda model: _actiba(model, realise="cheap"),
}


@dataclass(frozen=True)
class PassRow:
    """What one pass, alone, makes of a graph.

    Attributes:
        name: of the pass; "as it is" for the graph itself.
        ops: changes of the op counts, e.g. {"CumSum": (3, 0)}, before and after.
        macs: multiply-adds of all MatMul ops.
        largest: bytes of the largest intermediate.
        relative_error: max |output - that of the graph as it is| / max |output|, over all outputs.
        median_ms: time on the device.
    """

    name: str
    ops: Mapping[str, tuple[int, int]]
    macs: int
    largest: int
    relative_error: float
    median_ms: float


class PassReport(list[PassRow]):
    """Rows of `pass_report`; `str` makes the table."""

    def __str__(self) -> str:
        heads = ("pass", "ms", "MMACs", "largest MB", "error", "ops")
        table = [heads] + [
            (
                row.name,
                f"{row.median_ms:.2f}",
                f"{row.macs / 1e6:.1f}",
                f"{row.largest / 1e6:.1f}",
                f"{row.relative_error:.1e}",
                ", ".join(f"{op} {before} -> {after}" for op, (before, after) in row.ops.items()),
            )
            for row in self
        ]
        widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
        lines = []
        for line in table:
            cells = zip(line, widths, range(len(heads)), strict=True)
            lines.append("  ".join(c.ljust(w) if i in (0, 5) else c.rjust(w) for c, w, i in cells).rstrip())
        return "\n".join(lines)


def pass_report(
    model: openvino.Model,
    inputs: Sequence[np.ndarray],
    passes: Mapping[str, Rewrite] | None = None,
    *,
    device: str = "CPU",
    threads: int | None = None,
    runs: int = 10,
) -> PassReport:
    """What each pass, alone, does to a graph on a device: ops, work, largest tensor, error and time.

    Args:
        model: of static shape; it stays as it is.
        inputs: arrays in the order of `model.inputs`.
        passes: name -> function that rewrites a model in place; `PASSES` by default.
        device, threads, runs: see `benchmark`.
    """
    check_model(model)
    before, wanted = op_histogram(model), _outputs(model, inputs, device, threads)
    report = PassReport()
    for name, rewrite in {"as it is": lambda model: None, **(PASSES if passes is None else passes)}.items():
        changed = model.clone()
        rewrite(changed)
        after = op_histogram(changed)
        differing = sorted(op for op in before | after if before[op] != after[op] and op != "Constant")
        report.append(
            PassRow(
                name,
                {op: (before[op], after[op]) for op in differing},
                product_multiply_adds(changed),
                largest_intermediate(changed),
                _relative_error(_outputs(changed, inputs, device, threads), wanted),
                benchmark(changed, inputs, device, threads, runs).median_ms,
            )
        )
    return report


def _outputs(model: openvino.Model, inputs: Sequence[np.ndarray], device: str, threads: int | None) -> list[np.ndarray]:
    return [np.array(value) for value in compiled(model, device, threads)(list(inputs)).to_tuple()]


def _relative_error(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    errors = [np.abs(a - b).max() / max(np.abs(b).max(), 1e-30) for a, b in zip(found, wanted, strict=True) if a.size]
    return float(max(errors, default=0.0))
