"""A Method on Searching Better Activation Functions (arXiv 2405.12954): the card and its claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.images import classification
from paperworks.papers.protocols.language import language_modelling
from paperworks.papers.protocols.latency import latency
from paperworks.papers.protocols.preferences import preference_tuning

paper = Paper(
    id="crrelu",
    title="A Method on Searching Better Activation Functions",
    area="activations",
    arxiv="2405.12954",
    date=date(2024, 5, 18),
    authors="Haoyuan Sun, Zihao Wu, Bo Xia, Pu Chang, Zibin Dong, Yifu Yuan, Yongzhe Chang, Xueqian Wang",
    n_authors=8,
    venue="ICLR 2025, as Entropy-based Activation Function Optimization",
    keywords=("activation function", "entropy", "relu", "vision transformer", "gpt-2", "functional optimisation"),
    method="paperworks.activations.crrelu",
    summary=(
        "How should an activation spread its input? The paper measures the entropy of the output. Under a bounded "
        "range the entropy has a maximum, the activation whose output is uniform, taken as the worst one: sigmoid and "
        "tanh stand near it. From any activation, the calculus of variations gives the correction that lowers the "
        "entropy fastest. Applied to ReLU with normal input it adds x exp(-x^2 / 2), weighted by one learnable scalar "
        "a layer: CRReLU."
    ),
    usage=(
        "from paperworks.activations.crrelu import CRReLU, EAFOActivation\n"
        "from paperworks.activations.surgery import replace_activations\n\n"
        "report = replace_activations(model, CRReLU)   # timm, transformers, MONAI, diffusers or plain torch\n"
        'replace_activations(model, lambda: EAFOActivation("gelu"))   # the same correction of another activation'
    ),
    provenance={
        "entropy functional, worst activation under a bounded range, correction of the inverse": "the paper",
        "CRReLU, one eps a layer, started at 0.01": "the paper; the formula agrees with an open implementation",
        "forward form c = p' - p f'' / f' and the slope -int c^2 / f'": "derived here from the paper's correction",
        "which sign of eps lowers the entropy": "derived here; the paper leaves it to training",
        "EAFO with running statistics (EAFOActivation), for GELU, SiLU and others": "our reconstruction; the paper "
        "only announces an optimisation while training",
        "search of several steps, empirical densities, fit to a model": "our reconstruction",
        "fine-tuning on preferred answers before preference tuning, each arm its own reference": "our reading; the "
        "paper's recipe was not recovered",
        "f'(0) = eps": "our choice, the one-sided derivative that autograd takes for ReLU",
    },
)

CRRELU = Arm("CRReLU", "paperworks.activations.crrelu:CRReLU")
FIXED = Arm("CRReLU, eps fixed", "paperworks.activations.crrelu:CRReLU", {"learnable": False})
RELU, PRELU, GELU = Arm("ReLU", "torch.nn:ReLU"), Arm("PReLU", "torch.nn:PReLU"), Arm("GELU", "torch.nn:GELU")
GPT2_GELU = Arm("GELU", "torch.nn:GELU", {"approximate": "tanh"})
SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)
TRANSFORMERS = Need("package", "transformers", "pip install 'paperworks[activations]'")
TIMM = Need("package", "timm", "pip install timm")
VIT = {
    "model": Tiers(smoke="vit", gpu="vit-tiny"),
    "epochs": Tiers(smoke=1, desk=25, gpu=30, full=100),
    "optimizer": "adamw",
    "lr": Tiers(smoke=2e-3, gpu=1e-3),
    "weight_decay": Tiers(smoke=1e-4, gpu=0.05),
    "evaluate_every": Tiers(smoke=0, gpu=1),
}


@paper.exact(
    "A worst activation under a bounded range exists: output entropy log(high - low), the global maximum.",
    source="abstract (WAFBC)",
    expect={
        "normal input: entropy - log(high - low)": Bound(equals=0, tolerance=1e-6),
        "logistic input: entropy - log(high - low)": Bound(equals=0, tolerance=1e-6),
        "other activations: largest entropy - maximum": Bound(at_most=0),
        "other activations": Bound(equals=50),
    },
    note="the other activations are random increasing functions onto (0, 1), mixtures of three normal CDFs, under "
    "normal input",
)
def worst_activation_is_the_maximum(trial: Trial) -> dict[str, float]:
    """The distance of the worst activation from the maximum, largest of three ranges, and that of random functions."""
    import torch

    from paperworks.activations.crrelu import LogisticDensity, NormalDensity, WorstActivation, activation_entropy

    found: dict[str, float] = {}
    for name, density in (("normal", NormalDensity(0.3, 1.7)), ("logistic", LogisticDensity(-0.5, 0.8))):
        distances = [
            activation_entropy(WorstActivation(density, low, high), density) - math.log(high - low)
            for low, high in ((0.0, 1.0), (-1.0, 1.0), (-3.0, 7.0))
        ]
        found[f"{name} input: entropy - log(high - low)"] = max(distances, key=abs)
    generator = trial.generator("functions")
    excess = []
    for _ in range(50):
        draws = torch.rand(3, 3, generator=generator, dtype=torch.float64).tolist()
        parts = [(w, NormalDensity(4 * m - 2, 0.3 + 2 * s)) for w, m, s in draws]

        def mixture(z: torch.Tensor, parts: list[tuple[float, NormalDensity]] = parts) -> torch.Tensor:
            return torch.stack([w * part.cdf(z) for w, part in parts]).sum(0) / sum(w for w, _ in parts)

        excess.append(activation_entropy(mixture, NormalDensity()))
    return found | {"other activations: largest entropy - maximum": max(excess), "other activations": len(excess)}


@paper.exact(
    "The sigmoid is such a worst activation, for logistic input: its correction vanishes.",
    source="abstract (WAFBC); the instance is ours",
    expect={"largest |eta|": Bound(at_most=1e-10), "largest |c|": Bound(at_most=1e-10)},
)
def sigmoid_is_the_worst_for_logistic_input(trial: Trial) -> dict[str, float]:
    """The correction of the inverse, and that of the function, over all outputs from 0.001 to 0.999."""
    import torch

    from paperworks.activations.crrelu import LogisticDensity, eafo_correction, eafo_direction

    x = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    density = LogisticDensity()
    return {
        "largest |eta|": eafo_correction(torch.logit, density, x).abs().max().item(),
        "largest |c|": eafo_direction(torch.sigmoid, density, torch.logit(x)).abs().max().item(),
    }


_SLOPES = {"sigmoid": -0.26123, "tanh": -0.08144, "softplus": -0.27166, "identity": -0.14105}


@paper.exact(
    "The correction lowers the output entropy, at the rate of steepest descent.",
    source="abstract (EAFO)",
    expect={
        **{f"{name}: slope": Bound(equals=slope, tolerance=1e-5) for name, slope in _SLOPES.items()},
        **{f"{name}: finite difference / slope - 1": Bound(equals=0, tolerance=1e-3) for name in _SLOPES},
    },
    note="slope = -int c^2 / f' dz under standard normal input, beside the difference quotient of the entropy itself",
)
def correction_lowers_the_entropy(trial: Trial) -> dict[str, float]:
    """The integral by the trapezoidal rule on (-10, 10), and central differences of the entropy with step 1e-3."""
    import torch

    from paperworks.activations.crrelu import NormalDensity, activation_entropy, eafo_direction

    density, s = NormalDensity(), 1e-3
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64, requires_grad=True)
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "sigmoid": torch.sigmoid, "tanh": torch.tanh, "softplus": torch.nn.functional.softplus, "identity": lambda t: t,
    }  # fmt: skip
    found = {}
    for name, f in functions.items():
        [slope] = torch.autograd.grad(f(z).sum(), z)
        c = eafo_direction(f, density, z).detach()
        integral = -torch.trapezoid(c * c / slope, z.detach()).item()

        def entropy(step: float, f: Any = f) -> float:
            return activation_entropy(lambda t: f(t) + step * eafo_direction(f, density, t), density)

        found[f"{name}: slope"] = integral
        found[f"{name}: finite difference / slope - 1"] = (entropy(s) - entropy(-s)) / (2 * s) / integral - 1
    return found


@paper.exact(
    "CRReLU is the correction of ReLU for standard normal input.",
    source="abstract (CRReLU)",
    expect={"EAFO(ReLU) - CRReLU": Bound(at_most=1e-6), "eta(x) - x phi(x)": Bound(at_most=1e-12)},
)
def crrelu_is_eafo_of_relu(trial: Trial) -> dict[str, float]:
    """Largest absolute differences: of the layers on normal inputs, of the correction on x > 0 in float64."""
    import torch

    from paperworks.activations.crrelu import CRReLU, EAFOActivation, NormalDensity, eafo_correction

    layer = EAFOActivation("relu", eps=0.37).freeze_stats()
    x = 3 * torch.randn(100_000, generator=trial.generator("inputs"))
    positive = torch.linspace(1e-3, 12, 10_000, dtype=torch.float64)
    eta = eafo_correction(lambda t: t, NormalDensity(), positive)
    phi = torch.exp(-positive * positive / 2) / math.sqrt(2 * math.pi)
    return {
        "EAFO(ReLU) - CRReLU": (layer(x) - CRReLU(0.37)(x)).abs().max().item(),
        "eta(x) - x phi(x)": (eta - positive * phi).abs().max().item(),
    }


@paper.exact(
    "With a positive eps, as CRReLU starts, the entropy of the positive branch rises: dH/deps = 1 / (4 sqrt 2).",
    source="our finding",
    expect={
        "dH/deps at 0": Bound(equals=1 / (4 * math.sqrt(2)), tolerance=1e-5),
        "H at eps = 0.01 minus H at 0": Bound(at_least=1e-4),
        "H at eps = -0.01 minus H at 0": Bound(at_most=-1e-4),
    },
)
def entropy_rises_with_eps(trial: Trial) -> dict[str, float]:
    """Central difference of the entropy of the positive branch under standard normal input, and its change at 0.01."""
    from paperworks.activations.crrelu import NormalDensity, activation_entropy, crrelu

    def entropy(eps: float) -> float:
        return activation_entropy(lambda z: crrelu(z, eps), NormalDensity(), branch="positive")

    s = 1e-3
    return {
        "dH/deps at 0": (entropy(s) - entropy(-s)) / (2 * s),
        "H at eps = 0.01 minus H at 0": entropy(0.01) - entropy(0.0),
        "H at eps = -0.01 minus H at 0": entropy(-0.01) - entropy(0.0),
    }


def _one_scalar_a_layer(networks: Mapping[str, tuple[int, int]]) -> dict[str, Bound]:
    """Bounds for the counts of networks, given as parameters before and parameters added."""
    before = {f"{name}: parameters": Bound(equals=parameters) for name, (parameters, _) in networks.items()}
    return before | {f"{name}: added": Bound(equals=added) for name, (_, added) in networks.items()}


def _counts(networks: Mapping[str, Any]) -> dict[str, float]:
    from paperworks.activations.crrelu import CRReLU
    from paperworks.measure.parameters import count_parameters
    from paperworks.surgery.activations import replace_activations

    found: dict[str, float] = {}
    for name, model in networks.items():
        found[f"{name}: parameters"] = before = count_parameters(model)
        found[f"{name}: added"] = count_parameters(replace_activations(model, CRReLU).model) - before
    return found


@paper.exact(
    "It adds one scalar a layer: 12 to the 5,717,416 parameters of ViT-Tiny, and 12 to those of DeiT-Tiny and GPT-2.",
    source="the layer's definition",
    expect=_one_scalar_a_layer(
        {"ViT-Tiny": (5_717_416, 12), "DeiT-Tiny, distilled": (5_910_800, 12), "GPT-2": (124_439_808, 12)}
    ),
    needs=(TRANSFORMERS,),
    note="real-size networks of transformers; its DeiT has the second token and head of distillation",
)
def one_scalar_a_layer(trial: Trial) -> dict[str, float]:
    """Counts on networks that have shapes and no memory."""
    import torch
    import transformers as library

    size = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    with torch.device("meta"):
        vit = library.ViTForImageClassification(library.ViTConfig(num_labels=1000, **size))
        deit = library.DeiTForImageClassificationWithTeacher(library.DeiTConfig(num_labels=1000, **size))
        gpt2 = library.GPT2LMHeadModel(library.GPT2Config())
    return _counts({"ViT-Tiny": vit, "DeiT-Tiny, distilled": deit, "GPT-2": gpt2})


_TINY, _TNT = (5_717_416, 12), (23_768_584, 24)
_TIMM_NETWORKS = {"vit_tiny_patch16_224": _TINY, "deit_tiny_patch16_224": _TINY, "tnt_s_patch16_224": _TNT}


@paper.exact(
    "It adds one scalar a layer to the networks of the experiments: 12 to ViT-Tiny and DeiT-Tiny, 24 to TNT-Small.",
    source="experiments; networks by timm's names",
    expect=_one_scalar_a_layer(_TIMM_NETWORKS),
    needs=(TIMM,),
    note="TNT has an inner and an outer MLP in each of its 12 blocks",
)
def one_scalar_a_layer_in_timm(trial: Trial) -> dict[str, float]:
    """Counts on timm's own networks."""
    import timm

    return _counts({name: timm.create_model(name) for name in _TIMM_NETWORKS})


for _id, _baseline in (("relu", RELU), ("prelu", PRELU), ("gelu", GELU)):
    paper.measured(
        f"more-accurate-than-{_id}",
        f"Vision transformers with CRReLU are more accurate than with {_baseline.name}.",
        source="abstract",
        protocol=classification,
        settings=VIT,
        criteria=Criterion("accuracy", CRRELU, "greater", _baseline, seeds=SEEDS),
        note="a ViT of three blocks on 8x8 digits stands in for ViT, DeiT and TNT on CIFAR and ImageNet",
    )

paper.measured(
    "learned-eps-ends-negative",
    "Training moves eps from +0.01 to the side that lowers the entropy: the median over the layers ends negative.",
    source="our question to the paper's learnable eps",
    protocol=classification,
    settings=VIT,
    criteria=Criterion("learned_parameter", CRRELU, "less", margin=0.0, seeds=SEEDS, control=FIXED),
)

for _id, _what, _form, _more in (
    ("cifar", "CIFAR-10 and CIFAR-100", "cifar", ()),
    ("imagenet", "ImageNet", "imagefolder", (Need("gpu", "cuda", "training on ImageNet"),)),
):
    paper.measured(
        f"more-accurate-on-{_id}",
        f"On {_what} vision transformers with CRReLU are more accurate than with ReLU, PReLU and GELU.",
        source="experiments",
        published="the paper's numbers were not recovered, so none is quoted",
        protocol=classification,
        settings=VIT,
        needs=(Need("setting", "data", f"{_what}: data={_form}:PATH", rf"{_form}:.+"), *_more),
        criteria=tuple(Criterion("accuracy", CRRELU, "greater", arm, seeds=SEEDS) for arm in (RELU, PRELU, GELU)),
    )

paper.measured(
    "lower-loss-than-gelu-in-a-language-model",
    "In a language model CRReLU does better than GELU: a lower validation loss.",
    source="abstract, by proxy",
    protocol=language_modelling,
    needs=(TRANSFORMERS,),
    criteria=Criterion("validation_loss", CRRELU, "less", GPT2_GELU, seeds=SEEDS),
    note="a proxy: a GPT-2 of two blocks trained from scratch on the characters of Python's language reference, where "
    "the paper fine-tunes GPT-2 on preferences; the learning rate is the best of four for GELU, on seeds of their own",
)

for _id, _where, _rate in (
    ("language-model", "In a language model too,", Tiers(smoke=5e-3, gpu=1e-3)),
    ("language-model-at-twice-the-rate", "In one with twice the learning rate too,", Tiers(smoke=1e-2, gpu=2e-3)),
):
    paper.measured(
        f"learned-eps-ends-negative-in-a-{_id}",
        f"{_where} training moves eps to the side that lowers the entropy.",
        source="our question to the paper's learnable eps",
        protocol=language_modelling,
        settings={"lr": _rate},
        needs=(TRANSFORMERS,),
        criteria=Criterion("learned_parameter", CRRELU, "less", margin=0.0, seeds=SEEDS, control=FIXED),
    )

paper.measured(
    "better-than-gelu-in-preference-tuning",
    "GPT-2 fine-tuned by direct preference optimization ranks answers better with CRReLU than with GELU.",
    source="abstract",
    published="the paper's numbers were not recovered, so none is quoted",
    protocol=preference_tuning,
    needs=(
        Need("setting", "pairs", "preference pairs such as SHP or HH: pairs=FILE.jsonl"),
        Need("setting", "language_model", "a GPT-2: language_model=FOLDER or an id", r"(?!(?:gpt2|llama|mamba2?)$).+"),
        TRANSFORMERS,
    ),
    criteria=(
        Criterion("reward_accuracy", CRRELU, "greater", GPT2_GELU, seeds=SEEDS),
        Criterion("dpo_loss", CRRELU, "less", GPT2_GELU, seeds=SEEDS),
    ),
)

paper.measured(
    "overhead-is-minimal",
    "It costs next to nothing: forward and backward take at most 1.1 times those of GELU.",
    source="reviews of the conference version",
    published='"minimal", without a number',
    protocol=latency,
    settings={"reference": "torch.nn:GELU", "shape": "64x197x768", "backward": True},
    criteria=Criterion(
        "ratio", CRRELU, "less", margin=1.1, seeds=Tiers(smoke=1, desk=MINIMUM_SEEDS),
        control=Arm("CRReLU in separate operations", "paperworks.papers.protocols.composites:CompositeCRReLU"),
    ),
    note="the tensor of a ViT-Base layer, batch of 64; the control is the formula in separate tensor operations",
)  # fmt: skip


def draw(figure: Any, results: Any) -> None:
    """Left: the function at eps of either sign. Right: learned eps by layer and seed, with its median over seeds."""
    import numpy as np

    left, right = figure.subplots(1, 2)
    x = np.linspace(-4, 4, 401)
    for eps, label, colour in ((0, "ReLU", "#5d6874"), (0.3, "eps = +0.3", "#b9500b"), (-0.3, "eps = -0.3", "#2462c4")):
        left.plot(x, np.maximum(x, 0) + eps * x * np.exp(-x * x / 2), color=colour, label=label)
    left.set(xlabel="input", ylabel="output", xlim=(-4, 4), ylim=(-0.5, 3))
    left.legend(loc="upper left")
    for label, suffix, colour in (
        ("ViT", "", "#2462c4"),
        ("GPT-2", "-in-a-language-model", "#0a7868"),
        ("GPT-2, twice the rate", "-in-a-language-model-at-twice-the-rate", "#b9500b"),
    ):
        curves = results.curves(f"learned-eps-ends-negative{suffix}", "CRReLU", "learned parameter by depth")
        learned = np.array([values for _, values in curves])
        depth = np.arange(1, learned.shape[1] + 1)
        right.plot(depth, learned.T, "o-", color=colour, alpha=0.3, linewidth=0.8, markersize=3)
        right.plot(depth, np.median(learned, 0), "_", color=colour, markersize=18, markeredgewidth=2.2, label=label)
    right.axhline(0.01, color="#5d6874", linewidth=1, linestyle="--", label="start, +0.01")
    right.set(xlabel="layer", ylabel="learned eps", xticks=(1, 2, 3), xlim=(0.8, 3.2))
    right.legend(loc="upper right")


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "CRReLU at either sign of eps, and the eps that training chose: a line a seed by layer, a bar for the median. "
        "Below zero is the side that lowers the output entropy.",
    )
)
paper.findings.append(
    Finding(
        "The entropy that the method sets out to lower falls for a negative eps and rises for a positive one. CRReLU "
        "starts at +0.01, on the rising side: whether training crosses depends on network and learning rate.",
        ("entropy-rises-with-eps", *(claim.id for claim in paper.claims if "eps-ends-negative" in claim.id)),
    )
)
