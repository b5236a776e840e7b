"""What the exact claims on pruning compute: counts at full size, identities of the importance, the bound, squeezing."""

from __future__ import annotations

import itertools
from typing import Any

from paperworks.lab.trial import Trial

RATIOS = {"DIMAP1": 0.15, "DIMAP2": 0.35, "DIMAP3": 0.55}
"""The ratios of the published variants, all three modules alike."""


def parameters_left(trial: Trial, name: str) -> dict[str, float]:
    """Parameters left at each ratio: from masks of the whole network at 55 %, by the modules' sizes at 15 and 35 %."""
    from paperworks.efficiency.dimap import dimap_masks, find_modules
    from paperworks.measure.parameters import count_parameters
    from paperworks.papers.protocols.pruning_networks import real_swin

    model = real_swin(name, "cpu", trial.generator("weights"))
    total = count_parameters(model)
    sizes = [sum(linear.weight.numel() for _, linear in pairs) for pairs in find_modules(model).values()]
    removed = {variant: sum(round(ratio * size) for size in sizes) for variant, ratio in RATIOS.items()}
    removed["DIMAP3"] = sum(n - kept for kept, n in dimap_masks(model, RATIOS["DIMAP3"]).counts().values())
    found = {}
    for variant, count in removed.items():
        found[f"{variant}: M parameters"] = (total - count) / 1e6
        found[f"{variant}: % removed"] = 100 * count / total
    return found


def prunable_macs(name: str) -> tuple[int, int]:
    """Multiply-adds of the prunable layers, and all."""
    from paperworks.efficiency.dimap import find_modules, sparse_flops
    from paperworks.papers.protocols.pruning_networks import real_swin

    model = real_swin(name)
    prunable = {layer for pairs in find_modules(model).values() for layer, _ in pairs}
    report = sparse_flops(model, 224)
    return sum(macs for layer, macs, _ in report.rows if layer in prunable), report.macs


def counted_reduction(trial: Trial, name: str, options: dict[str, Any]) -> float:
    """Per cent of all multiply-adds that the masks of 55 % remove."""
    from paperworks.efficiency.dimap import dimap_masks, sparse_flops
    from paperworks.papers.protocols.pruning_networks import real_swin

    masks = dimap_masks(real_swin(name, "cpu", trial.generator("weights")), RATIOS["DIMAP3"], **options)
    report = sparse_flops(real_swin(name), 224, masks)
    return 100 * (1 - report.macs_pruned / report.macs)


def importance_is_relative_distortion(trial: Trial) -> dict[str, float]:
    """Largest differences; the distortion is measured by removing the weights one after the other."""
    import torch

    from paperworks.efficiency.dimap import dimap_masks, importance
    from paperworks.papers.protocols.pruning_networks import real_swin

    weight = torch.randn(192, 384, generator=trial.generator("layer"), dtype=torch.float64)
    scores, order = importance(weight).flatten(), weight.abs().flatten().argsort()
    ranked = weight.flatten()[order]
    left = torch.stack([ranked[i:].square().sum() for i in range(0, len(ranked), 64)])
    distortion = ranked[::64].square() / left
    model = real_swin("Swin-T", "cpu", trial.generator("weights"))
    low, high = dimap_masks(model, 0.35), dimap_masks(model, 0.55)
    return {
        "importance - distortion, relative": float((scores[order][::64] / distortion - 1).abs().max()),
        "scaled - unscaled": float((importance(1e-3 * weight).flatten() - scores).abs().max()),
        "pairs of weights in another order": float((scores[order].diff() <= 0).sum()),
        "weights kept at 55 % and gone at 35 %": float(sum(int((high[n] & ~low[n]).sum()) for n in low)),
    }


def output_change_is_bounded(trial: Trial) -> dict[str, float]:
    """The largest ratio of a change to its bound."""
    import torch

    from paperworks.efficiency.dimap import distortion_bound, importance

    generator = trial.generator("networks")
    worst, count = 0.0, 0
    for depth in (2, 3, 5):
        for pruned in (range(1), range(depth - 1, depth), range(depth), range(depth)) * 5:
            sizes = torch.randint(8, 64, (depth + 1,), generator=generator).tolist()
            weights = [
                torch.randn(o, i, generator=generator, dtype=torch.float64) for i, o in itertools.pairwise(sizes)
            ]
            masks = [
                importance(w) > importance(w).quantile(0.5) if i in pruned else None for i, w in enumerate(weights)
            ]
            x = torch.nn.functional.normalize(
                torch.randn(1000, sizes[0], generator=generator, dtype=torch.float64), dim=1
            )
            before = after = x
            for i, (w, mask) in enumerate(zip(weights, masks, strict=True)):
                before, after = before @ w.T, after @ (w if mask is None else w * mask).T
                if i + 1 < depth:
                    before, after = before.relu(), after.relu()
            worst = max(worst, float((before - after).norm(dim=1).max()) / distortion_bound(weights, masks))
            count += 1
    return {"largest change / bound": worst, "pruned networks": count}


def squeezing_keeps_the_output(trial: Trial) -> dict[str, float]:
    """Set rows of fc1, columns of fc2, a head's values and a head's outputs to 0, squeeze, compare."""
    import torch

    from paperworks.efficiency.dimap import squeeze
    from paperworks.papers.protocols.pruning_networks import real_swin
    from paperworks.surgery.swin_parts import find_attentions, find_mlps

    generator = trial.generator("weights")
    model = real_swin("Swin-T", "cpu", generator)
    with torch.no_grad():
        for mlp in find_mlps(model)[:10]:
            dead = torch.randperm(mlp.fc1[1].out_features, generator=generator)[:300]
            mlp.fc1[1].weight[dead[:150]] = 0
            mlp.fc2[1].weight[:, dead[150:]] = 0
        first, second = find_attentions(model)[:2]
        first.qkv[-1][1].weight[:32] = 0
        second.proj[1].weight[:, 32:64] = 0
        small = squeeze(model)
        image = torch.randn(1, 3, 224, 224, generator=generator)
        before, after = (net(image).logits for net in (model, small))
    neurons, heads = (
        (sum(mlp.fc1[1].out_features for mlp in find_mlps(net)) for net in (model, small)),
        (sum(a.proj[1].in_features for a in find_attentions(net)) for net in (model, small)),
    )
    (n_before, n_after), (h_before, h_after) = neurons, heads
    return {
        "largest change / largest logit": float((before - after).abs().max() / before.abs().max()),
        "neurons cut": n_before - n_after,
        "heads cut": (h_before - h_after) / 32,
    }
