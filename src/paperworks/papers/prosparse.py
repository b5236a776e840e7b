"""ProSparse, intrinsic activation sparsity for language models (arXiv 2402.13516): the card and its claims."""

from __future__ import annotations

from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.sparsity import sparse_decoding, sparsification
from paperworks.papers.protocols.timing import timing

paper = Paper(
    id="prosparse",
    title="ProSparse: Introducing and Enhancing Intrinsic Activation Sparsity within Large Language Models",
    area="efficiency",
    arxiv="2402.13516",
    date=date(2024, 2, 20),
    authors="Chenyang Song, Xu Han, Zhengyan Zhang, Shengding Hu, Xiyu Shi, Kuai Li, Chen Chen, Zhiyuan Liu, "
    "Guangli Li, Tao Yang, Maosong Sun",
    n_authors=11,
    venue="COLING 2025",
    code="https://github.com/Raincleared-Song/sparse_gpu_operator",
    keywords=("activation sparsity", "large language model", "relu", "llama", "feed-forward network", "l1 penalty"),
    method="paperworks.efficiency.prosparse",
    summary=(
        "Decoding one token at a time is bound by reading the weights, and two thirds of them stand in feed-forward "
        "networks whose smooth activations leave nothing at zero. The paper makes about 90 % of their values exact "
        "zeros in three steps: ReLU takes the place of the activation and training goes on; an L1 penalty on the "
        "intermediate values rises in half-sine stages; a small positive threshold then takes the place of ReLU's "
        "zero. Weights behind a zero need not be read."
    ),
    usage=(
        "from paperworks.efficiency.prosparse import (\n"
        "    SparsityRegularisation, relufy, set_threshold, sparsify, train_prosparse)\n\n"
        "relufy(model)                                        # a Llama, Mistral, Qwen or Gemma of transformers\n"
        "schedule = SparsityRegularisation([5e-3, 5e-2, 2e-1], [600, 1000, 1600], start=500)\n"
        'train_prosparse(model, batches, schedule, resume="run.pt")   # or ProSparseTrainer(..., schedule=schedule)\n'
        "set_threshold(model, 0.01)\n"
        "sparsify(model)                                      # decodes with the active rows only, the same result"
    ),
    provenance={
        "ReLU substitution, schedule of the factor, FATReLU, published schedules": "the paper (Eq. 1-3, Tables 6, 7)",
        "reduction of the L1 norm: mean over valid tokens and channels": "our choice; the paper writes the plain norm",
        "x is kept where it equals the threshold": "the paper (Eq. 3); the authors' operators drop it",
        "exact sparse inference in three steps": "the paper (appendix D); the kernels are our own, for any size",
        "last peak for a wanted sparsity": "the paper's fit to its 7B model",
        "predictors of active channels": "the paper (appendices C, F); their rank is our choice",
        "thresholds by layer, export to plain transformers, report by position": "ours",
    },
)

SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)
TRANSFORMERS = Need("package", "transformers", "pip install 'paperworks[efficiency]'")

_RECIPE = "paperworks.papers.protocols.sparsity_training:Recipe"
_PROGRESSIVE: dict[str, Any] = {
    "peaks": [0.025, 0.25, 0.25, 1.0, 1.0], "ends": [0.2, 0.4, 0.5, 0.7, 1.0], "start": 0.1,
}  # fmt: skip
RELU = Arm("ReLU alone", _RECIPE)
PROGRESSIVE = Arm("progressive L1", _RECIPE, _PROGRESSIVE)
SHIFTED = Arm("progressive L1 and threshold", _RECIPE, {**_PROGRESSIVE, "points": 1.0})
FAR_SHIFTED = Arm("threshold that adds 15 points", _RECIPE, {**_PROGRESSIVE, "points": 15.0})
CONSTANT = Arm("constant L1", _RECIPE, {"peaks": [0.3], "ends": [1.0]})
HEAVY = Arm("constant L1, factor 20", _RECIPE, {"peaks": [20.0], "ends": [1.0]})

SIZES = {"7B": (4096, 11008, 0.8932), "13B": (5120, 13824, 0.8880)}
"""Width of the model and of its feed-forward networks, and the sparsity the paper reached."""


@paper.exact(
    "The factor is flat in the first stage, then follows half a sine, and is at its peak when the stage ends.",
    source="Algorithm 1, Tables 6 and 7",
    expect={
        "peaks at their steps: largest |difference|": Bound(equals=0, tolerance=1e-12),
        "half way through a stage: largest |difference| to the mean": Bound(equals=0, tolerance=1e-12),
        "substitution: largest factor": Bound(equals=0),
        "first stage: largest |difference| to its peak": Bound(equals=0),
        "largest fall between two steps": Bound(at_most=0),
        "stages": Bound(equals=15),
    },
    note="every step of the schedules of the 7B, 13B and 1B models",
)
def factor_follows_the_schedule(trial: Trial) -> dict[str, float]:
    """The three published schedules, step by step."""
    from paperworks.papers.protocols.sparsity_checks import published_factors

    found = published_factors()
    return {
        "peaks at their steps: largest |difference|": max(found.at_peaks),
        "half way through a stage: largest |difference| to the mean": max(found.half_way),
        "substitution: largest factor": max(found.substitution),
        "first stage: largest |difference| to its peak": max(found.first_stage),
        "largest fall between two steps": max(found.falls),
        "stages": len(found.at_peaks),
    }


_PUBLISHED = {"7B": (0.4045, 9.36), "13B": (0.4080, 8.93)}


@paper.exact(
    "At 89.32 % (7B) and 88.80 % (13B) a token needs 40.45 % and 40.80 % of the weights of a feed-forward network; "
    "steps 2 and 3 can become at most 9.36 and 8.93 times faster.",
    source="appendix D",
    published="40.45 % and 40.80 %; 9.36 and 8.93",
    expect={
        **{f"{size}: share of the weights": Bound(equals=s, tolerance=1e-4) for size, (s, _) in _PUBLISHED.items()},
        **{f"{size}: limit of steps 2 and 3": Bound(equals=g, tolerance=0.005) for size, (_, g) in _PUBLISHED.items()},
        **{f"{size}: change with all other weights NaN": Bound(equals=0) for size in _PUBLISHED},
    },
    note="one layer at the real size, random weights, the threshold at that quantile of the gate; the weights that are "
    "counted out are overwritten with NaN, and the output stays the same bit for bit",
)
def share_of_the_weights(trial: Trial) -> dict[str, float]:
    """Counted from the active channels of one token, and shown by spoiling the weights that should not be read."""
    from paperworks.papers.protocols.sparsity_checks import weights_needed

    found: dict[str, float] = {}
    for size in _PUBLISHED:
        needed = weights_needed(trial, *SIZES[size])
        found[f"{size}: share of the weights"] = needed.share
        found[f"{size}: limit of steps 2 and 3"] = needed.channels / needed.active
        found[f"{size}: change with all other weights NaN"] = needed.change
    return found


@paper.exact(
    "Skipping is exact: the output is that of the dense network with FATReLU.",
    source="appendix D",
    expect={
        "float64: largest relative difference": Bound(at_most=1e-12),
        "float32: largest relative difference": Bound(at_most=1e-5),
        "float32 at 7B: relative difference": Bound(at_most=1e-5),
        "nothing active: relative difference": Bound(equals=0),
    },
    note="relative to the largest output of the token; sparsities from 0 to 1 in tenths, at a width of 512 and 1376",
)
def skipping_is_exact(trial: Trial) -> dict[str, float]:
    """The sparse MLP beside dense products in the same dtype."""
    from paperworks.papers.protocols.sparsity_checks import difference_to_dense

    def largest(dtype: str) -> float:
        return max(difference_to_dense(trial, 512, 1376, tenths / 10, dtype) for tenths in range(10))

    return {
        "float64: largest relative difference": largest("float64"),
        "float32: largest relative difference": largest("float32"),
        "float32 at 7B: relative difference": difference_to_dense(trial, *SIZES["7B"], "float32"),
        "nothing active: relative difference": difference_to_dense(trial, 512, 1376, 1.0, "float32"),
    }


@paper.exact(
    "FATReLU keeps what reaches its threshold, all of it.",
    source="Eq. 3",
    expect={"at the threshold: output / input": Bound(equals=1), "below it: output": Bound(equals=0)},
    note="for the studied thresholds from 0.005 to 0.03, in float64, float32 and bfloat16",
)
def fatrelu_keeps_its_threshold(trial: Trial) -> dict[str, float]:
    """The smallest ratio at t itself, and the largest output at the number before it."""
    import torch

    from paperworks.efficiency.prosparse import FATReLU

    ratios, below = [], []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for threshold in (0.005, 0.01, 0.02, 0.03):
            layer = FATReLU(threshold, dtype=dtype)
            t = layer.threshold.reshape(1)
            ratios.append(float(layer(t) / t))
            below.append(float(layer(torch.nextafter(t, torch.zeros_like(t)))))
    return {"at the threshold: output / input": min(ratios), "below it: output": max(below)}


@paper.exact(
    "The last peak steers the sparsity: 100 - exp(-1.76 l^0.30 + 3.49) percent at 7B.",
    source="control of sparsity",
    published="88.11 % at a last peak of 0.2 before thresholds",
    expect={
        "sparsity by the fit at the 7B model's last peak": Bound(at_least=87, at_most=89),
        "peak -> sparsity -> peak: largest relative difference": Bound(at_most=1e-12),
    },
)
def last_peak_steers_sparsity(trial: Trial) -> dict[str, float]:
    """The fit at 0.2, and its inverse over two decades of peaks."""
    from paperworks.efficiency.prosparse import peak_for_sparsity, sparsity_for_peak

    peaks = [0.01 * 10 ** (i / 50) for i in range(101)]
    there_and_back = [abs(peak_for_sparsity(sparsity_for_peak(peak)) / peak - 1) for peak in peaks]
    return {
        "sparsity by the fit at the 7B model's last peak": sparsity_for_peak(0.2),
        "peak -> sparsity -> peak: largest relative difference": max(there_and_back),
    }


_STAND_IN = "a Llama of two blocks on the characters of Python's language reference stands in for Llama 2"

paper.measured(
    "progressive-l1-adds-sparsity",
    "Substituting ReLU alone leaves the model near 66 %; the progressive penalty makes it far sparser.",
    source="main results",
    published="66 to 67 % with ReLU, 88.11 % with the penalty (7B)",
    protocol=sparsification,
    needs=(TRANSFORMERS,),
    criteria=Criterion("sparsity", PROGRESSIVE, "greater", RELU, margin=15.0, seeds=SEEDS),
    note=f"{_STAND_IN}; more than 15 percentage points",
)
paper.measured(
    "quality-is-comparable",
    "...with comparable quality: the validation loss rises by less than 0.05 nats over ReLU alone.",
    source="main results",
    published="average of the benchmarks 38.46, of the original model 37.96 (7B)",
    protocol=sparsification,
    needs=(TRANSFORMERS,),
    criteria=Criterion("validation_loss", PROGRESSIVE, "less", RELU, margin=0.05, seeds=SEEDS, control=HEAVY),
    note=_STAND_IN,
)
paper.measured(
    "progressive-beats-constant",
    "At the same sparsity a factor that rises in stages gives a better model than a constant one.",
    source="comparison with a fixed factor",
    published="average of the benchmarks 38.46 against 36.34, near 89 % (7B)",
    protocol=sparsification,
    needs=(TRANSFORMERS,),
    criteria=(
        Criterion("validation_loss", PROGRESSIVE, "less", CONSTANT, seeds=SEEDS),
        Criterion("sparsity", PROGRESSIVE, "greater", CONSTANT, margin=-1.0, seeds=SEEDS, control=RELU),
    ),
    note=f"{_STAND_IN}; the constant factor was chosen on another seed for the same sparsity",
)
paper.measured(
    "threshold-adds-sparsity-for-free",
    "A small threshold adds a point of sparsity at no loss of quality.",
    source="threshold shifting (Eq. 3)",
    published="88.11 % -> 89.32 % at t = 0.01 (7B)",
    protocol=sparsification,
    needs=(TRANSFORMERS,),
    criteria=(
        Criterion("sparsity", SHIFTED, "greater", PROGRESSIVE, margin=0.5, seeds=SEEDS),
        Criterion("validation_loss", SHIFTED, "less", PROGRESSIVE, margin=0.005, seeds=SEEDS, control=FAR_SHIFTED),
    ),
    note=f"{_STAND_IN}; one threshold for all layers, chosen on training text to add one point",
)

_CALLS = "paperworks.papers.protocols.sparse_ffn_calls"


def _at(size: str, dtype: str) -> dict[str, Any]:
    d, d_ff, sparsity = SIZES[size]
    return {"d": d, "d_ff": d_ff, "sparsity": sparsity, "dtype": dtype}


def _reference(function: str, options: dict[str, Any]) -> str:
    return f"{_CALLS}:{function}({', '.join(f'{name}={value!r}' for name, value in options.items())})"


for _step, _size, _gain in ((2, "7B", 2.00), (2, "13B", 2.44), (3, "7B", 1.51), (3, "13B", 1.70)):
    _options, _side = _at(_size, "float32"), "up" if _step == 2 else "down"
    paper.measured(
        f"step-{_step}-is-faster-at-{_size.lower()}",
        f"At the size and sparsity of the {_size} model step {_step} is {_gain:.2f} times as fast as a dense product.",
        source="operator times",
        published=f"{_gain:.2f} times, on a GPU",
        protocol=timing,
        settings={"reference": _reference(f"dense_{_side}", _options), "rounds": 6},
        criteria=Criterion(
            "ratio", Arm(f"sparse step {_step}, {_size}", f"{_CALLS}:sparse_{_side}", _options), "less",
            margin=1 / _gain, seeds=SEEDS,
            control=Arm(f"dense step {_step}, {_size}", f"{_CALLS}:dense_{_side}", _options),
        ),
        note="float32, one token, another one each call; a CPU for the paper's GPU",
    )  # fmt: skip

for _dtype in ("float32", "bfloat16"):
    _options = _at("7B", _dtype)
    paper.measured(
        f"whole-network-twice-as-fast-in-{_dtype}",
        f"The whole feed-forward network of one token, gate product included, is at least twice as fast in {_dtype}.",
        source="our target; the limit at 89.32 % is 1 / 0.4045 = 2.47 times",
        protocol=timing,
        settings={"reference": _reference("dense_ffn", _options), "rounds": 6},
        criteria=Criterion(
            "ratio", Arm(f"SparseGatedMLP, {_dtype}", f"{_CALLS}:sparse_mlp", _options), "less", margin=0.5,
            seeds=SEEDS, control=Arm(f"dense, {_dtype}", f"{_CALLS}:dense_ffn", _options),
        ),
        note="the size of the 7B model, one token, another one each call, beside torch.nn.Linear and SiLU on the same "
        "weights" + "; where PyTorch's bfloat16 product is bound by arithmetic, part of the gain is a faster gate "
        "product of the same weights" * (_dtype == "bfloat16"),
    )  # fmt: skip

for _step, _gain in ((2, 2.00), (3, 1.51)):
    _options, _side = _at("7B", "bfloat16"), "up" if _step == 2 else "down"
    paper.measured(
        f"step-{_step}-is-faster-on-a-gpu",
        f"On a GPU in bfloat16 step {_step} is {_gain:.2f} times as fast as the dense product of cuBLAS.",
        source="operator times",
        published=f"{_gain:.2f} times (7B)",
        protocol=timing,
        settings={"reference": _reference(f"dense_{_side}", _options)},
        needs=(Need("gpu", "cuda", "timing the Triton kernels"),),
        criteria=Criterion(
            "ratio", Arm(f"step {_step}, Triton", f"{_CALLS}:sparse_{_side}", {**_options, "backend": "triton"}),
            "less", margin=1 / _gain, seeds=SEEDS,
            control=Arm(f"dense step {_step}, bfloat16", f"{_CALLS}:dense_{_side}", _options),
        ),
    )  # fmt: skip

_DECODING = "paperworks.papers.protocols.sparsity_decoding:Decoding"
_CHECKPOINT = (
    Need("setting", "checkpoint", "a sparse model: checkpoint=FOLDER of prosparse-llama-2-7b"),
    Need("setting", "documents", "text: documents=FOLDER of .txt or .jsonl files"),
    TRANSFORMERS,
)
AS_PUBLISHED, PREDICTED = Arm("as published", _DECODING), Arm("with predictors", _DECODING, {"predicted": True})
AT_ZERO = Arm("threshold 0", _DECODING, {"threshold": 0.0})
UNTRAINED = Arm("with untrained predictors", _DECODING, {"predicted": True, "epochs": 0})

paper.measured(
    "published-model-is-sparse",
    "The published model has 89 % zeros, a point of which its threshold of 0.01 adds.",
    source="main results and threshold shifting",
    published="89.32 % (7B), 88.80 % (13B); 88.11 % (7B) before the threshold",
    protocol=sparse_decoding,
    needs=_CHECKPOINT,
    criteria=(
        Criterion("sparsity", AS_PUBLISHED, "greater", margin=88.5, seeds=SEEDS, control=AT_ZERO),
        Criterion("sparsity", AS_PUBLISHED, "greater", AT_ZERO, margin=0.5, seeds=SEEDS),
    ),
)  # fmt: skip
paper.measured(
    "predictors-find-the-active-channels",
    "Small predictors find 92 % of the active channels and leave out three quarters of all; decoding gets faster.",
    source="appendices C and F",
    published="recall 92 to 93 %, predicted sparsity 75 to 79 %; PowerInfer gains 4.44 (7B) and 4.52 (13B) times",
    protocol=sparse_decoding,
    needs=_CHECKPOINT,
    criteria=(
        Criterion("recall", PREDICTED, "greater", margin=90.0, seeds=SEEDS, control=UNTRAINED),
        Criterion("predicted_sparsity", PREDICTED, "greater", AS_PUBLISHED, margin=70.0, seeds=SEEDS),
        Criterion("speedup", PREDICTED, "greater", AS_PUBLISHED, seeds=SEEDS),
    ),
    note="the paper's engines are not run: whole decoding in transformers, sparse networks beside dense ones",
)


def draw(figure: Any, results: Any) -> None:
    """Left: sparsity through the continual training. Right: what it costs at the end, a point a seed."""
    import numpy as np

    left, right = figure.subplots(1, 2)
    gained, beside, shifted = "progressive-l1-adds-sparsity", "progressive-beats-constant", SHIFTED.name
    substituted = results.metric(gained, RELU.name, "validation_loss")
    for claim, arm, colour in (
        (gained, RELU.name, "#5d6874"),
        (gained, PROGRESSIVE.name, "#2462c4"),
        (beside, CONSTANT.name, "#b9500b"),
        ("threshold-adds-sparsity-for-free", shifted, "#0a7868"),
    ):
        if arm != shifted:  # its training is that of the progressive penalty
            curves = np.array([values for _, values in results.curves(claim, arm, "sparsity by step")])
            left.plot(np.arange(1, curves.shape[1] + 1), 100 * np.median(curves, 0), color=colour, linewidth=1.4)
        zeros, losses = (results.metric(claim, arm, name) for name in ("sparsity", "validation_loss"))
        cost = [losses[seed] - substituted[seed] for seed in zeros]
        right.plot(list(zeros.values()), cost, "o", color=colour, markersize=4, alpha=0.7, label=arm)
    left.set(xlabel="step of continual training", ylabel="zeros in x1, %")
    right.set(xlabel="zeros in x1, %", ylabel="validation loss over ReLU alone, nats")
    figure.legend(loc="outside lower center", ncols=4)


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "Zeros through the continual training, median over the seeds, and what they cost at its end: the validation "
        "loss over that of the same seed with ReLU alone.",
    )
)
paper.findings += [
    Finding(
        "How the L1 norm is reduced over tokens and channels is not said, and decides what a factor means. As a sum "
        "over 11,008 channels and 32 layers the published last factor of 0.2 would outweigh the language loss by far, "
        "so the mean is taken here; factors of another reduction cannot be compared with the published ones.",
        ("factor-follows-the-schedule", "progressive-l1-adds-sparsity"),
    ),
    Finding(
        "The paper keeps a value that equals the threshold. The published operators compare with <= and drop it.",
        ("fatrelu-keeps-its-threshold",),
    ),
    Finding(
        "In a training this short a constant factor of equal sparsity gives the better model: the staged factor is "
        "highest when the cosine learning rate is already small.",
        ("progressive-beats-constant",),
    ),
]
