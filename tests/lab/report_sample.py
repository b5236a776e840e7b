"""Papers with every kind of claim and verdict, and a store in memory that holds them, for the tests of the reports."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np

from paperworks.lab import statistics
from paperworks.lab.nouns import Arm, BestOf, Bound, Criterion, Figure, Finding, Need, Paper, Setting, Tiers, protocol
from paperworks.lab.records import Comparison, Machine, TrialResult, TrialSpec, Verdict

HERE = "lab.report_sample"
LONG_WORD = "Antidisestablishmentarianism_and_other_words_that_do_not_want_to_break"
START = datetime(2025, 11, 20, 9, 30, tzinfo=UTC)
VERSIONS = {"paperworks": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "scipy": "1.17.1"}
MACHINE = Machine("9f3a1c0b7d2e4a55", "AMD EPYC 7763 64-Core Processor", 2, 7.8, "Linux 6.1.0", "3.11.9", "", VERSIONS)
TRACEBACK = "\n".join(
    [
        "Traceback (most recent call last):",
        '  File "execute.py", line 43, in execute',
        "    metrics = _numbers(target.function(trial, arm), target.metrics)",
        *(f'  File "layers.py", line {line}, in forward\n    return self.inner_{line}(x)' for line in range(10, 20)),
        "RuntimeError: <script>alert('x')</script> mat1 and mat2 shapes cannot be multiplied (64x128 and 64x10)",
    ]
)

DIGITS_SETTINGS = (
    Setting("data", str, "digits", "digits or imagefolder:PATH"),
    Setting("epochs", int, Tiers(smoke=1, desk=20), "number of epochs"),
)


@protocol(
    "digits-classification",
    metrics={"accuracy": "share of test images classified right", "epochs_to_85": "epochs until 85 % accuracy"},
    settings=DIGITS_SETTINGS,
)
def digits(trial, arm):
    raise AssertionError("a report runs nothing")


@protocol("latency", metrics={"seconds": "median seconds of one forward and backward pass"}, exclusive=True)
def latency(trial, arm):
    raise AssertionError("a report runs nothing")


METHOD = Arm("ASH", "torch.nn:SiLU", {"alpha": 1.0})
RELU, SILU, TOPK = Arm("ReLU", "torch.nn:ReLU"), Arm("SiLU", "torch.nn:SiLU"), Arm("TopPercent", "torch.nn:ELU")
FIXED = BestOf("fixed", tuple(Arm(f"z={z}", "torch.nn:CELU", {"z_k": z}) for z in (0.0, 0.52, 1.28)))


def accuracy_by_epoch(figure, results):
    axes = figure.subplots(1, 2)
    for arm in ("ASH", "ReLU", "SiLU"):
        curves = np.array([numbers for _, numbers in results.curves("more-accurate", arm, "test accuracy")])
        epochs = np.arange(1, curves.shape[1] + 1)
        (line,) = axes[0].plot(epochs, curves.mean(0), label=arm)
        axes[0].fill_between(epochs, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes[0].legend()
    axes[0].set(title="Test accuracy", xlabel="epoch")
    for place, comparison in enumerate(results.values("more-accurate")):
        axes[1].plot([comparison.low, comparison.high], [place, place], color="black")
        axes[1].plot(comparison.observed, place, "o", color="black", markeredgecolor="white")
    axes[1].axvline(0, color="0.5", linewidth=0.8)
    axes[1].locator_params("x", nbins=4)
    axes[1].set(title="Difference to the baseline", yticks=[0, 1], yticklabels=["ReLU", "SiLU"], ylim=(-0.6, 1.6))


def accuracy_of_nothing(figure, results):
    results.curves("needs-cifar", "ASH", "test accuracy")


def broken(figure, results):
    raise KeyError("<b>no such column</b>")


def ash_paper() -> Paper:
    """A card with every kind of claim."""
    paper = Paper(
        id="ash",
        title="Stochastic Adaptive Activation Function",
        area="activations",
        arxiv="2210.11672",
        date=date(2022, 10, 20),
        authors="K. Lee, J. Yang, H. Lee, J. Y. Hwang",
        n_authors=4,
        venue="NeurIPS 2022",
        code="https://github.com/kyungsu-lee-ksl/ASH",
        summary=(
            "A unit passes its value on when that value belongs to the top `k` percent of its feature map. The "
            "threshold comes from the map's own mean and standard deviation, so nothing is sorted, and the percentile "
            "is learned.\n\n"
            "With a fixed threshold of zero the function is SiLU: what is new is the statistics, one pair of trainable "
            "scalars a layer."
        ),
        method="paperworks.activations.ash",
        usage=(
            "from paperworks.activations.ash import ASH\n"
            "from paperworks.surgery import replace_activations\n\n"
            "report = replace_activations(model, ASH)   # every ReLU, SiLU, GELU of a timm or torchvision network\n"
            'assert all(x < 1 for x in [0.5]) and "<b>" != "&"\n'
        ),
        provenance={
            "formula `x S(2 alpha (x - mu - z sigma))`": "the paper",
            "initial values of alpha and z": "its code",
            "epsilon in the standard deviation": "our reconstruction: a constant map would give no gradient",
        },
        findings=[
            Finding(
                "The two published code fragments compute different functions: one averages over the batch, so the "
                "output of a sample depends on its neighbours.",
                ("generalises-swish", "selected-share"),
            ),
            Finding(
                "Counted with batch normalisation, the parameters added are 0.0004 % of the network.", ("parameters",)
            ),
        ],
        figures=[
            Figure(
                f"{HERE}:accuracy_by_epoch", "Accuracy over epochs, mean and range of ten seeds, and the differences."
            ),
            Figure(f"{HERE}:accuracy_of_nothing", "The same on CIFAR-10."),
            Figure(f"{HERE}:broken", "A figure whose function raises."),
        ],
    )
    _exact_claims(paper)
    _measured_claims(paper)
    return paper


def _exact_claims(paper: Paper) -> None:
    @paper.exact(
        "ASH generalises Swish: it is `x S(a x + b)`, and SiLU at alpha = 1/2 with a threshold of zero.",
        source="Section 3.2, equation 7",
        expect=Bound(at_most=1e-12),
        published="an identity",
        note="Judged in float64 on 10,000 random maps.",
    )
    def generalises_swish(trial):
        return 0.0

    shares = (-1.0, -0.5, 0.0, 0.25, 0.52, 0.8416, 1.0, 1.2816, 1.6449, 1.96)
    exact = paper.exact(
        "The trainable z selects the top k percent of normal inputs.",
        source="Section 3.1",
        expect={f"share kept at z = {z}": Bound(equals=round(0.5 - z / 5, 4), tolerance=1e-3) for z in shares},
        published="z = 1.96 keeps 2.5 %",
    )
    exact(_named("selected_share"))
    paper.exact(
        "Two scalars a layer are the whole cost in parameters.",
        source="Section 3.3",
        expect={
            "resnet50, parameters added": Bound(equals=98),
            "resnet50, parameters": Bound(equals=25_557_130),
            "densenet121, parameters added": Bound(equals=242),
        },
    )(_named("parameters"))


def _named(name):
    def function(trial):
        return 0.0

    function.__name__ = name
    return function


def _measured_claims(paper: Paper) -> None:
    paper.measured(
        "more-accurate",
        "More accurate than ReLU and Swish.",
        source="Abstract; Table 1",
        protocol=digits,
        criteria=(
            Criterion("accuracy", METHOD, "greater", RELU),
            Criterion("accuracy", METHOD, "greater", SILU),
        ),
        published="CIFAR-10, ResNet-164: 94.6 % against 93.9 %",
        note="A small network on 8 x 8 digits stands in for the paper's own networks.",
    )
    paper.measured(
        "earlier-convergence",
        "Training converges earlier.",
        source="Abstract",
        protocol=digits,
        criteria=Criterion("epochs_to_85", METHOD, "less", RELU),
    )
    paper.measured(
        "trained-percentile",
        "A trained percentile beats the best fixed one.",
        source="Table 5, row `F-ASH-k`",
        protocol=digits,
        criteria=Criterion("accuracy", METHOD, "greater", FIXED),
    )
    paper.measured(
        "no-sorting",
        "Cheap, because nothing is sorted: at least five times faster than exact top-k.",
        source="Section 3.1",
        protocol=latency,
        criteria=Criterion("seconds", METHOD, "less", TOPK, margin=0.2, scale="ratio"),
    )
    paper.measured(
        "sparse-enough",
        "The accuracy with most units silent stays above ninety percent.",
        source="Section 4.4",
        protocol=digits,
        criteria=Criterion("accuracy", METHOD, "greater", margin=0.9, control=RELU),
    )
    paper.measured(
        "needs-cifar",
        "More accurate than seven activations on CIFAR-10.",
        source="Table 1",
        protocol=digits,
        criteria=Criterion("accuracy", METHOD, "greater", RELU),
        needs=(Need("setting", "data", "CIFAR-10 as Python batches", "cifar10:.+"),),
        published="not quoted: the table's numbers were not recovered",
    )
    paper.measured(
        "hard-ash-forgets-less",
        "Hard ASH with Adagrad forgets less on Split-MNIST.",
        source="Follow-up, Figure 2",
        protocol=digits,
        criteria=Criterion("accuracy", METHOD, "greater", RELU),
    )
    paper.measured(
        "never-run",
        "Helps a generative adversarial network on CelebA.",
        source="Section 4.5",
        protocol=digits,
        criteria=Criterion("accuracy", METHOD, "greater", RELU),
        needs=(Need("gpu", "cuda", "a GPU with 8 GiB"),),
    )


def small_paper(id: str, area: str, title: str) -> Paper:
    """A card with one exact and one measured claim."""
    method = f"paperworks.{area}.{id.replace('-', '_')}"
    paper = Paper(
        id, title, area, "2405.12954", date(2024, 5, 18), "A. Author et al.", 8, "One sentence.", method,
        usage="import paperworks",
    )  # fmt: skip
    paper.exact("A count is 7.", source="Table 2", expect=Bound(equals=7))(_named("count"))
    paper.measured(
        "better",
        "Better than ReLU.",
        source="Abstract",
        protocol=digits,
        criteria=Criterion("accuracy", METHOD, "greater", RELU),
    )
    return paper


def compare(criterion: Criterion, method, baseline, level: float = 0.05) -> Comparison:
    """A comparison with the lab's own statistics."""
    method, baseline = np.asarray(method, float), None if baseline is None else np.asarray(baseline, float)
    ratio = criterion.scale == "ratio"
    values = method if baseline is None else np.log(method / baseline) if ratio else method - baseline
    margin = float(np.log(criterion.margin)) if ratio else criterion.margin
    found = statistics.estimate(values, margin)
    adjusted = statistics.interval(values, 1 - level)[:2] if level else (None, None)

    def back(v):
        return None if v is None else float(np.exp(v)) if ratio else float(v)

    return Comparison(
        label=str(criterion),
        side=statistics.decide(found, margin, criterion.direction, level),
        observed=back(found.mean), low=back(found.low), high=back(found.high),
        adjusted_low=back(adjusted[0]), adjusted_high=back(adjusted[1]), level=level, p=found.p, effect=found.effect,
        interval=found.method, margin=criterion.margin, direction=criterion.direction, scale=criterion.scale,
        method=criterion.method.name, baseline=criterion.baseline.name if criterion.baseline else "",
        method_values={str(seed): float(v) for seed, v in enumerate(method)},
        baseline_values={} if baseline is None else {str(seed): float(v) for seed, v in enumerate(baseline)},
    )  # fmt: skip


class MemoryStore:
    """The part of a store that a report reads, in memory."""

    def __init__(self):
        self.verdicts, self.known = [], {}

    def latest_verdicts(self, *, paper=None, tier=None, control=False):
        newest = {}
        for verdict in sorted(self.verdicts, key=lambda v: v.created):
            if verdict.paper == paper and tier in (None, verdict.tier) and verdict.control == control:
                newest[verdict.question] = verdict
        return list(newest.values())

    def history(self, paper, claim):
        return [v for v in self.verdicts if (v.paper, v.claim) == (paper, claim)]

    def trials(self, keys):
        return {key: self.known[key][1] for key in keys if key in self.known}

    def specs(self, keys):
        return {key: self.known[key][0] for key in keys if key in self.known}

    def machines(self, ids):
        return {MACHINE.id: MACHINE} if MACHINE.id in ids else {}

    def trial(self, arm: Arm, seed: int, *, metrics=None, curves=None, error="") -> str:
        """Keep a trial of an arm and return its key."""
        spec = TrialSpec(
            f"{HERE}:digits", "code", seed=seed, arm_target=arm.target, arm_options=dict(arm.options), label=arm.name
        )
        status = "error" if error else "done"
        self.known[spec.key] = (spec, TrialResult(spec.key, status, metrics or {}, curves or {}, error, 3.2))
        return spec.key

    def keep(self, paper: str, claim: str, status: str, comparisons=(), **facts) -> Verdict:
        """Keep a verdict and return it."""
        usual = {
            "kind": "measured", "tier": "desk", "device": "cpu", "seconds": 96.4, "fingerprint": "4be1c09d77aa",
            "machine": MACHINE.id, "created": START,
        }  # fmt: skip
        verdict = Verdict(paper=paper, claim=claim, status=status, comparisons=tuple(comparisons), **{**usual, **facts})
        self.verdicts.append(verdict)
        return verdict


def sample_store() -> MemoryStore:
    """Verdicts of every status for the claims of `ash_paper`, and of two small papers."""
    store, paper, rng = MemoryStore(), ash_paper(), np.random.default_rng(7)
    _exact_verdicts(store, paper)
    relu = 0.93 + 0.01 * rng.standard_normal(10)
    ash, silu = relu + 0.014 + 0.006 * rng.standard_normal(10), relu + 0.011 + 0.009 * rng.standard_normal(10)
    keys = []
    for arm, values in ((METHOD, ash), (RELU, relu), (SILU, silu)):
        for seed, value in enumerate(values):
            curve = value * (1 - np.exp(-np.arange(1, 21) / 4))
            keys.append(store.trial(arm, seed, metrics={"accuracy": value}, curves={"test accuracy": curve.tolist()}))
    first, second = paper.claim("more-accurate").criteria
    for days, level in ((0, 0.05), (3, 0.025)):
        both = [compare(first, ash, relu, level), compare(second, ash, silu, 0.05)]
        when = START.replace(day=START.day + days)
        store.keep("ash", "more-accurate", "inconclusive", both, seeds=10, trials=tuple(keys), created=when)
    criterion = paper.claim("earlier-convergence").criteria[0]
    faster = compare(criterion, [7, 6, 8, 6, 7, 7, 5, 8, 6, 7], [9, 9, 8, 10, 9, 8, 9, 11, 8, 9], 0.0125)
    store.keep("ash", "earlier-convergence", "holds", [faster], seeds=10, settings={"data": "digits", "epochs": 20})
    criterion = paper.claim("trained-percentile").criteria[0]
    few = compare(criterion, [0.941, 0.938], [0.944, 0.936])
    few = replace(few, level=0.0, adjusted_low=None, adjusted_high=None)
    store.keep("ash", "trained-percentile", "inconclusive", [few], tier="smoke", seeds=2, seconds=4.04)
    criterion = paper.claim("no-sorting").criteria[0]
    slow = compare(criterion, 0.4 + 0.02 * rng.random(10), 1 + 0.05 * rng.random(10), 0.01)
    store.keep("ash", "no-sorting", "fails", [slow], seeds=10, seconds=3900.0)
    criterion = paper.claim("sparse-enough").criteria[0]
    same = compare(criterion, [0.95] * 10, None, 0.0125)
    store.keep(
        "ash", "sparse-enough", "holds", [same], seeds=10, settings={"data": "imagefolder:/data/street", "epochs": 20}
    )
    store.keep(
        "ash",
        "needs-cifar",
        "not run",
        kind="needs",
        reason="needs CIFAR-10 as Python batches (--set data=...)",
        seconds=0.0,
    )
    broken = [store.trial(METHOD, seed + 100, error=TRACEBACK) for seed in range(3)]
    store.keep(
        "ash",
        "hard-ash-forgets-less",
        "error",
        reason="3 of 20 trials ended in an error",
        seeds=10,
        trials=tuple(broken),
    )
    return store


def _exact_verdicts(store: MemoryStore, paper: Paper) -> None:
    claim = paper.claim("generalises-swish")
    one = Comparison("", "holds", 2.2204e-16, expected=str(claim.bounds[""]))
    store.keep("ash", claim.id, "holds", [one], kind="exact", seconds=0.31)
    claim = paper.claim("selected-share")
    rows = [
        Comparison(label, "fails" if "0.8416" in label else "holds", bound.equals + 2e-4, expected=str(bound))
        for label, bound in claim.bounds.items()
    ]
    store.keep("ash", claim.id, "fails", rows, kind="exact", seconds=8.2)
    claim = paper.claim("parameters")
    rows = [Comparison(label, "holds", bound.equals, expected=str(bound)) for label, bound in claim.bounds.items()]
    store.keep("ash", claim.id, "holds", rows, kind="exact", seconds=41.0)


def sample_papers() -> list[Paper]:
    """`ash_paper` and two small ones in two areas."""
    return [
        ash_paper(),
        small_paper("crrelu", "activations", "A Method on Searching Better Activation Functions"),
        small_paper(
            "swin-x2s", "swin", "Swin-X2S: Reconstructing Three-Dimensional Shapes from X-ray Images with Transformers"
        ),
    ]
