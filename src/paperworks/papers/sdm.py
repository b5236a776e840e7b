"""Similarity-Distance-Magnitude Universal Verification (arXiv 2502.20167): the card and its claims."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.papers.protocols import sdm_checks as checks
from paperworks.papers.protocols.selective import selective_classification, verification_time
from paperworks.papers.protocols.verified_head import verified_generation

paper = Paper(
    id="sdm",
    title="Similarity-Distance-Magnitude Universal Verification",
    area="activations",
    arxiv="2502.20167",
    date=date(2025, 2, 27),
    authors="Allen Schmaltz",
    n_authors=1,
    code="https://github.com/ReexpressAI/sdm",
    keywords=("confidence", "selective classification", "calibration", "softmax", "conformal prediction"),
    method="paperworks.activations.sdm",
    summary=(
        "A softmax knows how far a point lies from the decision boundary, and nothing of whether it has seen its like. "
        "SDM puts both into the activation: the base grows with the number of nearest training points that are "
        "rightly predicted and agree (similarity), the exponent shrinks with the distance to the nearest one. On top, "
        "an estimator keeps what a calibration set supports: a prediction is admitted only where its lower "
        "probability, class by class, holds the wanted accuracy; everything else is rejected, most of all what lies "
        "outside the training data. An SDM network builds the same check into a language model's output layer."
    ),
    usage=(
        "from paperworks.activations.sdm import SDMClassifier\n\n"
        "model = SDMClassifier(alpha=0.95).fit(embeddings, labels)   # of any frozen network\n"
        "result = model.select(new_embeddings)\n"
        "print(result.prediction[result.admitted], result.probability[result.admitted])\n"
        "print(model.explain(new_embeddings[:1]))                    # the training points behind the verdict"
    ),
    provenance={
        "activation, loss, similarity, distance, rescaler, bounds, thresholds, decision (Eqs. 5-28)": "the paper",
        "adaptor without nonlinearity, scalar normalisation, q := 0 where a uniform output disagrees, effective sample "
        "size in whole numbers": "the authors' code",
        "flips judged against the prediction, not against the argmax of a uniform output": "the paper, where its code "
        "differs",
        "log-probabilities by log-softmax, nothing added inside the logarithm": "our choice; the code adds an epsilon",
        "rescaler by L-BFGS on the convex problem, beside Adam of the paper": "our reconstruction",
        "lr 1e-3 and 40 epochs on small data": "our choice; the paper has 1e-5 and 50",
        "similarity by counting below the first failure, without sorting": "derived here",
        "centroid arm: the thresholds of the lower bound, applied without it": "our reconstruction",
        "baselines: the same adaptor under cross entropy, the epoch of the best class-balanced accuracy": "the "
        "authors' code, with as many splits as the method instead of one",
        "APS and RAPS": "MAPIE",
    },
)

_ARMS = "paperworks.papers.protocols.selective_arms"
SDM = Arm("SDM", f"{_ARMS}:SDM")
CENTROID = Arm("SDM without its lower bound", f"{_ARMS}:SDM", {"bound": "centroid"})
SOFTMAX = Arm("softmax", f"{_ARMS}:Softmax")
TEMPERATURE = Arm("temperature scaling", f"{_ARMS}:Softmax", {"temperature": True})
APS, RAPS = (Arm(f"{name.upper()} singletons", f"{_ARMS}:Conformal", {"score": name}) for name in ("aps", "raps"))
NO_REJECT = Arm("no rejecting", f"{_ARMS}:Softmax", {"threshold": 0.0})
STATED = Arm("stated confidence", f"{_ARMS}:StatedConfidence")
SEEDS = Tiers(smoke=2, desk=10)
MAPIE = Need("package", "mapie", "pip install 'paperworks[peers]'")
SHIFTS = {"_rotate25": "turned by 25°", "_rotate45": "turned by 45°", "_noise0.35": "noise of s.d. 0.35"}

paper.exact(
    "SDM generalises softmax (q = e - 2, d = 1), never changes the prediction, and is uniform at d = 0.",
    source="Eq. 7",
    expect={
        "SDM - softmax": Bound(at_most=1e-12),
        "predictions changed": Bound(equals=0),
        "p - 1/C at d = 0": Bound(at_most=1e-12),
    },
)(checks.generalises_softmax)

paper.exact(
    "The logarithm to the base 2 + q cancels in the gradient of the loss, which is d (p - y) / N.",
    source="Eq. 8",
    expect=Bound(at_most=1e-12),
)(checks.gradient_is_free_of_the_base)

paper.exact(
    "Similarity and distance need no sorted neighbours: counting the matches nearer than the first failure is exact.",
    source="Eqs. 5 and 6; the shortcut is ours",
    expect={"similarities that differ": Bound(equals=0), "relative difference of distances": Bound(at_most=1e-6)},
    note="20 queries of 20,000 training points with 1,000 filters, against sorting all distances in float64",
)(checks.similarity_by_counting)

paper.exact(
    "Where the output is calibrated, the class-wise quantile cut keeps the accuracy at alpha' by class and by "
    "prediction.",
    source="Remark 4.5, Alg. 3",
    expect={
        "least accuracy by class": Bound(at_least=0.95),
        "least accuracy by prediction": Bound(at_least=0.95),
        "admitted": Bound(at_least=0.2),
    },
    note="labels drawn from the outputs; thresholds from 100,000 points, accuracy among 100,000 others, as the lower "
    "end of its 95 % interval",
)(checks.quantile_cut_keeps_the_accuracy)

paper.exact(
    "The band around a class's distribution function holds it with probability alpha', at any effective sample size.",
    source="Eq. 13 (Dvoretzky, Kiefer, Wolfowitz; Massart)",
    expect=Bound(at_most=0.05),
    note="the largest probability of leaving it at alpha' = .95, over sample sizes from 1 to 1,000, by the law of "
    "Kolmogorov and Smirnov",
)(checks.band_holds_the_distribution)

paper.exact(
    "An SDM network of phi-3.5 trains a copy of the output layer, 98.5 million parameters, over 2 |V| outputs.",
    source="section 4.3",
    published="32,064 x 3,072",
    expect={"trained parameters": Bound(equals=98_500_608), "outputs": Bound(equals=64_128)},
)(checks.trains_the_output_layer)

paper.exact(
    "Untrained, an SDM network decodes as the model does; trained, as SDM over both halves at q = e - 2, d = 1.",
    source="section 4.3",
    expect={"untrained: tokens that differ": Bound(equals=0), "trained: tokens that differ": Bound(equals=0)},
)(checks.decodes_as_the_model)

paper.exact(
    "The regulariser r' is the square root of r, never above that of the loss, and 1 while either is below 1.",
    source="Eq. 32",
    expect={
        "untrained: loss - (nll + beta)": Bound(equals=0, tolerance=1e-12),
        "loss < 1: r' - 1": Bound(equals=0, tolerance=1e-12),
        "1 < loss < r: r' - sqrt(loss)": Bound(equals=0, tolerance=1e-12),
        "loss > r: r' - sqrt(r)": Bound(equals=0, tolerance=1e-12),
    },
)(checks.regulariser_follows_the_loss)

paper.measured(
    "admits-at-the-wanted-accuracy",
    "What it admits is at least 95 % right by class and by prediction, and more often right than at softmax >= .95 and "
    "than without rejecting.",
    source="Table 1",
    published="Sentiment: .996 of 65 % admitted; softmax .989 of 87 %; without rejecting .968",
    protocol=selective_classification,
    criteria=(
        Criterion("lowest_by_class", SDM, "greater", margin=0.95, seeds=SEEDS, control=SOFTMAX),
        Criterion("lowest_by_prediction", SDM, "greater", margin=0.95, seeds=SEEDS, control=SOFTMAX),
        Criterion("error", SDM, "less", SOFTMAX, seeds=SEEDS),
        Criterion("error", SDM, "less", NO_REJECT, seeds=SEEDS),
    ),
    note="8x8 digits, is the digit 5 or more: 1,300 for training and calibration, 497 for the test",
)

paper.measured(
    "is-not-vacuous",
    "It still admits: more than a fifth of the points in distribution.",
    source="Table 1; the fifth is our reading",
    published="Sentiment 65 %, MMLU 38 %, MMLU-Pro 22 %",
    protocol=selective_classification,
    criteria=Criterion(
        "share", SDM, "greater", margin=0.2, seeds=SEEDS,
        control=Arm("SDM fitted on shuffled labels", f"{_ARMS}:SDM", {"shuffle_labels": True}),
    ),
)  # fmt: skip

paper.measured(
    "errs-less-under-shift",
    "Under shift, what it admits is less often wrong than at softmax >= .95, with temperature scaling or without.",
    source="Table 1 (SentimentOOD, Factcheck)",
    published="SentimentOOD: softmax .861 of 46 %, SDM rejects all; Factcheck: softmax .828 of 40 %, SDM 1.0 of 13 %",
    protocol=selective_classification,
    criteria=tuple(
        Criterion(f"error{suffix}", SDM, "less", baseline, seeds=SEEDS)
        for suffix in SHIFTS
        for baseline in (SOFTMAX, TEMPERATURE)
    ),
    note="the same trained arms on shifted test digits; an arm that admits nothing makes no error",
)

paper.measured(
    "admits-next-to-nothing-under-shift",
    "Under shift it admits next to nothing: less than 5 % of the points.",
    source="Table 1 (SentimentOOD); the 5 % is ours",
    published="SentimentOOD: SDM rejects all",
    protocol=selective_classification,
    criteria=tuple(
        Criterion(f"share{suffix}", SDM, "less", margin=0.05, seeds=SEEDS, control=SOFTMAX) for suffix in SHIFTS
    ),
)

paper.measured(
    "errs-less-than-prediction-sets-under-shift",
    "Under shift, what it admits is less often wrong than split-conformal prediction sets of one class.",
    source="Table 1",
    protocol=selective_classification,
    needs=(MAPIE,),
    criteria=tuple(
        Criterion(f"error{suffix}", SDM, "less", baseline, seeds=SEEDS) for suffix in SHIFTS for baseline in (APS, RAPS)
    ),
)

paper.measured(
    "ranks-better-than-softmax",
    "It is not only a stricter threshold: digits and turned digits together, ranked by q~, show less error over all "
    "shares than ranked by softmax.",
    source="our question",
    protocol=selective_classification,
    criteria=Criterion("aurc", SDM, "less", SOFTMAX, seeds=SEEDS),
)

paper.measured(
    "spread-shrinks-with-similarity",
    "The larger floor(q~), the less the output depends on the split and the training.",
    source="Table 2",
    protocol=selective_classification,
    criteria=Criterion(
        "spread_correlation", SDM, "less", margin=0.0, seeds=SEEDS,
        control=Arm("SDM, spreads shuffled over the bins", f"{_ARMS}:SDM", {"shuffle_spread": True}),
    ),
)  # fmt: skip

paper.measured(
    "few-calibration-points-reject-nearly-all",
    "With 60 calibration points a class the lower bound rejects nearly everything.",
    source="Eqs. 12-16; the number is ours",
    protocol=selective_classification,
    settings={"task": "classes", "fit_size": Tiers(smoke=500, desk=1200), "rounds": 1},
    criteria=Criterion("share", SDM, "less", margin=0.05, seeds=SEEDS, control=CENTROID),
    note="ten digits, one split, so that no spread over rounds plays a part; the rescaler is solved to its optimum, "
    "and --set rescaler=paper trains it as the paper does",
)

_SIZE = "paperworks.papers.protocols.selective_trials:support_size"
paper.measured(
    "search-is-most-of-the-cost",
    "The neighbour search is most of the time of a verdict.",
    source="the method; the threshold of a half is ours",
    protocol=verification_time,
    criteria=Criterion(
        "search_share", Arm("SDM", _SIZE), "greater", margin=0.5, seeds=Tiers(smoke=1, desk=MINIMUM_SEEDS),
        control=Arm("SDM with 100 training points", _SIZE, {"size": 100}),
    ),
    note="20,000 training points, 1,000 filters, embeddings of 6,144 as of phi-3.5, 100 queries at once on one core",
)  # fmt: skip

paper.measured(
    "admits-at-the-wanted-accuracy-on-embeddings",
    "Over language model embeddings, what it admits is at least 95 % right by class and by prediction, and less often "
    "wrong than softmax on data from elsewhere.",
    source="Table 1",
    published="Sentiment .996 of 65 %, SentimentOOD none admitted (softmax .861 of 46 %), Factcheck 1.0 of 13 %",
    protocol=selective_classification,
    needs=(
        Need("setting", "data", "training and calibration embeddings: data=jsonl:PATH", r"jsonl:.+"),
        Need("setting", "shifted", "labelled embeddings from elsewhere: shifted=jsonl:PATH", r"jsonl:.+"),
    ),
    criteria=(
        Criterion("lowest_by_class", SDM, "greater", margin=0.95, seeds=SEEDS, control=SOFTMAX),
        Criterion("lowest_by_prediction", SDM, "greater", margin=0.95, seeds=SEEDS, control=SOFTMAX),
        Criterion("error_shifted", SDM, "less", SOFTMAX, seeds=SEEDS),
    ),
    note="JSON lines of the authors' archive; test=jsonl:PATH gives the test part, else a quarter is held out",
)

paper.measured(
    "beats-stated-confidence",
    "Over the answers of a language model behind an API, what it admits is less often wrong than what the model itself "
    "states to be 95 % sure of.",
    source="experiment over an API",
    published="MMLU .957 of 38 % against .953 of 35 %; MMLU-Pro .958 of 22 % against .857 of 16 %",
    protocol=selective_classification,
    settings={"task": "classes", "epochs": Tiers(smoke=4, desk=40, full=5)},
    needs=(
        Need("setting", "data", "answers with their 7 features: data=jsonl:PATH", r"jsonl:.+"),
        Need("setting", "answers", "the first features are the stated confidence: answers=1", r"(?i)true|yes|on|1"),
    ),
    criteria=(
        Criterion("error", SDM, "less", STATED, seeds=SEEDS),
        Criterion("error_shifted", SDM, "less", STATED, seeds=SEEDS),
    ),
    note="shifted=jsonl:PATH gives MMLU-Pro",
)

_NETWORK = "paperworks.papers.protocols.verified_head:network"
paper.measured(
    "network-raises-accuracy-and-share",
    "An SDM network raises the accuracy of phi-3.5 on its tasks and the share of answers that its check admits.",
    source="Table 5",
    published="accuracy .751 to .876, admitted .39 to .42",
    protocol=verified_generation,
    needs=(
        Need("setting", "language_model", "phi-3.5: language_model=FOLDER or an id", r"(?!(?:gpt2|llama|mamba2?)$).+"),
        Need("setting", "documents", "prompts with right and wrong completions: documents=FILE.jsonl"),
        Need("setting", "test_documents", "the same for the test: test_documents=FILE.jsonl"),
        Need("package", "transformers", "pip install 'paperworks[activations]'"),
        Need("gpu", "cuda", "generation with a language model"),
    ),
    criteria=tuple(
        Criterion(
            metric, Arm("SDM network", _NETWORK), "greater", Arm("untrained", _NETWORK, {"epochs": 0}), seeds=SEEDS
        )
        for metric in ("task_accuracy", "admitted_share")
    ),
)

paper.exact(
    "Over 7 features, 1,000 filters give exemplars of 7 dimensions, and the classifier is affine in the features.",
    source="our finding, on the experiment over an API",
    expect={"dimensions of the exemplars": Bound(equals=7), "logits - their affine fit": Bound(at_most=1e-9)},
)(checks.filters_add_no_dimensions)

paper.exact(
    "Float32's epsilon inside the logarithm, as in the code, caps the loss at 15.9 nats and stops the gradient there.",
    source="our finding, on the authors' code",
    expect={
        "loss at z = (0, 40), target 0": Bound(equals=40, tolerance=1e-9),
        "its gradient": Bound(equals=-1, tolerance=1e-9),
        "with the constant: loss": Bound(equals=23 * math.log(2), tolerance=1e-6),
        "with the constant: gradient": Bound(equals=0, tolerance=1e-9),
    },
)(checks.constant_in_the_logarithm)

paper.exact(
    "The estimate rests on the rounding of float32: in float64 the quantiles of many calibration points move.",
    source="our finding, on Eq. 9",
    expect={"points whose quantiles move": Bound(at_least=0.05)},
    note="probabilities that round to 1 tie at the class's maximum and count as its top quantile",
)(checks.quantiles_rest_on_float32)

paper.exact(
    "With 60 calibration points a class the rescaler of least loss lies beyond the reach of the paper's training: "
    "1,000 epochs of Adam at 1e-4 move a weight by less than 190.",
    source="our finding, on Alg. 2",
    expect={
        "optimum: largest weight": Bound(at_least=190),
        "reach of the paper's training": Bound(at_most=190),
        "loss, optimum scaled to that reach - optimum": Bound(at_least=0),
    },
    note="1,200 digits of ten classes, halved",
)(checks.rescaler_outgrows_its_training)


def draw(figure: Any, results: Any) -> None:
    """Admitted share against the accuracy of what is admitted, a point a seed, in distribution and under each shift."""
    under_shift, sets = "errs-less-under-shift", "errs-less-than-prediction-sets-under-shift"
    arms = [(SDM, under_shift, "#2462c4", "o"), (SOFTMAX, under_shift, "#b9500b", "^")]
    arms += [(TEMPERATURE, under_shift, "#7d6300", "v"), (APS, sets, "#0a7868", "s"), (RAPS, sets, "#a12f86", "D")]
    axes = figure.subplots(1, 4, sharey=True)
    for axis, (suffix, where) in zip(axes, {"": "in distribution", **SHIFTS}.items(), strict=True):
        for arm, claim, colour, marker in arms:
            try:
                share, error = (results.metric(claim, arm.name, f"{name}{suffix}") for name in ("share", "error"))
            except LookupError:
                if arm in (APS, RAPS):  # without MAPIE there are none
                    continue
                raise
            style = {"markersize": 5, "zorder": 3} if arm is SDM else {"markersize": 3.5, "zorder": 2}
            accuracy = [1 - error[seed] for seed in share]
            axis.plot(
                list(share.values()), accuracy, marker, color=colour, alpha=0.7, clip_on=False, label=arm.name, **style
            )
        axis.axhline(0.95, color="#1b2028", linewidth=0.8, linestyle="--")
        axis.set(title=where, xlabel="share admitted", xlim=(0, 1), xticks=(0, 0.5, 1))
    axes[0].set(ylabel="accuracy of what is admitted", ylim=(None, 1.0))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "What each rule admits and how often that is right, a point a seed; the dashed line is the wanted accuracy. A "
        "rule that admits nothing stands at share 0 and accuracy 1.",
    )
)
paper.findings += [
    Finding(
        "What keeps it from error under shift is that it admits next to nothing there; a stricter threshold is not all "
        "of it, since its order of the points is better than that of softmax too.",
        ("admits-next-to-nothing-under-shift", "errs-less-under-shift", "ranks-better-than-softmax"),
    ),
    Finding(
        "With few features the filters add nothing: in the experiment over an API, 1,000 filters read 7 features, so "
        "exemplars have 7 dimensions and the classifier is multinomial logistic regression.",
        ("filters-add-no-dimensions",),
    ),
    Finding(
        "The published code adds float32's epsilon, 2^-23, inside the logarithm: a confident error costs at most 15.9 "
        "nats and gives no gradient.",
        ("constant-in-the-logarithm",),
    ),
    Finding(
        "Probabilities that round to 1 in float32 count as their class's top quantile, and the estimate is made of "
        "these quantiles: the same weights and data give others in float64.",
        ("quantiles-rest-on-float32",),
    ),
    Finding(
        "How much the lower bound rejects on little data hangs on where the rescaler's training stops: its optimum has "
        "weights so large that the bound's half-width matters less.",
        ("rescaler-outgrows-its-training", "few-calibration-points-reject-nearly-all"),
    ),
]
