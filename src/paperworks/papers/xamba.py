"""XAMBA: Enabling Efficient State Space Models on Resource-Constrained NPUs (arXiv 2502.06924): card and claims."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.papers.protocols import xamba_checks as checks
from paperworks.papers.protocols.openvino_device import openvino_device
from paperworks.papers.protocols.timing import timing
from paperworks.papers.protocols.xamba_accuracy import rewritten_language_model

paper = Paper(
    id="xamba",
    title="XAMBA: Enabling Efficient State Space Models on Resource-Constrained Neural Processing Units",
    area="efficiency",
    arxiv="2502.06924",
    date=date(2025, 2, 10),
    authors="Arghadip Das, Arnab Raha, Shamik Kundu, Soumendu Kumar Ghosh, Deepak Mathaikutty, Vijay Raghunathan",
    n_authors=6,
    venue="SCOPE workshop, ICLR 2025",
    code="https://github.com/arghadippurdue/XAMBA",
    keywords=("state space model", "mamba", "npu", "openvino", "inference speed", "cumulative sum", "edge device"),
    method="paperworks.efficiency.xamba",
    summary=(
        "A laptop's neural processing unit multiplies matrices fast and does everything else slowly. Mamba models are "
        "full of everything else: cumulative sums, sums, Swish and SoftPlus run one after the other on a small vector "
        "unit. XAMBA rewrites the graph: a cumulative sum becomes a product with a triangle of ones (CumBA), a sum a "
        "product with a vector of ones (ReduBA), and activations become tables of straight lines (ActiBA), which the "
        "unit evaluates on the way out of the preceding product. Here the passes take any OpenVINO model."
    ),
    usage=(
        "from transformers import AutoModel\n"
        "from paperworks.efficiency.xamba import export_mamba, pass_report, xamba\n\n"
        'graph = export_mamba(AutoModel.from_pretrained("FOLDER"), seq_len=256)   # static shapes, Mamba or Mamba-2\n'
        "graph = xamba(graph, fuse=True, segsum_difference=True)                  # or cumba(graph), reduba(graph)\n"
        'compiled = openvino.compile_model(graph, "NPU")                          # or "CPU", "GPU"\n'
        "print(pass_report(graph, [tokens]))                                      # what each pass buys on this device"
    ),
    provenance={
        "CumBA and ReduBA: products with a triangle and a vector of ones": "the paper and its code",
        "ActiBA: activations as tables of straight lines": "the paper; its code holds no table",
        "knots and values of the tables": "our choice: minimax, 32 segments on [-8, 8], asymptotes outside",
        "the baseline graph, contractions as products followed by sums": "the paper's code, rebuilt here (naive style)",
        "single-step graph with explicit states": "our reading of the two phases that the paper times",
        "segment sums by difference, contractions fused to products, scan by groups": "ours, beyond the paper",
    },
)  # fmt: skip

SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)
OPENVINO = Need("package", "openvino", "pip install 'paperworks[openvino]'")
TRANSFORMERS = Need("package", "transformers", "pip install 'paperworks[efficiency]'")
BOTH = (OPENVINO, TRANSFORMERS)
CALLS = "paperworks.papers.protocols.openvino_graphs"
PASSES = "paperworks.efficiency.xamba"


paper.exact(
    "CumBA and ReduBA are exact rewrites: they change no output.",
    source="abstract; the method's definition",
    expect={
        "ops, all axes and flags: largest difference": Bound(at_most=1e-4),
        "small Mamba-2: largest difference": Bound(at_most=1e-4),
        "CumSum left": Bound(equals=0),
        "ReduceSum left": Bound(equals=0),
    },
    needs=BOTH,
    note="32-bit floats on the CPU plugin; the small model has two layers, two groups, three chunks and a padded end",
)(checks.rewrites_are_exact)

paper.exact(
    "Without the products that ReduBA sums up, the largest tensor of a Mamba2-130m layer falls from 805 to 6.3 MB.",
    source="abstract (memory); the sizes are ours",
    expect={
        "naive: CumSum ops": Bound(equals=3),
        "naive: ReduceSum ops": Bound(equals=5),
        "naive: largest intermediate": Bound(equals=256 * 256 * 24 * 128 * 4),
        "ReduBA: largest intermediate": Bound(equals=256 * 256 * 24 * 128 * 4),
        "ReduBA, fused: largest intermediate": Bound(equals=256 * 256 * 24 * 4),
        "largest difference of the outputs": Bound(at_most=1e-4),
    },
    needs=BOTH,
    note="one layer, 256 tokens; bytes. ReduBA as published keeps the product; fusing it into the sum is ours",
)(checks.memory_of_a_layer)

paper.exact(
    "As a product a cumulative sum of L numbers takes L^2 multiply-adds, of which (L + 1) / 2L are with a one.",
    source="the method's definition",
    expect={
        "additions": Bound(equals=256 * 24 * 256),
        "multiply-adds": Bound(equals=256 * 256 * 24 * 256),
        "multiply-adds in the rewritten graph": Bound(equals=256 * 256 * 24 * 256),
        "useful share": Bound(equals=257 / 512, tolerance=1e-12),
        "ones in the constant": Bound(equals=257 / 512, tolerance=1e-12),
    },
    needs=(OPENVINO,),
    note="the column sums of one chunk of 256 tokens of Mamba2-130m, 24 heads",
)(checks.cost_of_a_product)

paper.exact(
    "The scan in chunks, of any length and with any form of the segment sum, equals the recurrence step by step.",
    source="the graph that the method rewrites",
    expect={f"{form}: largest difference": Bound(at_most=1e-10) for form in ("cumsum", "matmul", "difference")},
    note="heads, head size and state of Mamba2-130m, 300 steps, float64, chunks of 256 and of 48, from a random state",
)(checks.scan_equals_recurrence)

paper.exact(
    "A table of 32 segments stays within 0.003 of Swish and SoftPlus; ReLU, which the code puts in SoftPlus's place, "
    "is ln 2 away.",
    source="ActiBA; the code",
    expect={
        "Swish, 32 segments": Bound(at_most=3e-3),
        "SoftPlus, 32 segments": Bound(at_most=3e-3),
        "Swish by HSwish": Bound(equals=0.1422, tolerance=1e-3),
        "SoftPlus by ReLU": Bound(equals=math.log(2), tolerance=1e-6),
    },
    needs=(OPENVINO,),
    note="largest absolute errors on [-12, 12], computed by the rewritten graphs",
)(checks.errors_of_the_tables)

paper.exact(
    "ActiBA changes the output of a Mamba2-130m layer little, the less the more segments; ReLU for SoftPlus does not.",
    source="ActiBA; segments are ours",
    expect={
        "64 segments: relative error": Bound(at_most=0.01),
        "error of 8 segments / error of 32": Bound(at_least=4),
        "ReLU for SoftPlus: relative error": Bound(at_least=0.1),
        "ReLU for SoftPlus: share of steps that are zero": Bound(at_least=0.5),
    },
    needs=BOTH,
    note="one layer, random weights, 256 tokens: largest difference of the output by its largest value. A step of zero "
    "moves no state",
)(checks.activations_of_a_layer)

paper.exact(
    "A prompt of 4 tokens, which the code times, is padded to a chunk of 256: its tensors are as large as for 256.",
    source="our finding, from the code's settings",
    expect={
        "largest intermediate, 4 tokens": Bound(equals=24 * 256 * 256 * 4),
        "largest intermediate, 256 tokens": Bound(equals=24 * 256 * 256 * 4),
        "share of the chunk that is padding": Bound(equals=252 / 256),
    },
    needs=BOTH,
    note="one layer of Mamba2-130m; bytes",
)(checks.four_tokens_cost_a_chunk)

paper.exact(
    "A segment sum needs no L x L cumulative sum: differences of one of length L are equal to within rounding.",
    source="ours, beyond the paper",
    expect={
        "largest difference of the decay": Bound(at_most=1e-4),
        "rounding / (eps |c_L|)": Bound(at_most=16),
        "additions, sums of columns": Bound(equals=24 * 256 * 256),
        "additions, one sum": Bound(equals=24 * 256),
        "CumSum elements in the rewritten graph": Bound(equals=24 * 256),
    },
    needs=(OPENVINO,),
    note="one chunk of 256 tokens, 24 heads, steps and decays as Mamba2-130m starts with; rounding against float64",
)(checks.segment_sums_by_difference)


def _op(graph: str, rewrite: str, name: str = "") -> Arm:
    return Arm(name or rewrite or "as it is", f"{CALLS}:op", {"graph": graph, "rewrite": rewrite})


def _layer(rewrite: str, name: str = "") -> Arm:
    return Arm(name or rewrite or "as it is", f"{CALLS}:layer", {"rewrite": rewrite})


for _id, _sentence, _source, _graph, _rewrite, _margin, _published in (
    ("cumba-speeds-up-the-sum", "CumBA makes the cumulative sum at least 1.1 times as fast.",
     "abstract (CumBA), on a CPU", "column sums", "CumBA", 1 / 1.1, "up to 2.7x a model, on an NPU"),
    ("reduba-speeds-up-the-sum", "ReduBA makes a sum over the state faster.",
     "abstract (ReduBA), on a CPU", "sum over state", "ReduBA", 1.0, "up to 1.2x a model, on an NPU"),
    ("fused-reduba-speeds-up-the-scores", "A product and its sum as one matrix product take at most half the time.",
     "ours, beyond the paper", "scores", "ReduBA, fused", 0.5, ""),
    ("actiba-speeds-up-the-activations", "ActiBA's cheap stand-ins make Swish and SoftPlus faster.",
     "abstract (ActiBA), on a CPU", "activations", "ActiBA, cheap", 1.0, "up to 2.6x a model, on an NPU"),
):  # fmt: skip
    paper.measured(
        _id,
        _sentence,
        source=_source,
        published=_published,
        protocol=timing,
        settings={
            "reference": f"{CALLS}:op(graph={_graph!r})",
            "rounds": Tiers(smoke=6, desk=9),
        },
        needs=(OPENVINO,),
        criteria=Criterion(
            "ratio", _op(_graph, _rewrite), "less", margin=_margin, seeds=SEEDS, control=_op(_graph, "")
        ),
        note="one op at the size it has in Mamba2-130m, one thread of OpenVINO's CPU plugin, 32-bit floats",
    )  # fmt: skip

for _id, _sentence, _source, _rewrite in (
    ("cumba-speeds-up-a-layer", "CumBA makes a layer of Mamba-2 at least 1.1 times as fast.",
     "abstract (CumBA), on a CPU", "CumBA"),
    ("difference-speeds-up-a-layer", "Segment sums by difference make a layer of Mamba-2 at least 1.1 times as fast.",
     "ours, beyond the paper", "difference"),
):  # fmt: skip
    paper.measured(
        _id,
        _sentence,
        source=_source,
        published="up to 2.7x, on an NPU" if _rewrite == "CumBA" else "",
        protocol=timing,
        settings={"reference": f"{CALLS}:layer()", "rounds": 6},
        needs=BOTH,
        criteria=Criterion("ratio", _layer(_rewrite), "less", margin=1 / 1.1, seeds=SEEDS, control=_layer("")),
        note="Mamba2-130m's sizes, random weights, a prompt of 256 tokens exported by transformers' own operations; "
        "one thread of OpenVINO's CPU plugin, 32-bit floats",
    )  # fmt: skip

TABLE_32 = Arm("ActiBA, 32 segments", f"{PASSES}:actiba", {"segments": 32})
TABLE_2 = Arm("ActiBA, 2 segments", f"{PASSES}:actiba", {"segments": 2})
TABLE_8 = Arm("ActiBA, 8 segments", f"{PASSES}:actiba", {"segments": 8})
RELU = Arm("ReLU for SoftPlus", f"{PASSES}:actiba", {"ops": ["SoftPlus"], "realise": "cheap"})

# Mamba's scan is a loop over the tokens, on a CPU four times as slow to train: one layer and half the tokens
for _model, _name, _size in (
    ("mamba2", "Mamba-2", {}),
    ("mamba", "Mamba", {"layers": Tiers(smoke=1, gpu=6), "context": Tiers(smoke=16, gpu=256)}),
):
    paper.measured(
        f"actiba-costs-little-{_model}",
        f"ActiBA loses next to no accuracy: the validation loss of a trained {_name} changes by less than 1 %.",
        source="abstract (ActiBA)",
        published='"minimal accuracy loss"',
        protocol=rewritten_language_model,
        settings={"language_model": _model, **_size},
        needs=BOTH,
        criteria=Criterion("loss_change", TABLE_32, "less", margin=0.01, seeds=SEEDS, control=TABLE_2),
        note="two layers (Mamba: one) trained on the characters of Python's language reference; Swish and SoftPlus by "
        "tables of 32 segments; the loss is computed by the rewritten OpenVINO graph. The control is a table of 2 "
        "segments: HSwish and ReLU, the first choice, change the loss by 0.7 to 0.8 % and would hold too",
    )
    paper.measured(
        f"relu-costs-more-than-a-table-{_model}",
        f"ReLU in SoftPlus's place, as the paper's code has it, changes the loss of a trained {_name} more than tables "
        "of 32 segments for both activations do.",
        source="our question to the paper's code",
        protocol=rewritten_language_model,
        settings={"language_model": _model, **_size},
        needs=BOTH,
        criteria=Criterion("loss_change", RELU, "greater", TABLE_32, seeds=SEEDS),
    )

paper.measured(
    "actiba-costs-little-in-a-checkpoint",
    "ActiBA loses next to no accuracy in a published Mamba: the loss on a text changes by less than 1 %.",
    source="abstract (ActiBA)",
    published='"minimal accuracy loss"',
    protocol=rewritten_language_model,
    needs=(
        Need(
            "setting",
            "language_model",
            "a Mamba or Mamba-2: language_model=FOLDER or an id",
            r"(?!(?:mamba2?|gpt2|llama)$).+",
        ),
        *BOTH,
    ),
    criteria=Criterion("loss_change", TABLE_32, "less", margin=0.01, seeds=SEEDS, control=TABLE_2),
)

NPU = Need("setting", "device", "an Intel NPU: device=NPU", r"NPU.*")
for _id, _sentence, _target, _options, _margin, _published in (
    ("cumba-on-an-npu", "On an NPU CumBA makes Mamba-2 faster.", "cumba", {}, 1.0, "up to 2.7x"),
    ("reduba-on-an-npu", "On an NPU ReduBA makes Mamba-2 faster.", "reduba", {}, 1.0, "up to 1.2x"),
    ("xamba-on-an-npu", "On an NPU all passes together make Mamba-2 at least twice as fast.", "xamba",
     {"actiba": True, "realise": "native"}, 0.5, "up to 4.8x (2.6x in earlier versions); ActiBA alone up to 2.6x"),
):  # fmt: skip
    paper.measured(
        _id,
        _sentence,
        source="abstract",
        published=_published,
        protocol=openvino_device,
        needs=(NPU, *BOTH),
        criteria=Criterion(
            "ratio", Arm(_target, f"{PASSES}:{_target}", _options), "less", margin=_margin, seeds=SEEDS,
            control=Arm("nothing", f"{PASSES}:op_histogram"),
        ),
        note="beside the graph of early 2024's operations, from which the paper sets out; a layer of Mamba2-130m's "
        "sizes, or a checkpoint. Tables for activations are the NPU compiler's own",
    )  # fmt: skip


def draw(figure: Any, results: Any) -> None:
    """Left: time of each rewrite by that of the graph as it is, by seed. Right: change of the loss by the tables."""
    left, right = figure.subplots(1, 2)
    rows = (
        ("cumba-speeds-up-the-sum", "CumBA", "CumBA: column sums"),
        ("cumba-speeds-up-a-layer", "CumBA", "CumBA: layer"),
        ("reduba-speeds-up-the-sum", "ReduBA", "ReduBA: sum over state"),
        ("actiba-speeds-up-the-activations", "ActiBA, cheap", "ActiBA, cheap: activations"),
        ("fused-reduba-speeds-up-the-scores", "ReduBA, fused", "fused (ours): scores"),
        ("difference-speeds-up-a-layer", "difference", "difference (ours): layer"),
    )
    for y, (claim, arm, _) in enumerate(reversed(rows)):
        values = list(results.metric(claim, arm, "ratio").values())
        colour = "#0a7868" if "ours" in rows[len(rows) - 1 - y][2] else "#2462c4"
        left.plot(values, [y] * len(values), "o", color=colour, alpha=0.5, markersize=4, linewidth=0)
    left.axvline(1, color="#5d6874", linewidth=1, linestyle="--")
    left.set(
        xscale="log", xlabel="time / time as it is", yticks=range(len(rows)), yticklabels=[r[2] for r in rows][::-1]
    )
    left.set_xticks([0.2, 0.5, 1, 2, 4], labels=["0.2", "0.5", "1", "2", "4"])
    left.minorticks_off()
    for offset, (model, label, colour) in enumerate((("mamba2", "Mamba-2", "#2462c4"), ("mamba", "Mamba", "#b9500b"))):
        for x, (claim, arm) in enumerate(
            ((f"actiba-costs-little-{model}", TABLE_32.name), (f"relu-costs-more-than-a-table-{model}", RELU.name))
        ):
            values = [100 * v for v in results.metric(claim, arm, "loss_change").values()]
            at = [x + 0.24 * offset - 0.12] * len(values)
            right.plot(at, values, "o", color=colour, alpha=0.5, markersize=4, linewidth=0, label=None if x else label)
    right.axhline(1, color="#5d6874", linewidth=1, linestyle="--")
    right.set(yscale="log", ylabel="change of the loss, %", xticks=(0, 1), xlim=(-0.5, 1.5))
    right.set_xticklabels(["tables of\n32 segments", "ReLU for\nSoftPlus"])
    right.legend(loc="lower right")


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "Left: a CPU's time after each rewrite by the time before, a dot a seed; left of the line is faster. Right: "
        "how much the loss of a trained model changes, a dot a seed; the line is one per cent.",
        size=(8.4, 3.4),
    )
)
paper.findings.extend(
    [
        Finding(
            "ReduBA as published leaves the elementwise product in place, and with it the largest tensor of the graph: "
            "805 MB a chunk. Only the product and the sum together, as one matrix product, remove it.",
            ("memory-of-a-layer", "reduba-speeds-up-the-sum", "fused-reduba-speeds-up-the-scores"),
        ),
        Finding(
            "The segment sum that CumBA speeds up can be had without an L x L cumulative sum at all.",
            ("segment-sums-by-difference", "difference-speeds-up-a-layer", "cumba-speeds-up-a-layer"),
        ),
        Finding(
            "The code puts ReLU in SoftPlus's place. With the weights that Mamba-2 starts from, most steps are then "
            "exactly zero, and a step of zero moves no state.",
            ("errors-of-the-tables", "activations-of-a-layer", "relu-costs-more-than-a-table-mamba2"),
        ),
        Finding(
            "The code times 4 tokens. The scan pads them to its chunk of 256, so 98 % of what is timed is padding.",
            ("four-tokens-cost-a-chunk",),
        ),
    ]
)
