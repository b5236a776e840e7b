"""SwinFace (arXiv 2308.11509): the card and its claims."""

from __future__ import annotations

from datetime import date

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.faces_arms import ALIKE, APART, LAST, METHOD
from paperworks.papers.protocols.faces_patches import face_or_not
from paperworks.papers.protocols.faces_published import published_ages, published_attributes, published_expressions
from paperworks.papers.protocols.faces_tasks import face_tasks
from paperworks.papers.protocols.faces_verification import published_pairs, published_templates
from paperworks.papers.protocols.timing import timing

paper = Paper(
    id="swinface",
    title="SwinFace: A Multi-task Transformer for Face Recognition, Facial Expression Recognition, Age Estimation and "
    "Face Attribute Estimation",
    area="swin",
    arxiv="2308.11509",
    date=date(2023, 8, 22),
    authors="",
    n_authors=7,
    venue="IEEE TCSVT",
    code="https://github.com/lxq1000/SwinFace",
    keywords=(
        "face recognition", "face analysis", "facial expression recognition", "age estimation", "facial attributes",
        "multi-task learning", "swin transformer", "channel attention",
    ),
    method="paperworks.swin.swinface",
    summary=(
        "One backbone and one forward pass over an aligned face give the identity, the expression, the age and forty "
        "attributes, for which people now run a network each. Every group of tasks has a small attention module (MLCA) "
        "that picks what it needs from the levels and channels of a shared Swin. The paper reports 90.97 % on RAF-DB "
        "for expressions and an age error of 0.22 on CLAP2015, and finds that training the tasks together saves data."
    ),
    usage=(
        "from paperworks.swin.swinface import SwinFace, TaskGroup, gate_report\n\n"
        "model = SwinFace().eval()\n"
        "model.load_official_state_dict(checkpoint)      # as published; official_state_dict() goes back\n"
        "found = model(faces)                            # (B, 3, 112, 112) in [-1, 1]: a dict of 43 outputs\n"
        'found = model(faces, tasks=["age", "recognition"])   # only what these need is run\n'
        "print(gate_report(model, faces))                # levels and channels that each group takes\n"
        'model.add_task(TaskGroup("mask", {"mask": 2}))  # one more branch; all that was there is frozen'
    ),
    provenance={
        "network, order of steps, names of weights": "the paper's code",
        "losses, batches, optimiser, rates": "the paper and its code",
        "RandAugment": "the operations and ranges of timm that its code asks for, on tensors",
        "shares of levels for other widths": "our reading: in proportion to channels, by largest remainders",
        "all branches in one pass, gate on what was pooled": "our reconstruction; the numbers are the same",
        "answers for some tasks only, added tasks, gate report, temperatures, scores by group": "our addition",
        "years begin at their mean, weights of the losses in short trainings": "our addition, in the trainings here",
        "drawn faces": "our construction",
    },
)  # fmt: skip

SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)

# --- exact, at the published size ---


@paper.exact(
    "Identity and 42 tasks in eleven groups share one network of 67.4 million parameters.",
    source="its code; counts are ours",
    expect={
        "parameters": Bound(equals=67_415_538),
        "with the unused layer of the published code": Bound(equals=67_809_266),
        "attention": Bound(equals=33_090_464),
        "subnets": Bound(equals=5_778_432),
        "heads": Bound(equals=45_144),
        "tasks besides identity": Bound(equals=42),
        "numbers put out for them": Bound(equals=88),
    },
    note="its code also carries a linear layer of 393,728 parameters that it never calls; ours does not",
)
def parameters_at_full_size(trial: Trial) -> dict[str, float]:
    """Counts by part."""
    from paperworks.papers.protocols import faces_checks

    return faces_checks.counts(trial)


@paper.exact(
    "One pass for all tasks costs a quarter of the parameters and an eighth of the multiply-adds of a Swin-T a group.",
    source="abstract (one model for many tasks); counts are ours",
    expect={
        "M parameters": Bound(equals=67.4, tolerance=0.05),
        "M parameters of eleven Swin-T": Bound(at_least=4 * 67.4),
        "G multiply-adds": Bound(equals=6.09, tolerance=0.005),
        "G multiply-adds of eleven Swin-T": Bound(at_least=8 * 6.09),
        "G multiply-adds of identity alone": Bound(equals=4.48, tolerance=0.005),
        "G multiply-adds of expression alone": Bound(equals=4.63, tolerance=0.005),
        "branches run for expression": Bound(equals=1, tolerance=1e-9),
    },
    note="112 pixels, patches of 2 for all; asked for the expression alone, it runs one branch of eleven",
)
def one_network_for_all_tasks(trial: Trial) -> dict[str, float]:
    """Counts beside those of networks apart."""
    from paperworks.papers.protocols import faces_checks

    return faces_checks.one_network_for_all(trial)


@paper.exact(
    "MLCA shares its 512 channels among the levels as 47, 93, 186 and 186: in proportion to their channels.",
    source="its code",
    expect={
        **{f"channels of level {i + 1}": Bound(equals=n) for i, n in enumerate((47, 93, 186, 186))},
        "parameters": Bound(equals=3_008_224),
    },
)
def levels_in_proportion(trial: Trial) -> dict[str, float]:
    """Widths and parameters of one module."""
    from paperworks.papers.protocols import faces_checks

    return faces_checks.attention_of_a_group(trial)


@paper.exact(
    "MLCA weighs channels by numbers between 0 and 1, and hears all four levels.",
    source="abstract (multi-level channel attention)",
    expect={
        "smallest gate": Bound(at_least=1e-6),
        "largest gate": Bound(at_most=1 - 1e-6),
        **{f"largest change without level {i + 1}": Bound(at_least=0.1) for i in range(4)},
    },
    note="published size, float64, random weights: the features change where a level is zeroed",
)
def all_levels_are_heard(trial: Trial) -> dict[str, float]:
    """Range of the gate and change by level."""
    from paperworks.papers.protocols import faces_checks

    return faces_checks.gate_and_levels(trial)


@paper.exact(
    "The gate scales what was pooled: max over places of ReLU(x s) is s ReLU(max x), to the last bit.",
    source="our question to the code: the gate is applied to the map, before ReLU and maximum",
    expect={
        "numbers that differ, float32": Bound(equals=0),
        "numbers that differ, bfloat16": Bound(equals=0),
        "module - published steps, largest": Bound(at_most=1e-12),
    },
    note="published size; so the map need not be multiplied, and the attention is a rescaling of 512 numbers",
)
def gate_scales_what_was_pooled(trial: Trial) -> dict[str, float]:
    """Numbers that differ between both orders."""
    from paperworks.papers.protocols import faces_checks

    return faces_checks.gate_scales_what_was_pooled(trial)


@paper.exact(
    "Eleven branches in one pass give what they give one after another.",
    source="our reconstruction",
    expect={
        "values, relative": Bound(at_most=1e-12),
        "gates": Bound(at_most=1e-12),
        "gradients in training, relative": Bound(at_most=1e-11),
        "running statistics": Bound(at_most=1e-12),
    },
    note="published size, float64",
)
def one_pass_is_the_loop(trial: Trial) -> dict[str, float]:
    """Largest differences."""
    from paperworks.papers.protocols import faces_checks

    return faces_checks.grouped_is_the_loop(trial)


@paper.exact(
    "In training the age loss goes from squares to the error that CLAP scores, whose slope is bounded.",
    source="its code",
    expect={
        **{f"u = {u}: largest difference of the mean": Bound(at_most=1e-12) for u in ("0", "0.5", "1")},
        "u = 1: steepest slope": Bound(equals=0.2021768866, tolerance=1e-8),
        "u = 1: its error in years": Bound(equals=3, tolerance=1e-6),
        "u = 1: slope beyond 30 years": Bound(at_most=1e-15),
        "exp(-1/2) / 3": Bound(equals=0.2021768866, tolerance=1e-8),
    },
    note="against closed forms in float64, sigma 3 years",
)
def age_loss_changes_its_shape(trial: Trial) -> dict[str, float]:
    """Values at three stages of a training, and slopes at its end."""
    from paperworks.papers.protocols import faces_checks

    return faces_checks.age_loss_changes_its_shape(trial)


@paper.exact(
    "Each step compares embeddings with 30 % of 85,742 identities, their own among them, at a margin of 0.4.",
    source="its training configuration",
    expect={
        "identities a step": Bound(equals=25_723),
        "own identities that are missing": Bound(equals=0),
        "own logit - 64 (cos - 0.4), largest": Bound(at_most=1e-4),
        "formula, largest difference": Bound(at_most=1e-5),
        "cosines that were changed": Bound(equals=0),
    },
)
def sampled_identities(trial: Trial) -> dict[str, float]:
    """CosFace on a sample of classes."""
    from paperworks.papers.protocols import faces_checks

    return faces_checks.sampled_identities(trial)


# --- measured ---

_CALL = "paperworks.papers.protocols.faces_calls:attention_call"

for _id, _says, _margin, _threads in (
    ("one-pass-is-faster", "less time", 1.0, 1),
    ("one-pass-is-much-faster", "at most 1 / 1.6 of the time on two cores", 0.625, 2),
):
    _ONE_PASS = Arm("one pass", _CALL, {"threads": _threads})
    _LOOP = Arm("module after module", _CALL, {"threads": _threads, "grouped": False})
    paper.measured(
        _id,
        f"In one pass the eleven attention modules take {_says}.",
        source="our question: eleven modules that read the same maps",
        protocol=timing,
        settings={"reference": f"{_CALL}(grouped=False, threads={_threads})", "rounds": Tiers(smoke=6, desk=8)},
        criteria=Criterion("ratio", _ONE_PASS, "less", margin=_margin, seeds=SEEDS, control=_LOOP),
        note=f"published size, one face, threads: {_threads}, without gradients; beside the published steps",
    )
paper.measured(
    "levels-help",
    "MLCA on all levels does better over all tasks than the same attention on the last level alone.",
    source="abstract (multi-level channel attention)",
    protocol=face_tasks,
    criteria=Criterion("score", METHOD, "greater", LAST, seeds=SEEDS),
    note="age, expression and attributes of drawn faces of 32 pixels, a small Swin from scratch; branches on the "
    "last level are widened to as many parameters",
)
paper.measured(
    "levels-help-on-real-pictures",
    "MLCA on all levels tells faces from other real pictures better than the same attention on the last level alone.",
    source="abstract (multi-level channel attention)",
    protocol=face_or_not,
    criteria=Criterion("accuracy", METHOD, "greater", LAST, seeds=SEEDS),
    note="one task, 40 of scikit-image's 200 grey patches of 25 pixels to learn from; as many parameters in both",
)
paper.measured(
    "tasks-differ-in-their-levels",
    "MLCA adapts to the task: branches of different tasks weigh the levels more differently than branches of the same.",
    source="abstract (adaptive selection of features)",
    protocol=face_tasks,
    criteria=Criterion("gate_spread", METHOD, "greater", ALIKE, seeds=SEEDS),
    note="in the baseline each of three branches has all tasks, and their outputs are averaged: what differs is chance",
)
paper.measured(
    "together-is-better-than-apart",
    "With 200 labels a task, training together does better than a network for each task with as many updates.",
    source="abstract (better data efficiency)",
    protocol=face_tasks,
    criteria=Criterion("score", METHOD, "greater", APART, seeds=SEEDS),
    note="age, expression and attributes, 200 drawn faces each; a task sees the same faces in the same order",
)

# --- needs ---

_BATCH = Arm("one pass", _CALL, {"batch": 32})
paper.measured(
    "one-pass-is-much-faster-on-a-gpu",
    "On a GPU the eleven attention modules take at most 1 / 1.6 of the time for 32 faces in one pass.",
    source="our question: eleven modules that read the same maps",
    protocol=timing,
    settings={"reference": f"{_CALL}(grouped=False, batch=32)", "rounds": Tiers(smoke=6, desk=15)},
    needs=(Need("gpu", "cuda", "timing on a GPU"),),
    criteria=Criterion(
        "ratio", _BATCH, "less", margin=0.625, seeds=SEEDS,
        control=Arm("module after module", _CALL, {"batch": 32, "grouped": False}),
    ),
    note="published size, float32, without gradients; beside the published steps",
)  # fmt: skip

WEIGHTS = Need("setting", "weights", "the published checkpoint: weights=FILE")
RAFDB = Need("setting", "rafdb", "RAF-DB, under its licence: rafdb=PATH with Image/aligned and list_patition_label.txt")
CELEBA = Need("setting", "celeba", "CelebA: celeba=PATH with img_align_celeba, list_attr_celeba.txt and its partition")
CLAP = Need("setting", "clap", "the apparent ages of ChaLearn 2015: clap=PATH with train.csv and test.csv")
_SAID = "paperworks.papers.protocols.faces_published:said"
PUBLISHED, GUESS = Arm("published weights", _SAID), Arm("the commonest answer", _SAID, {"guess": True})

paper.measured(
    "expressions-on-rafdb",
    "Expressions on RAF-DB are told with an accuracy of 90.97 %.",
    source="abstract",
    published="90.97 %",
    protocol=published_expressions,
    needs=(RAFDB, WEIGHTS),
    criteria=(
        Criterion("accuracy", PUBLISHED, "greater", margin=0.9, seeds=SEEDS, control=GUESS),
        Criterion("accuracy", PUBLISHED, "greater", GUESS, seeds=SEEDS),
    ),
    note="to one point; seeds draw the test faces with replacement",
)
_READING = "the abstract gives no number for it: the margin is our reading, set before any was seen; "
paper.measured(
    "attributes-on-celeba",
    "The forty attributes of CelebA are told with an accuracy of at least 90 %.",
    source="abstract (excellent performance for all tasks)",
    protocol=published_attributes,
    needs=(CELEBA, WEIGHTS),
    criteria=(
        Criterion("accuracy", PUBLISHED, "greater", margin=0.9, seeds=SEEDS, control=GUESS),
        Criterion("accuracy", PUBLISHED, "greater", GUESS, seeds=SEEDS),
    ),
    note=_READING + "seeds draw the test faces with replacement",
)
paper.measured(
    "ages-on-clap",
    "Fine-tuned on CLAP2015, the age error epsilon is 0.22.",
    source="abstract",
    published="0.22",
    protocol=published_ages,
    needs=(CLAP, WEIGHTS, Need("gpu", "cuda", "fine-tuning 67 million parameters")),
    criteria=(
        Criterion("epsilon", PUBLISHED, "less", margin=0.23, seeds=SEEDS, control=GUESS),
        Criterion("epsilon", PUBLISHED, "less", GUESS, seeds=SEEDS),
    ),
    note="to 0.01; the length of the fine-tuning is ours",
)

_COMPARED = "paperworks.papers.protocols.faces_verification:compared_by"
EMBEDDED, PIXELS = Arm("published weights", _COMPARED), Arm("pixels", _COMPARED, {"pixels": True})
PAIRS = Need("setting", "pairs", "packed or listed pairs of aligned faces: pairs=PATH with lfw.bin, cfp_fp.bin, ...")
IJBC = Need("setting", "ijbc", "IJB-C, under its licence: ijbc=PATH with meta and loose_crop")

for _set, _name, _margin in (
    ("lfw", "LFW", 0.99),
    ("cfp_fp", "CFP-FP", 0.9),
    ("agedb_30", "AgeDB-30", 0.9),
    ("calfw", "CALFW", 0.9),
    ("cplfw", "CPLFW", 0.9),
):
    paper.measured(
        f"identities-on-{_set.replace('_', '-')}",
        f"The weights that tell all tasks also tell people apart: on {_name}, at least {100 * _margin:.0f} % of pairs.",
        source="abstract (excellent performance for all tasks)",
        protocol=published_pairs,
        settings={"set": _set},
        needs=(PAIRS, WEIGHTS),
        criteria=(
            Criterion("accuracy", EMBEDDED, "greater", margin=_margin, seeds=SEEDS, control=PIXELS),
            Criterion("accuracy", EMBEDDED, "greater", PIXELS, seeds=SEEDS),
        ),
        note=_READING + "mirror images added, ten folds; seeds draw the pairs of a fold with replacement",
    )
paper.measured(
    "identities-on-ijb-c",
    "The weights that tell all tasks also tell people apart: on IJB-C, with 1 false accept in 10,000, at least 90 %.",
    source="abstract (excellent performance for all tasks)",
    protocol=published_templates,
    needs=(IJBC, WEIGHTS),
    criteria=(
        Criterion("accepted", EMBEDDED, "greater", margin=0.9, seeds=SEEDS, control=PIXELS),
        Criterion("accepted", EMBEDDED, "greater", PIXELS, seeds=SEEDS),
    ),
    note=_READING + "weighted by the detector's score, averaged by video, added by template, as its code does; seeds "
    "draw the pairs of templates with replacement",
)


paper.figures.append(
    Figure(
        "paperworks.papers.protocols.faces_figure:draw",
        "Left: drawn test faces of one seed, the expression and age that were told, and in brackets what is true. "
        "Middle: scores by task, by seed (points) and on average (bars). Right: how the gates of three branches weigh "
        "the levels, by seed (thin) and on average.",
        (10.2, 3.6),
    )
)
paper.findings += [
    Finding(
        "The attention needs no map: its gate is positive and one number a channel, so that gate, ReLU and maximum "
        "over places are the gate times the largest value, to the last bit. MLCA rescales 512 numbers by a function of "
        "their means and maxima.",
        ("gate-scales-what-was-pooled",),
    ),
    Finding(
        "Half of the parameters and a quarter of the multiply-adds are the eleven attention modules; asked for one "
        "task, a single one of them is needed.",
        ("parameters-at-full-size", "one-network-for-all-tasks"),
    ),
    Finding(
        "The published backbone holds a linear layer of 393,728 parameters that no output depends on.",
        ("parameters-at-full-size",),
    ),
]
