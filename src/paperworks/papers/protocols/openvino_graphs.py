"""Graphs that XAMBA's claims and benchmark run: single ops at the size they have in Mamba2-130m, and a whole layer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paperworks.lab.trial import Trial

HEADS, HEAD_SIZE, STATE, HIDDEN, CHUNK = 24, 64, 128, 768, 256
"""Mamba2-130m."""


def mamba2_layer(seed: int, layers: int = 1) -> nn.Module:
    """`layers` layers of Mamba2-130m with random weights and 512 tokens (which no layer sees), in eval mode."""
    from transformers import Mamba2Config, Mamba2Model

    config = Mamba2Config(
        num_heads=HEADS, head_dim=HEAD_SIZE, hidden_size=HIDDEN, state_size=STATE, n_groups=1, chunk_size=CHUNK,
        num_hidden_layers=layers, vocab_size=512,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model: nn.Module = Mamba2Model(config).eval()
    return model


def some_tokens(seed: int, batch: int, length: int, below: int = 512) -> np.ndarray:
    """Random tokens (batch, length) int64."""
    return np.random.default_rng(seed).integers(0, below, (batch, length))


def column_sums() -> Any:
    """The segment sum's CumSum of one chunk: (1, 24, 1, 256, 256), down the rows."""
    from openvino import Model, opset13

    x = opset13.parameter([1, HEADS, 1, CHUNK, CHUNK], np.float32)
    return Model([opset13.cum_sum(x, np.int64(-2))], [x])


def segment_decay() -> Any:
    """exp of the segment sum of one chunk as transformers writes it: (1, 24, 1, 256) -> (1, 24, 1, 256, 256)."""
    from openvino import Model, opset13

    shape = [1, HEADS, 1, CHUNK, CHUNK]
    a = opset13.parameter(shape[:-1], np.float32)
    wide = opset13.broadcast(opset13.unsqueeze(a, np.int64(-1)), np.array(shape))
    below, kept = (opset13.constant(np.tri(CHUNK, k=k, dtype=bool)) for k in (-1, 0))
    sums = opset13.cum_sum(opset13.select(below, wide, np.float32(0)), np.int64(-2))
    return Model([opset13.exp(opset13.select(kept, sums, np.float32(-np.inf)))], [a])


def sum_over_state() -> Any:
    """ReduceSum of (64, 64, 24, 128) over the last axis: a quarter of a chunk on a side."""
    from openvino import Model, opset13

    x = opset13.parameter([64, 64, HEADS, STATE], np.float32)
    return Model([opset13.reduce_sum(x, np.array([-1]), False)], [x])


def scores() -> Any:
    """Multiply and ReduceSum of C (64, 1, 24, 128) and B (1, 64, 24, 128) over the state, as in the naive graph."""
    from openvino import Model, opset13

    c, b = (opset13.parameter(shape, np.float32) for shape in ([64, 1, HEADS, STATE], [1, 64, HEADS, STATE]))
    return Model([opset13.reduce_sum(opset13.multiply(c, b), np.array([-1]), False)], [c, b])


def activations() -> Any:
    """Swish and SoftPlus of (256, 1536), the width of Mamba-130m's layers."""
    from openvino import Model, opset13

    x = opset13.parameter([256, 2 * HIDDEN], np.float32)
    return Model([opset13.add(opset13.swish(x), opset13.softplus(x))], [x])


OPS: dict[str, Callable[[], Any]] = {
    "column sums": column_sums,
    "segment decay": segment_decay,
    "sum over state": sum_over_state,
    "scores": scores,
    "activations": activations,
}


def rewritten(model: Any, rewrite: str) -> Any:
    """A copy of the model after the rewrite of that name. Raises ValueError for another name."""
    from paperworks.efficiency import xamba

    rewrites: dict[str, Callable[[Any], object]] = {
        "": lambda m: None,
        "CumBA": xamba.cumba,
        "ReduBA": xamba.reduba,
        "ReduBA, fused": lambda m: xamba.reduba(m, fuse=True),
        "ActiBA": lambda m: xamba.actiba(m, realise="native"),
        "ActiBA, pwl": xamba.actiba,
        "ActiBA, cheap": lambda m: xamba.actiba(m, realise="cheap"),
        "difference": xamba.segsum_difference,
        "CumBA, ReduBA": lambda m: (xamba.cumba(m), xamba.reduba(m)),
        "CumBA, ReduBA, ActiBA": lambda m: (xamba.cumba(m), xamba.reduba(m), xamba.actiba(m, realise="native")),
        "difference, fused": lambda m: (xamba.segsum_difference(m), xamba.reduba(m, fuse=True)),
    }
    if rewrite not in rewrites:
        raise ValueError(f"rewrite: got {rewrite!r}, want one of {', '.join(map(repr, rewrites))}")
    copy = model.clone()
    rewrites[rewrite](copy)
    return copy


def inference(
    model: Any, inputs: list[np.ndarray], device: str = "CPU", threads: int | None = 1
) -> Callable[[], object]:
    """The call that runs the compiled model on the inputs."""
    from paperworks.efficiency.xamba.inspection import compiled

    request = compiled(model, device, threads).create_infer_request()
    return lambda: request.infer(inputs)


def kept_graph(trial: Trial, make: Callable[[], Any], **identity: Any) -> Any:
    """The graph that `make` returns, made once a seed: exporting takes longer than the inferences that are timed."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")

        def serialized() -> dict[str, torch.Tensor]:
            openvino.save_model(make(), xml, compress_to_fp16=False)
            return {
                path.suffix: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
                for path in (xml, weights)
            }

        for suffix, content in trial.stage("graph", serialized, **identity).items():
            xml.with_suffix(suffix).write_bytes(content.numpy().tobytes())
        # not mapped into memory: the folder goes
        return openvino.Core().read_model(xml.read_bytes(), weights.read_bytes())


def op(trial: Trial, graph: str, rewrite: str = "") -> Callable[[], object]:
    """A single op of `OPS` on normal inputs, one thread of the CPU plugin, float32."""
    model = OPS[graph]()
    generator = trial.numpy_generator("inputs")
    inputs = [generator.normal(size=tuple(port.get_shape())).astype(np.float32) for port in model.inputs]
    if graph == "segment decay":
        for values in inputs:
            values[:] = -np.abs(values) / 8
    return inference(rewritten(model, rewrite), inputs)


def layer(trial: Trial, rewrite: str = "", tokens: int = CHUNK) -> Callable[[], object]:
    """One layer of Mamba2-130m on a prompt, one thread of the CPU plugin, float32."""
    from paperworks.efficiency.xamba import export_mamba

    seed = trial.derived_seed("weights") % 2**31
    graph = kept_graph(trial, lambda: export_mamba(mamba2_layer(seed), seq_len=tokens), tokens=tokens)
    return inference(rewritten(graph, rewrite), [some_tokens(seed, 1, tokens)])
