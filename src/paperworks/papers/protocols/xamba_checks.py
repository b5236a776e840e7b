"""The exact claims of XAMBA: each function computes the numbers that its claim on the card puts bounds on."""

from __future__ import annotations

import math
from typing import Any

from paperworks.lab.trial import Trial


def _difference(before: Any, after: Any, inputs: list[Any]) -> float:
    """Largest difference of any output, by the largest value of that output."""
    import numpy as np

    from paperworks.efficiency.xamba.inspection import compiled

    old, new = ([np.array(v) for v in compiled(m, "CPU", 1)(inputs).to_tuple()] for m in (before, after))
    return max(float(np.abs(a - b).max() / max(1e-30, np.abs(a).max())) for a, b in zip(old, new, strict=True))


def rewrites_are_exact(trial: Trial) -> dict[str, float]:
    """Twelve cumulative sums and fourteen sums of a (3, 4, 5) input in a graph; logits and states of a small model."""
    import itertools

    import numpy as np
    import openvino
    import torch
    from openvino import opset13 as op
    from transformers import Mamba2Config, Mamba2ForCausalLM

    from paperworks.efficiency.xamba import export_mamba, op_histogram, xamba

    x = op.parameter([3, 4, 5], np.float32)
    outputs = [
        op.cum_sum(x, np.int64(axis), exclusive=exclusive, reverse=reverse)
        for axis, exclusive, reverse in itertools.product(range(3), (False, True), (False, True))
    ]
    for axes, keep in itertools.product(([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]), (False, True)):
        outputs.append(op.reduce_sum(x, np.array(axes), keep))
    ops = openvino.Model(outputs, [x])
    with trial.global_generators("weights"):
        config = Mamba2Config(
            num_heads=4, head_dim=8, hidden_size=16, state_size=8, n_groups=2, chunk_size=8, num_hidden_layers=2,
            vocab_size=50,
        )  # fmt: skip
        model = Mamba2ForCausalLM(config).eval()
    graph = export_mamba(model, batch=2, seq_len=20, style="naive", states=True)
    generator = trial.numpy_generator("inputs")
    inputs = [generator.normal(size=(3, 4, 5)).astype(np.float32)]
    tokens = torch.randint(0, 50, (2, 20), generator=trial.generator("tokens")).numpy()
    left = op_histogram(xamba(ops)) + op_histogram(xamba(graph))
    return {
        "ops, all axes and flags: largest difference": _difference(ops, xamba(ops), inputs),
        "small Mamba-2: largest difference": _difference(graph, xamba(graph), [tokens]),
        "CumSum left": left["CumSum"],
        "ReduceSum left": left["ReduceSum"],
    }


def memory_of_a_layer(trial: Trial) -> dict[str, float]:
    """The graph of early 2024's operations, and the same after the passes; both are run once."""
    from paperworks.efficiency.xamba import export_mamba, largest_intermediate, op_histogram, xamba
    from paperworks.papers.protocols.openvino_graphs import mamba2_layer, some_tokens

    graph = export_mamba(mamba2_layer(trial.derived_seed("weights") % 2**31), seq_len=256, style="naive")
    counts, fused = op_histogram(graph), xamba(graph, fuse=True)
    return {
        "naive: CumSum ops": counts["CumSum"],
        "naive: ReduceSum ops": counts["ReduceSum"],
        "naive: largest intermediate": largest_intermediate(graph),
        "ReduBA: largest intermediate": largest_intermediate(xamba(graph)),
        "ReduBA, fused: largest intermediate": largest_intermediate(fused),
        "largest difference of the outputs": _difference(graph, fused, [some_tokens(0, 1, 256)]),
    }


def cost_of_a_product(trial: Trial) -> dict[str, float]:
    """The formula, and the same counted in the graph."""
    from paperworks.efficiency.xamba import cumsum_cost
    from paperworks.efficiency.xamba.cumulative_sum import triangle
    from paperworks.efficiency.xamba.inspection import product_multiply_adds
    from paperworks.papers.protocols.openvino_graphs import column_sums, rewritten

    cost = cumsum_cost(256, 24 * 256)
    return {
        "additions": cost.additions,
        "multiply-adds": cost.macs,
        "multiply-adds in the rewritten graph": product_multiply_adds(rewritten(column_sums(), "CumBA")),
        "useful share": cost.useful,
        "ones in the constant": float(triangle(256).mean()),
    }


def scan_equals_recurrence(trial: Trial) -> dict[str, float]:
    """Outputs and last states."""
    import torch

    from paperworks.efficiency.xamba import ssd_scan

    generator, steps, heads, p, n = trial.generator("inputs"), 300, 24, 64, 128
    wide: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    x, B, C = (torch.randn(1, steps, *shape, **wide) for shape in ((heads, p), (1, n), (1, n)))
    dt, A = 0.1 * torch.rand(1, steps, heads, **wide), -torch.arange(1, heads + 1, dtype=torch.float64)
    start = torch.randn(1, heads, p, n, **wide)
    state, outputs = start, []
    for t in range(steps):
        drive = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        state = state * torch.exp(dt[:, t] * A)[..., None, None] + drive
        outputs.append((state * C[:, t, :, None]).sum(-1))
    y, found = torch.stack(outputs, 1), {}
    for form in ("cumsum", "matmul", "difference"):
        pairs = [ssd_scan(x, dt, A, B, C, chunk=chunk, segsum=form, state=start) for chunk in (256, 48)]
        errors = [float((a - b).abs().max()) for pair in pairs for a, b in zip(pair, (y, state), strict=True)]
        found[f"{form}: largest difference"] = max(errors)
    return found


def errors_of_the_tables(trial: Trial) -> dict[str, float]:
    """Each op alone in a graph, before and after."""
    import numpy as np
    import openvino
    from openvino import opset13 as op

    from paperworks.efficiency.xamba import actiba
    from paperworks.efficiency.xamba.inspection import compiled

    points, found = np.linspace(-12, 12, 24_001, dtype=np.float32), {}
    for label, build, options in (
        ("Swish, 32 segments", op.swish, {}),
        ("SoftPlus, 32 segments", op.softplus, {}),
        ("Swish by HSwish", op.swish, {"realise": "cheap"}),
        ("SoftPlus by ReLU", op.softplus, {"realise": "cheap"}),
    ):
        x = op.parameter([len(points)], np.float32)
        graph = openvino.Model([build(x)], [x])
        before = np.array(compiled(graph, "CPU", 1)([points])[0])
        actiba(graph, **options)  # type: ignore[arg-type]
        found[label] = float(np.abs(np.array(compiled(graph, "CPU", 1)([points])[0]) - before).max())
    return found


def activations_of_a_layer(trial: Trial) -> dict[str, float]:
    """The exported layer with each table; the steps are read before SoftPlus, in PyTorch."""
    import torch

    from paperworks.efficiency.xamba import actiba, export_mamba
    from paperworks.papers.protocols.openvino_graphs import HEADS, mamba2_layer, some_tokens

    model: Any = mamba2_layer(trial.derived_seed("weights") % 2**31)
    graph, tokens = export_mamba(model, seq_len=256), some_tokens(0, 1, 256)

    def error(**options: Any) -> float:
        changed = graph.clone()
        actiba(changed, **options)
        return _difference(graph, changed, [tokens])

    steps: list[Any] = []
    mixer = model.layers[0].mixer
    mixer.in_proj.register_forward_hook(lambda module, args, out: steps.append(out[..., -HEADS:] + mixer.dt_bias))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(tokens))
    errors = {segments: error(segments=segments) for segments in (8, 16, 32, 64)}
    trial.curve("relative error by segments", list(errors.values()))
    return {
        "64 segments: relative error": errors[64],
        "error of 8 segments / error of 32": errors[8] / errors[32],
        "ReLU for SoftPlus: relative error": error(realise="cheap", ops=("SoftPlus",)),
        "ReLU for SoftPlus: share of steps that are zero": float((steps[0] <= 0).float().mean()),
    }


def four_tokens_cost_a_chunk(trial: Trial) -> dict[str, float]:
    """Both lengths exported by transformers' own operations."""
    from paperworks.efficiency.xamba import export_mamba, largest_intermediate
    from paperworks.papers.protocols.openvino_graphs import CHUNK, mamba2_layer

    model = mamba2_layer(trial.derived_seed("weights") % 2**31)
    found: dict[str, float] = {
        f"largest intermediate, {tokens} tokens": largest_intermediate(export_mamba(model, seq_len=tokens))
        for tokens in (4, 256)
    }
    return found | {"share of the chunk that is padding": 1 - 4 / CHUNK}


def segment_sums_by_difference(trial: Trial) -> dict[str, float]:
    """The decay exp(S) by both graphs, and the sums themselves in float32 and float64."""
    import numpy as np
    import torch

    from paperworks.efficiency.xamba import cumsum_cost, segment_sum
    from paperworks.papers.protocols.openvino_graphs import rewritten, segment_decay

    generator = trial.numpy_generator("steps")
    steps = np.exp(generator.uniform(np.log(1e-3), np.log(0.1), (1, 24, 1, 256)))
    a = (-steps * np.arange(1, 25)[:, None, None]).astype(np.float32)
    graph = segment_decay()
    changed = rewritten(graph, "difference")
    sums = [n for n in changed.get_ordered_ops() if n.get_type_name() == "CumSum"]
    exact, rounded = (
        segment_sum(torch.from_numpy(a).to(t), "difference").double() for t in (torch.float64, torch.float32)
    )
    below = torch.ones(256, 256).tril().bool()
    off = (exact - rounded).masked_fill(~below, 0).abs().amax((-1, -2))
    whole = torch.from_numpy(a).double().sum(-1).abs()
    return {
        "largest difference of the decay": _difference(graph, changed, [a]),
        "rounding / (eps |c_L|)": float((off / (whole * float(np.finfo(np.float32).eps))).max()),
        "additions, sums of columns": cumsum_cost(256, 24 * 256).additions,
        "additions, one sum": cumsum_cost(256, 24).additions,
        "CumSum elements in the rewritten graph": sum(math.prod(n.get_output_shape(0)) for n in sums),
    }
