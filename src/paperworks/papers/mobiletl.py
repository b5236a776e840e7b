"""MobileTL: On-device Transfer Learning with Inverted Residual Blocks (arXiv 2212.03246): the card and its claims."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

from paperworks.lab.nouns import MINIMUM_SEEDS, Arm, Bound, Criterion, Figure, Finding, Need, Paper, Tiers
from paperworks.lab.trial import Trial
from paperworks.papers.protocols.transfer import transfer

paper = Paper(
    id="mobiletl",
    title="MobileTL: On-device Transfer Learning with Inverted Residual Blocks",
    area="efficiency",
    arxiv="2212.03246",
    date=date(2022, 12, 5),
    authors="Hung-Yueh Chiang, Natalia Frumkin, Feng Liang, Diana Marculescu",
    n_authors=4,
    venue="AAAI 2023",
    keywords=(
        "transfer learning",
        "on-device training",
        "memory",
        "inverted residual",
        "mobilenet",
        "batch normalisation",
    ),
    method="paperworks.efficiency.mobiletl",
    summary=(
        "Fine-tuning on a phone runs out of memory for stored activations, not for weights. MobileTL trains only the "
        "last blocks of a MobileNet and makes those blocks keep less: the two norms at the wide channels train nothing "
        "but their shift, which needs no stored input; hard-swish and ReLU6 are exact forwards and let the gradient "
        "pass where the input was positive, one bit a value; the norm at the narrow end trains in full and adapts to "
        "the new data."
    ),
    usage=(
        "from paperworks.efficiency.mobiletl import mobiletl, plan\n\n"
        "choice = plan(model, memory_budget_bytes=16 * 2**20, input_size=224, batch=8)\n"
        "handle = mobiletl(model, choice.blocks, backward=choice.backward)   # timm, torchvision, ...\n"
        "optimizer = torch.optim.Adam(handle.parameters(), lr=1e-3)\n"
        "...  # the usual loop\n"
        "model = handle.unwrap()  # plain layers, first state dict keys"
    ),
    provenance={
        "last blocks only; shift-only inner norms; last norm trained in full": "the paper",
        "backward pass by the sign of the input, one bit a value": "the paper; that 0 passes nothing is our choice",
        "what counts as stored, and as an operation": "our reconstruction; it gives the published savings",
        "squeeze-excite left exact; head convolution frozen, classifier trained": "our reconstruction",
        'backward="two_bit", and the exact bit of ReLU6': "our additions",
        "recipe of transfer (Adam, cosine, no weight decay)": "our reconstruction",
        "TinyTL's side path": "our reading of that paper, arXiv 2007.11622",
    },
)

_ARMS = "paperworks.papers.protocols.transfer_arms"
MOBILETL = Arm("MobileTL, 5 blocks", f"{_ARMS}:signed_blocks")
EXACT = Arm("MobileTL, exact slopes", f"{_ARMS}:signed_blocks", {"backward": "exact"})
TWO_BIT = Arm("MobileTL, two bits", f"{_ARMS}:signed_blocks", {"backward": "two_bit"})
ALL = Arm("fine-tuning, all", f"{_ARMS}:all_layers")
SAME_BLOCKS = Arm("fine-tuning, 5 blocks", f"{_ARMS}:whole_blocks")
SAME_MEMORY = Arm("fine-tuning, 2 blocks", f"{_ARMS}:whole_blocks", {"blocks": 2})
BIASES = Arm("biases, 3 blocks", f"{_ARMS}:biases", {"blocks": 3})
TINYTL = Arm("TinyTL, 3 blocks", f"{_ARMS}:lite_residuals", {"blocks": 3})
LAST_LAYER = Arm("last layer", f"{_ARMS}:last_layer")
SEEDS = Tiers(smoke=2, desk=MINIMUM_SEEDS)
TRANSFORMERS = Need("package", "transformers", "pip install 'paperworks[efficiency]'")
NETWORKS = ("MobileNetV2", "MobileNetV3-Small", "MobileNetV3-Large")


def _network(name: str) -> Any:
    """A network of real size with 10 classes and new weights; MobileNetV2 is that of transformers."""
    if name == "MobileNetV2":
        import transformers

        return transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(num_labels=10))
    from paperworks.papers.protocols import mobilenets

    return (mobilenets.mobilenet_v3_small if name.endswith("Small") else mobilenets.mobilenet_v3_large)(10)


@paper.exact(
    "A block keeps 46.3 % less for its backward pass (MobileNetV2), or 53.3 % less (MobileNetV3).",
    source="abstract",
    published="46.3 % and 53.3 %",
    expect={
        "MobileNetV2 block, % less": Bound(equals=46.3, tolerance=0.1),
        "MobileNetV3 block, % less": Bound(equals=53.3, tolerance=0.1),
    },
    note="blocks of expansion 6 and stride 1; the V3 block has hard-swish and squeeze-excite, at 7x7",
)
def a_block_keeps_half(trial: Trial) -> dict[str, float]:
    """The counting rule on 160 channels; the share does not depend on them."""
    from paperworks.efficiency.mobiletl import block_memory

    def saved(area: int, se: bool, act: str) -> float:
        ft, tl = (block_memory(160, 160, 6, area, area, se=se, act=act, method=m) for m in ("ft", "mobiletl"))
        return 100 * (1 - tl / ft)

    return {
        "MobileNetV2 block, % less": saved(196, False, "relu6"),
        "MobileNetV3 block, % less": saved(49, True, "hardswish"),
    }


def _kept(name: str, prepare: Callable[[Any], Any], images: Any) -> float:
    """MiB that a training step of a network keeps, measured."""
    from paperworks.efficiency.mobiletl import stored_activations

    model = _network(name)
    prepare(model)
    return stored_activations(model.train(), images).bytes / 2**20


@paper.exact(
    "In the real networks, trained from the fifth block before the end, a step keeps that much less.",
    source="abstract, on whole networks",
    published="46.3 % for MobileNetV2, 53.3 % for MobileNetV3, by block",
    expect={
        "MobileNetV2: % less than fine-tuning the same blocks": Bound(at_least=46),
        "MobileNetV3-Small: % less than fine-tuning the same blocks": Bound(at_least=50),
        "MobileNetV3-Large: % less than fine-tuning the same blocks": Bound(at_least=50),
    },
    needs=(TRANSFORMERS,),
    note="bytes that autograd holds after a forward pass, batch of 4 at 224 pixels, every storage once",
)
def networks_keep_half(trial: Trial) -> dict[str, float]:
    """Both counts, in MiB, and the share saved."""
    import torch

    from paperworks.efficiency.mobiletl import mobiletl
    from paperworks.papers.protocols.transfer_arms import whole_blocks

    images = torch.randn(4, 3, 224, 224, generator=trial.generator("images"))
    found = {}
    for name in NETWORKS:
        before, after = _kept(name, whole_blocks, images), _kept(name, mobiletl, images)
        found[f"{name}: MiB, fine-tuning"], found[f"{name}: MiB, MobileTL"] = before, after
        found[f"{name}: % less than fine-tuning the same blocks"] = 100 * (1 - after / before)
    return found


@paper.exact(
    "MobileTL with 5 blocks of MobileNetV3 takes 36 % fewer operations a training step than fine-tuning it.",
    source="abstract",
    published="36 %",
    expect={
        "MobileNetV3-Small, % less": Bound(equals=36, tolerance=0.5),
        "MobileNetV3-Large, % less": Bound(equals=34.5, tolerance=0.1),
        "MobileNetV3-Small, % less, convolutions and linear layers only": Bound(equals=35.0, tolerance=0.1),
    },
    note="224 pixels, 10 classes, classifier trained, head frozen; which of the two V3 the paper means is not said in "
    "what we have: the small one has the published number",
)
def fewer_operations(trial: Trial) -> dict[str, float]:
    """Forward and backward, stem and head included, on shapes alone."""
    import torch

    from paperworks.efficiency.mobiletl import mobiletl, training_flops

    found = {}
    for name in NETWORKS[1:]:
        with torch.device("meta"):
            handle = mobiletl(_network(name))
        trained, model = handle.trained_names, handle.unwrap()
        for label, elementwise in (("", True), (", convolutions and linear layers only", False)):
            whole = training_flops(model, 224, None, elementwise=elementwise).total
            part = training_flops(model, 224, trained, method="mobiletl", elementwise=elementwise).total
            found[f"{name}, % less{label}"] = 100 * (1 - part / whole)
    return found


@paper.exact(
    "The forward pass is unchanged, and the gradients of what trains are exact given the sign rule.",
    source="method",
    expect={
        "eval mode: largest relative difference of a logit": Bound(at_most=1e-10),
        "train mode: largest relative difference of a gradient": Bound(at_most=1e-8),
        "gradients compared": Bound(at_least=40),
    },
    note="MobileNetV3-Small in float64, 5 blocks, against autograd through the plain network whose inner norms are in "
    "eval mode and whose activations have the sign rule written out",
)
def gradients_are_exact(trial: Trial) -> dict[str, float]:
    """Largest differences over all logits, and over all gradients relative to the largest entry of each."""
    from paperworks.papers.protocols.mobiletl_checks import differences_from_sign_rule

    logit, gradient, compared = differences_from_sign_rule(trial)
    return {
        "eval mode: largest relative difference of a logit": logit,
        "train mode: largest relative difference of a gradient": gradient,
        "gradients compared": compared,
    }


@paper.exact(
    "A bool of torch takes a byte: without packing eight to a byte much of the saving is gone.",
    source="our finding",
    expect={
        "MobileNetV2 block: % less, packed": Bound(equals=46.26, tolerance=0.05),
        "MobileNetV2 block: % less, a byte a value": Bound(at_most=38),
    },
    note="stored bytes of one block of transformers' MobileNetV2, 160 channels at 14x14, batch of 8",
)
def packing_decides(trial: Trial) -> dict[str, float]:
    """Measured on the block; fine-tuning of ReLU6 by the paper's rule of two bits a value."""
    import torch

    from paperworks.efficiency.mobiletl import block_memory, mobiletl, stored_activations
    from paperworks.papers.protocols.mobilenets import mobilenet_v2

    block = torch.nn.Sequential(mobilenet_v2().features[15])
    maps = torch.randn(8, 160, 14, 14, generator=trial.generator("maps"))
    fine_tuning = 8 * 4 * block_memory(160, 160, 6, 196, 196)
    found = {}
    for label, packed in (("packed", True), ("a byte a value", False)):
        handle = mobiletl(block, 1, pack_bits=packed)
        kept = stored_activations(block.train(), maps).bytes
        found[f"MobileNetV2 block: % less, {label}"] = 100 * (1 - kept / fine_tuning)
        handle.unwrap()
    return found


@paper.exact(
    "Two bits a value give hard-swish a slope much nearer to its own than the sign, and ReLU6 needs only one to be "
    "exact.",
    source="our question to the sign rule",
    expect={
        "hard-swish: cosine of the sign's slope with its own": Bound(at_most=0.92),
        "hard-swish: cosine of the two-bit slope with its own": Bound(at_least=0.97),
        "ReLU6: largest difference of the one-bit slope from its own": Bound(at_most=0),
        "bits a value, sign": Bound(equals=1),
        "bits a value, two-bit": Bound(equals=2),
        "bits a value, exact ReLU6": Bound(equals=1),
    },
    note="for a million standard normal inputs",
)
def two_bits_are_nearer(trial: Trial) -> dict[str, float]:
    """Slopes by autograd; bits from what autograd holds."""
    from paperworks.papers.protocols.mobiletl_checks import bits_a_value, slope_cosine, slope_difference

    return {
        "hard-swish: cosine of the sign's slope with its own": slope_cosine(trial, "hardswish", "sign"),
        "hard-swish: cosine of the two-bit slope with its own": slope_cosine(trial, "hardswish", "two_bit"),
        "ReLU6: largest difference of the one-bit slope from its own": slope_difference(trial, "relu6", "exact"),
        "bits a value, sign": bits_a_value("hardswish", "sign"),
        "bits a value, two-bit": bits_a_value("hardswish", "two_bit"),
        "bits a value, exact ReLU6": bits_a_value("relu6", "exact"),
    }


_WHERE = (
    "MobileNetV3-Small of half width, pretrained on the digits 0 to 4, learns 5 to 9 from 20 images each (32 pixels, "
    "scikit-learn's digits)"
)


@paper.exact(
    "In the network of the comparisons of accuracy it keeps about half too, and its rivals have what fits in that.",
    source="Pareto comparisons; the network is ours",
    expect={
        "MobileTL / fine-tuning the same blocks": Bound(at_most=0.55),
        **{f"{arm.name} / MobileTL": Bound(at_most=1) for arm in (SAME_MEMORY, BIASES, TINYTL)},
        **{f"{arm.name} and one more / MobileTL": Bound(at_least=1) for arm in (SAME_MEMORY, BIASES, TINYTL)},
    },
    note="stored bytes at batch 10 and 32 pixels",
)
def rivals_have_the_same_memory(trial: Trial) -> dict[str, float]:
    """Measured by one forward pass of each."""
    from paperworks.papers.protocols.mobiletl_checks import kept_in_transfer

    ours = kept_in_transfer(trial, MOBILETL)
    found = {"MobileTL / fine-tuning the same blocks": ours / kept_in_transfer(trial, SAME_BLOCKS)}
    for arm in (SAME_MEMORY, BIASES, TINYTL):
        found[f"{arm.name} / MobileTL"] = kept_in_transfer(trial, arm) / ours
        more = kept_in_transfer(trial, arm, blocks=arm.options["blocks"] + 1)
        found[f"{arm.name} and one more / MobileTL"] = more / ours
    return found


paper.measured(
    "as-accurate-as-the-same-blocks",
    "At about half the memory it is as accurate as fine-tuning the same blocks: at most 2 points less.",
    source="comparisons with FT-BLKS, by proxy",
    protocol=transfer,
    criteria=Criterion(
        "accuracy", MOBILETL, "greater", SAME_BLOCKS, margin=-0.02, seeds=SEEDS, control=LAST_LAYER
    ),
    note=f"{_WHERE}; the control trains the last layer alone; the learning rate is the best of four for fine-tuning "
    "the same blocks, on seeds of their own",
)  # fmt: skip

paper.measured(
    "better-at-equal-memory",
    "For the memory it takes it is more accurate than fine-tuning fewer blocks, than their biases, and than TinyTL.",
    source="Pareto comparisons, by proxy",
    protocol=transfer,
    criteria=tuple(
        Criterion("accuracy", MOBILETL, "greater", arm, seeds=SEEDS) for arm in (SAME_MEMORY, BIASES, TINYTL)
    ),
    note=f"{_WHERE}; each of the others has the most blocks that keep no more than MobileTL with five",
)

paper.measured(
    "the-sign-costs-little",
    "The sign in place of hard-swish's slope costs little: at most 2 points.",
    source="abstract, by proxy",
    protocol=transfer,
    criteria=Criterion("accuracy", MOBILETL, "greater", EXACT, margin=-0.02, seeds=SEEDS, control=LAST_LAYER),
    note=_WHERE,
)

paper.measured(
    "two-bits-give-a-better-gradient",
    "A second bit brings the gradient of a training step nearer to the exact one.",
    source="our question to the sign rule",
    protocol=transfer,
    criteria=Criterion("gradient_cosine", TWO_BIT, "greater", MOBILETL, seeds=SEEDS),
    note=f"{_WHERE}; the gradient of all that trains, on the first batch",
)

paper.measured(
    "costs-little-on-cifar",
    "On CIFAR-10, an ImageNet network loses 0.6 points to fine-tuning for that saving: at most 1.",
    source="abstract",
    published="0.6 points less on CIFAR-10",
    protocol=transfer,
    settings={
        "size": Tiers(smoke=32, desk=96, gpu=224),
        "labels": Tiers(smoke=10, desk=50, full=0),
        "epochs": Tiers(smoke=1, desk=5, gpu=10, full=50),
        "lr": Tiers(smoke=1e-3),
        "batch_size": Tiers(smoke=8),
    },
    needs=(
        Need("setting", "data", "CIFAR-10: data=cifar:PATH", r"cifar:.+"),
        Need("setting", "weights", "ImageNet weights of torchvision or timm: weights=FILE.pth or .safetensors"),
    ),
    criteria=Criterion("accuracy", MOBILETL, "greater", ALL, margin=-0.01, seeds=SEEDS, control=LAST_LAYER),
)


def draw(figure: Any, results: Any) -> None:
    """Accuracy over stored memory: a small dot a seed, a large one for the mean, of every arm that was run."""
    import numpy as np

    axes = figure.subplots()
    for claim, arm, mark, colour in (
        ("as-accurate-as-the-same-blocks", MOBILETL, "o", "#2462c4"),
        ("two-bits-give-a-better-gradient", TWO_BIT, "D", "#2462c4"),
        ("the-sign-costs-little", EXACT, "^", "#2462c4"),
        ("as-accurate-as-the-same-blocks", SAME_BLOCKS, "s", "#5d6874"),
        ("better-at-equal-memory", SAME_MEMORY, "v", "#5d6874"),
        ("better-at-equal-memory", BIASES, "P", "#b9500b"),
        ("better-at-equal-memory", TINYTL, "X", "#0a7868"),
    ):
        memory = np.array(list(results.metric(claim, arm.name, "stored_bytes").values())) / 2**20
        accuracy = 100 * np.array(list(results.metric(claim, arm.name, "accuracy").values()))
        axes.plot(memory, accuracy, ".", color=colour, alpha=0.35, markersize=4)
        axes.plot(memory.mean(), accuracy.mean(), mark, color=colour, alpha=0.8, markersize=7, label=arm.name)
    axes.set(xlabel="stored activations of a training step, MiB", ylabel="accuracy, %")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


paper.figures.append(
    Figure(
        f"{__name__}:draw",
        "Accuracy on new classes over the memory of a training step: a dot a seed, a mark for the mean. Up and to the "
        "left is better.",
    )
)
paper.findings.append(
    Finding(
        "The published saving is one of packed bits. Kept as torch's bools, a byte a value, the same method saves "
        "about ten points less on a MobileNetV2 block.",
        ("packing-decides",),
    )
)
paper.findings.append(
    Finding(
        "For ReLU6 the sign rule saves nothing over the exact slope, which fits in the same bit. For hard-swish a "
        "second bit takes the cosine of the slope with the exact one from 0.90 to 0.98 under normal inputs.",
        ("two-bits-are-nearer", "two-bits-give-a-better-gradient"),
    )
)
paper.findings.append(
    Finding(
        "The 36 % fewer operations are those of MobileNetV3-Small; counted the same way, "
        "MobileNetV3-Large saves 34.5 %.",
        ("fewer-operations",),
    )
)
