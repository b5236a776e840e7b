"""AF-KAN (arXiv 2503.06112): the card and its claims."""

from __future__ import annotations

from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, BestOf, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.papers.protocols import af_kan_checks as checks
from paperworks.papers.protocols.network_training import network_training
from paperworks.papers.protocols.timing import timing

paper = Paper(
    id="af-kan",
    title="AF-KAN: Activation Function-Based Kolmogorov-Arnold Networks for Efficient Representation Learning",
    area="kan",
    arxiv="2503.06112",
    date=date(2025, 3, 8),
    authors="Hoang-Thang Ta, Anh Tran",
    n_authors=2,
    code="https://github.com/hoangthangta/All-KAN",
    keywords=("kolmogorov-arnold network", "kan", "activation function", "attention", "mlp"),
    method="paperworks.kan.af_kan",
    summary=(
        "Kolmogorov-Arnold networks learn a function on every edge and pay for it with around ten times the parameters "
        "of a linear layer. AF-KAN keeps the functions and gives up their number: a few pairs of an activation, "
        "shifted from the left and from the right, are shared by all inputs; their products are brought to [0, 1], "
        "reduced to one number an input by attention, and only then comes a matrix. The layer has the parameters of a "
        "linear layer with LayerNorm."
    ),
    usage=(
        "from paperworks.kan.af_kan import AFKAN, AFKANLayer, replace_linear\n\n"
        "network = AFKAN([784, 64, 10])\n"
        "report = replace_linear(model, AFKANLayer)   # every nn.Linear of a model of yours"
    ),
    provenance={
        "pairs of shifted activations, function types, reductions, normalisation": "the paper and its code",
        "start of phases, temperature and weights; no bias; activation before the matrix": "its code",
        "min-max over each sample instead of the batch (feature_norm='sample')": "our choice; 'batch' is as published",
        "spatial_attn and multistep": "its code has the functions and never calls them; ours are their equations",
        "fused passes, recomputed in the backward pass": "ours",
        "parameters of the other networks": "counted on networks built here from their public layers",
        "the MLP": "ours: LayerNorm, matrix, SiLU, LayerNorm, matrix; the published baseline puts SiLU on its logits",
        "handwritten digits of 8x8 in place of MNIST on a desk": "ours",
    },
)

_ARMS = "paperworks.papers.protocols.af_kan_arms:"
AF_KAN = Arm("AF-KAN", _ARMS + "af_kan")
MLP = Arm("MLP", _ARMS + "layer_norm_mlp")
RELU_KAN = Arm("ReLU-KAN", _ARMS + "relu_kan")
EFFICIENT, SMALL = (
    Arm("EfficientKAN", _ARMS + "efficient_kan"),
    Arm("EfficientKAN-4", _ARMS + "efficient_kan", {"width": 4}),
)
FAST = Arm("FastKAN", _ARMS + "fast_kan")
SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)


def _option(label: str, **options: Any) -> Arm:
    return Arm(label, _ARMS + "af_kan", options)


paper.exact(
    "It has the parameters of an MLP with LayerNorm: 52,552 against 52,512 for 784-64-10.",
    source="abstract",
    published="the same number of parameters as an MLP",
    expect={
        "AF-KAN": Bound(equals=52_552),
        "MLP with LayerNorm": Bound(equals=52_512),
        "AF-KAN by formula": Bound(equals=52_552),
        "AF-KAN / MLP": Bound(at_most=1.001),
    },
    note="counted on networks",
)(checks.parameters_of_an_mlp)

paper.exact(
    "It has 6 to 10 times fewer parameters than other Kolmogorov-Arnold networks of the same shape.",
    source="abstract",
    published="6 to 10 times fewer parameters",
    expect={
        **{name: Bound(equals=count) for name, count in checks.COUNTED.values()},
        "fewest / AF-KAN": Bound(at_least=6),
        "most / AF-KAN": Bound(at_most=10),
    },
    note="784-64-10, counted on networks built here",
)(checks.six_to_ten_times_fewer)

paper.exact(
    "It takes more operations than an MLP.",
    source="abstract (limitations)",
    published="a longer training time and more FLOPs than MLPs",
    expect={
        "AF-KAN: operations": Bound(equals=179_648),
        "MLP: operations": Bound(equals=108_480),
        "AF-KAN / MLP": Bound(at_least=1.1),
    },
    note="784-64-10, one image, forward; an activation counts as one operation, which favours AF-KAN",
)(checks.more_operations_than_an_mlp)

paper.exact(
    "The L2 normalisation that comes before the min-max normalisation cancels in it.",
    source="our finding",
    expect={"float64": Bound(at_most=1e-12), "float32": Bound(at_most=1e-6)},
    note="a batch of 64 at 784 inputs, every value of the normalised features with and without the step",
)(checks.l2_normalisation_cancels)

paper.exact(
    "With the published normalisation the output for an image depends on the other images of its batch.",
    source="our finding",
    expect={
        "batch: largest difference": Bound(at_least=1e-3),
        "sample: largest difference": Bound(at_most=1e-12),
    },
    note="784-64, the first of 64 images at half the contrast of the others, alone and in their company",
)(checks.batch_mates_change_the_output)

paper.exact(
    "One parameter of each layer cannot matter: the bias of the scores of global attention.",
    source="our finding",
    expect={"bias moved by 3: largest difference": Bound(at_most=1e-12), "largest gradient": Bound(at_most=1e-12)},
    note="softmax does not see a shift that all features share",
)(checks.attention_bias_cannot_matter)

paper.exact(
    "At 784 inputs the epsilon of LayerNorm outweighs what it normalises: attention leaves a variance below 1e-5.",
    source="our finding",
    expect={"variance of s / epsilon": Bound(at_most=1), "of 64 inputs": Bound(at_least=10)},
    note="mean over 64 images at the first step; softmax over D features scales s by about 1/D",
)(checks.epsilon_outweighs_the_variance)

paper.exact(
    "Fused, the layer is the function of its equations, with the same gradients, and keeps a fifth of the memory.",
    source="this implementation",
    expect={
        "output: largest difference": Bound(at_most=1e-5),
        "gradients: largest relative difference": Bound(at_most=1e-3),
        "kept for the backward pass: fused / straightforward": Bound(at_most=0.2),
    },
    note="784-64-10, a batch of 256, float32; a machine without a C compiler runs the straightforward form",
)(checks.fused_is_the_same_function)

paper.exact(
    "With SiLU a term is largest outside its two phases, where with ReLU it is 0: the bumps have become dips.",
    source="our finding",
    expect={
        "silu: between": Bound(at_most=0.05),
        "silu: outside": Bound(at_least=0.5),
        "relu: between": Bound(equals=(2 / 3) ** 4, tolerance=1e-9),
        "relu: outside": Bound(equals=0),
    },
    note="(uv)^2 at the first phases of grid 3 and order 3, 4/3 apart: SiLU is negative left of 0, and squared",
)(checks.terms_peak_outside_their_phases)

paper.measured(
    "better-than-other-kans-of-its-size",
    "With the same number of parameters it is more accurate than other Kolmogorov-Arnold networks.",
    source="abstract",
    protocol=network_training,
    criteria=(
        Criterion("accuracy", AF_KAN, "greater", SMALL, seeds=SEEDS),
        Criterion("accuracy", AF_KAN, "greater", RELU_KAN, seeds=SEEDS),
    ),
    note="8x8 digits; AF-KAN 64-32-10 has 2,600 parameters, EfficientKAN 64-4-10 has 2,960, ReLU-KAN 64-32-10 15,594",
)

paper.measured(
    "competitive-with-larger-kans",
    "It is within a point of networks with eight to nine times its parameters.",
    source="abstract",
    published="competitive with networks of 6 to 10 times the parameters",
    protocol=network_training,
    criteria=(
        Criterion("accuracy", AF_KAN, "greater", EFFICIENT, margin=-0.01, seeds=SEEDS, control=SMALL),
        Criterion("accuracy", AF_KAN, "greater", FAST, margin=-0.01, seeds=SEEDS, control=SMALL),
    ),
    note="8x8 digits, all 64-32-10: 2,600 parameters beside EfficientKAN's 23,680 and FastKAN's 21,546",
)

paper.measured(
    "better-than-an-mlp-of-its-size",
    "With the same number of parameters it is more accurate than an MLP.",
    source="abstract",
    protocol=network_training,
    criteria=Criterion("accuracy", AF_KAN, "greater", MLP, seeds=SEEDS),
    note="8x8 digits, 64-32-10; the published baseline passes its logits through SiLU, this MLP does not",
)

for _id, _name, _what, _others in (
    (
        "silu-is-the-best-activation", "SiLU", "activation",
        tuple(
            _option(a, activation=a)
            for a in ("relu", "leaky_relu", "elu", "gelu", "selu", "softplus", "sigmoid", "tanh")
        ),
    ),
    (
        "quad1-is-the-best-function", "(uv)^2", "function",
        tuple(_option(f, function=f) for f in ("sum", "prod", "sum_prod", "quad2", "cubic1", "cubic2")),
    ),
    (
        "a-small-grid-is-best", "A grid of 3", "grid size",
        tuple(_option(f"grid {g}", grid_size=g) for g in (5, 8, 12)),
    ),
):  # fmt: skip
    paper.measured(
        _id,
        f"{_name} is the {_what} that works best.",
        source="ablations",
        protocol=network_training,
        criteria=Criterion("accuracy", AF_KAN, "greater", BestOf(f"best other {_what}", _others), seeds=SEEDS),
        note=f"8x8 digits, against the best of {', '.join(arm.name for arm in _others)} on two seeds of their own",
    )

_MLP_STEP = "paperworks.papers.protocols.af_kan_calls:training_step(name='layer_norm_mlp')"
_STEP = "paperworks.papers.protocols.af_kan_calls:training_step"
paper.measured(
    "slower-than-an-mlp",
    "A training step takes longer than an MLP's.",
    source="abstract (limitations)",
    published="a longer training time and more FLOPs than MLPs",
    protocol=timing,
    settings={"reference": _MLP_STEP},
    criteria=Criterion(
        "ratio", Arm("AF-KAN", _STEP, {"name": "af_kan"}), "greater", margin=1.1,
        seeds=Tiers(smoke=1, desk=MINIMUM_SEEDS), control=Arm("MLP", _STEP, {"name": "layer_norm_mlp"}),
    ),
    note="784-64-10, batch of 64, forward and backward",
)  # fmt: skip

paper.measured(
    "fused-in-a-third-of-the-time",
    "Fused, a training step takes less than a third of the straightforward form's time.",
    source="this implementation",
    protocol=timing,
    settings={"reference": f"{_STEP}(name='straightforward_af_kan', batch=256)"},
    criteria=Criterion(
        "ratio", Arm("AF-KAN", _STEP, {"name": "af_kan", "batch": 256}), "less", margin=1 / 3,
        seeds=Tiers(smoke=1, desk=MINIMUM_SEEDS),
        control=Arm("AF-KAN, not fused", _STEP, {"name": "straightforward_af_kan", "batch": 256}),
    ),
    note="784-64-10, batch of 256, forward and backward",
)  # fmt: skip


def _wide(arm: Arm, width: int = 64) -> Arm:
    return Arm(arm.name if width == 64 else f"{arm.name}-{width}", arm.target, {"width": width})


for _id, _what, _epochs in (("mnist", "MNIST", 25), ("fashion-mnist", "Fashion-MNIST", 35)):
    paper.measured(
        f"competitive-on-{_id}",
        f"On {_what} it beats an MLP and a KAN of its size and is within a point of a KAN of ten times its parameters.",
        source="experiments",
        published="the paper's accuracies were not recovered, so none is quoted",
        protocol=network_training,
        settings={"epochs": Tiers(smoke=1, desk=_epochs), "batch_size": 64, "gamma": 0.8, "train_size": 0},
        needs=(Need("setting", "data", f"{_what}: data=idx:PATH", r"idx:.+"),),
        criteria=(
            Criterion("accuracy", _wide(AF_KAN), "greater", _wide(MLP), seeds=SEEDS),
            Criterion("accuracy", _wide(AF_KAN), "greater", _wide(EFFICIENT, 7), seeds=SEEDS),
            Criterion(
                "accuracy", _wide(AF_KAN), "greater", _wide(EFFICIENT), margin=-0.01, seeds=SEEDS,
                control=_wide(EFFICIENT, 4),
            ),
        ),
        note="784-64-10 as published: AdamW at 1e-3, factor 0.8 an epoch, batch of 64",
    )  # fmt: skip


def draw(figure: Any, results: Any) -> None:
    """Left: the terms of an input and their sum. Right: accuracy against parameters, a dot a seed, a bar the mean."""
    import numpy as np

    left, right = figure.subplots(1, 2)
    x = np.linspace(-2, 2, 401)
    total = np.zeros_like(x)
    for j in range(6):
        low = (j - 3) / 3
        u, v = x - low, low + 4 / 3 - x
        term = (u / (1 + np.exp(-u)) * v / (1 + np.exp(-v))) ** 2
        total += term
        left.plot(x, term, color="#2462c4", linewidth=0.9, label="terms" if j == 0 else None)
    left.plot(x, total / 6, color="#b9500b", label="their mean")
    left.set(xlabel="input", ylabel="(silu(x - low) silu(high - x))^2", xlim=(-2, 2), ylim=(0, None))
    left.legend(loc="upper center")
    small, larger = "better-than-other-kans-of-its-size", "competitive-with-larger-kans"
    for claim, name, colour in (
        (small, "AF-KAN", "#2462c4"), ("better-than-an-mlp-of-its-size", "MLP", "#5d6874"),
        (small, "EfficientKAN-4", "#b9500b"), (small, "ReLU-KAN", "#0a7868"),
        (larger, "EfficientKAN", "#b9500b"), (larger, "FastKAN", "#a12f86"),
    ):  # fmt: skip
        accuracy = np.array(list(results.metric(claim, name, "accuracy").values()))
        parameters = next(iter(results.metric(claim, name, "parameters").values()))
        right.plot(np.full(len(accuracy), parameters), 100 * accuracy, "o", color=colour, alpha=0.35, markersize=3)
        right.plot([parameters], [100 * accuracy.mean()], "_", color=colour, markersize=16, markeredgewidth=2)
        above = name in ("MLP", "EfficientKAN")
        right.annotate(
            name, (parameters, 100 * (accuracy.max() if above else accuracy.min())), (0, 6 if above else -11),
            textcoords="offset points", ha="center", color=colour, fontsize=8,
        )  # fmt: skip
    right.set(xlabel="parameters", ylabel="test accuracy, %", xscale="log", xlim=(1500, 40000))
    right.set_xticks([2000, 5000, 10000, 20000], ["2,000", "5,000", "10,000", "20,000"])
    right.set_xticks([], minor=True)
    right.margins(y=0.15)


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "Left: the six terms of an input with SiLU and (uv)^2 at the first step. Right: test accuracy on 8x8 digits "
        "against the number of parameters, a dot a seed and a bar for the mean.",
    )
)
paper.findings += [
    Finding(
        "The published normalisation is a min-max over the whole batch: what the network says of an image depends on "
        "the images beside it, in evaluation too. Over each sample it does not.",
        ("batch-mates-change-the-output",),
    ),
    Finding("The L2 normalisation before it changes nothing: it is divided out again.", ("l2-normalisation-cancels",)),
    Finding(
        "Softmax over D features scales what LayerNorm is given by about 1/D. At 784 inputs its variance is below the "
        "epsilon that LayerNorm adds, so that the first layer is damped, not normalised; at 64 inputs it is not.",
        ("epsilon-outweighs-the-variance",),
    ),
    Finding(
        "The bias of global attention has no effect and no gradient: 2 of the 52,552 parameters are idle.",
        ("attention-bias-cannot-matter",),
    ),
    Finding(
        "ReLU-KAN's terms are bumps between their phases. With SiLU in ReLU's place they are dips: the negative side "
        "of SiLU, squared, makes them more than ten times as large outside as between.",
        ("terms-peak-outside-their-phases",),
    ),
    Finding(
        "Min-max is affine, so two sums over the terms and their extremes carry the whole layer: nothing of size "
        "batch x inputs x terms has to be stored.",
        ("fused-is-the-same-function", "fused-in-a-third-of-the-time"),
    ),
]
