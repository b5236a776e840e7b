"""XAMBA's passes on a layer of Mamba2-130m beside vanilla OpenVINO and PyTorch: float32, as many threads as torch has.

The paper's NPU is not what a CPU is: passes that lose here are shown losing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch

from paperworks.lab.benchmark import Case
from paperworks.papers.protocols.openvino_graphs import inference, mamba2_layer, rewritten, some_tokens

LONG, SHORT = 1024, 256
METHOD = "OpenVINO + difference, fused"
Call = Callable[[], object]


@cache
def layer() -> Any:
    """The layer that all contenders run."""
    return mamba2_layer(0)


@cache
def exported(tokens: int, style: str, mode: str = "prefill") -> Any:
    """Its graph."""
    from paperworks.efficiency.xamba import export_mamba

    return export_mamba(layer(), seq_len=tokens, style=style, mode=mode)  # type: ignore[arg-type]


def graph(tokens: int, style: str = "transformers", rewrite: str = "", mode: str = "prefill") -> Call:
    """The graph after a rewrite, compiled for the CPU."""
    import numpy as np

    model = rewritten(exported(tokens, style, mode), rewrite)
    states = [np.zeros(tuple(port.get_shape()), np.float32) for port in model.inputs[1:]]
    return inference(model, [some_tokens(0, 1, tokens), *states], threads=torch.get_num_threads())


def pytorch(tokens: int, compiled: bool = False) -> Call:
    """The layer in PyTorch. Raises ImportError where nothing can compile it."""
    model, ids = layer(), torch.from_numpy(some_tokens(0, 1, tokens))
    if compiled:
        model = torch.compile(model)

    def call() -> object:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False)

    if compiled:
        try:
            call()
        except Exception as error:  # Dynamo, Inductor and a missing C++ compiler each have an exception of their own
            raise ImportError(f"torch.compile does not work here: {type(error).__name__}") from error
    return call


def optimum_intel(tokens: int) -> Call:
    """optimum-intel's own export. Raises ImportError where it is missing or knows no Mamba-2."""
    from optimum.intel import OVModelForFeatureExtraction

    with tempfile.TemporaryDirectory() as folder:
        layer().save_pretrained(folder)
        try:
            model = OVModelForFeatureExtraction.from_pretrained(folder, export=True)
        except (ValueError, KeyError) as error:
            raise ImportError(f"optimum-intel does not export Mamba-2: {error}") from error
    ids = torch.from_numpy(some_tokens(0, 1, tokens))
    mask = torch.ones_like(ids)
    return lambda: model(input_ids=ids, attention_mask=mask)


def contenders(tokens: int) -> Mapping[str, Callable[[], Call]]:
    """Each pass on transformers' own graph, the peers, and the scan by groups."""
    passes = ("CumBA", "CumBA, ReduBA", "ActiBA, pwl", "ActiBA, cheap", "difference")
    return {
        METHOD: partial(graph, tokens, rewrite="difference, fused"),
        "OpenVINO": partial(graph, tokens),
        **{f"OpenVINO + {name}": partial(graph, tokens, rewrite=name) for name in passes},
        "OpenVINO, grouped scan": partial(graph, tokens, "grouped"),
        "PyTorch": partial(pytorch, tokens),
        "torch.compile": partial(pytorch, tokens, compiled=True),
        "optimum-intel": partial(optimum_intel, tokens),
    }


def cases() -> list[Case]:
    """A prompt of one chunk and of four, the naive graph of one chunk, and a single step."""
    floor = "the projections' 3.75 million weights a token: {:.2g} GFLOP"
    found = [
        Case(f"Mamba-2 layer, {tokens} tokens", METHOD, contenders(tokens), floor.format(2 * 3.75e-3 * tokens))
        for tokens in (SHORT, LONG)
    ]
    naive = {"naive + difference, fused": "difference, fused", "naive": "", "naive + CumBA": "CumBA"}
    naive |= {"naive + CumBA, ReduBA": "CumBA, ReduBA", "naive + ReduBA, fused": "ReduBA, fused"}
    found.append(
        Case(
            f"Mamba-2 layer in the operations of early 2024, {SHORT} tokens",
            "naive + difference, fused",
            {name: partial(graph, SHORT, "naive", rewrite) for name, rewrite in naive.items()},
            floor.format(2 * 3.75e-3 * SHORT),
        )
    )
    step = {"fused": "ReduBA, fused", "as it is": "", "ReduBA": "ReduBA"}
    found.append(
        Case(
            "Mamba-2 layer in the operations of early 2024, one token from its states",
            "fused",
            {name: partial(graph, 1, "naive", rewrite, "decode") for name, rewrite in step.items()},
            "read the projections' weights: 15 MB",
            15_000_000,
        )
    )
    return found
