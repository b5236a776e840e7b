"""Counts and identities of SwiFT at the paper's size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from paperworks.lab.trial import Trial
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.measure.parameters import count_parameters
from paperworks.papers.protocols.fmri_eager import EagerSwiFT
from paperworks.swin.swift import ClipAugment, SwiFT, integrated_gradients, local_local_loss, nt_xent

DEPTHS, CHANNELS = (2, 2, 6, 2), (36, 72, 144, 288)


def backbone_size(trial: Trial) -> dict[str, float]:
    """Parameters of the network here, with its head, and of the published class with its unused norm."""
    with torch.device("meta"):
        return {
            "backbone": count_parameters(SwiFT()),
            "with one output": count_parameters(SwiFT(num_outputs=1)),
            "published class": count_parameters(EagerSwiFT()),
        }


def equals_the_published_computation(trial: Trial) -> dict[str, float]:
    """Largest difference from the step-by-step network with its weights, at the paper's size and two clips' lengths."""
    with trial.global_generators("weights"):
        theirs, ours = EagerSwiFT().eval(), SwiFT().eval()
    ours.load_official_state_dict(theirs.state_dict())
    found = {}
    with torch.no_grad():
        for frames in (4, 6):
            x = torch.randn(1, 1, 96, 96, 96, frames, generator=trial.generator("clip"))
            wanted = theirs(x)
            found[f"{frames} frames: difference / largest"] = float((ours(x) - wanted).abs().max() / wanted.abs().max())
    return found


def closed_formula(frames: int, window: int = 4, *, whole_brain: bool = False) -> tuple[int, int]:
    """Multiply-adds by hand: (attention products, everything else) of one clip of 96^3 voxels.

    Args:
        frames: of the clip.
        window: of a window in time.
        whole_brain: every token attends to every token, in all stages.
    """
    attention, other = 0, 16**3 * frames * 216 * 36
    for stage, (depth, dim) in enumerate(zip(DEPTHS, CHANNELS, strict=True)):
        edge = 16 >> stage
        tokens = edge**3 * frames
        padded = edge**3 * math.ceil(frames / window) * window
        keys = tokens if whole_brain else min(edge, 4) ** 3 * window
        attention += depth * 2 * (tokens if whole_brain else padded) * keys * dim
        # query, key, value and output projections of all tokens of the windows; two layers of the MLP
        other += depth * (padded * 4 * dim * dim + tokens * 8 * dim * dim)
        if stage < 3:
            other += tokens // 8 * 8 * dim * 2 * dim
    return attention, other


def windows_are_cheap(trial: Trial) -> dict[str, float]:
    """Tokens and scores of the first stage, multiply-adds counted and by hand."""
    tokens = 16**3 * 20
    with torch.device("meta"):
        counted = count_multiply_adds(SwiFT().eval(), torch.empty(1, 1, 96, 96, 96, 20)).macs
    return {
        "tokens of the first stage": tokens,
        "scores a head": tokens * 4**4,
        "scores a head, every pair": tokens**2,
        "every pair / windows": tokens**2 / (tokens * 4**4),
        "G multiply-adds": counted / 1e9,
        "counted - by hand": counted - sum(closed_formula(20)),
    }


def cost_is_linear_in_frames(trial: Trial) -> dict[str, float]:
    """Multiply-adds of 40 frames over those of 20, counted here, and by hand with attention between all tokens."""
    with torch.device("meta"):
        long, short = (
            count_multiply_adds(SwiFT((96, 96, 96, n)).eval(), torch.empty(1, 1, 96, 96, 96, n)).macs for n in (40, 20)
        )
    pairs = [closed_formula(n, whole_brain=True)[0] for n in (40, 20)]
    return {"40 frames / 20 frames": long / short, "attention between all tokens: 40 / 20": pairs[0] / pairs[1]}


def what_positions_cost(trial: Trial) -> dict[str, float]:
    """Parameters of both kinds of positions at the paper's size, and the bytes of one looked-up bias."""
    with torch.device("meta"):
        none, absolute, relative = (count_parameters(SwiFT(positions=p)) for p in (None, "absolute", "relative"))
    return {
        "absolute": absolute - none,
        "relative": relative - none,
        "entries of a 4-D table, a head": 7**4,
        "entries looked up a block and head": 256**2,
    }


def balance_of_the_losses(trial: Trial) -> dict[str, float]:
    """Both losses of embeddings that are all alike, as at the start, for batches of 8."""
    same = torch.ones(8, 2, 16)
    instance = float(nt_xent(same[:, 0], same[:, 1]))
    summed, mean = (float(local_local_loss(same, same, reduction=r)) for r in ("sum", "mean"))
    return {"instance": instance, "local, mean": mean, "local, sum": summed, "sum / instance": summed / instance}


def views_are_drawn_from_the_clip(trial: Trial) -> dict[str, float]:
    """Whether a clip is as before after it was augmented: here, and when written through a view with other axes."""
    clip = torch.randn(2, 1, 8, 8, 8, 3, generator=trial.generator("clip"))
    before, augment = clip.clone(), ClipAugment()
    augment(clip, trial.generator("map"))
    here = float((clip - before).abs().max())
    frames_first = clip.permute(0, 5, 1, 2, 3, 4)
    for sample, volumes in zip(range(2), augment(before, trial.generator("map")), strict=True):
        for frame in range(3):
            frames_first[sample, frame] = volumes[..., frame]
    return {"here: change of the clip": here, "through a view: change of the clip": float((clip - before).abs().max())}


def attribution_is_complete(trial: Trial) -> dict[str, float]:
    """Residual over change at the full depth and width on a smaller grid, in float64, by points of the path."""
    with trial.global_generators("weights"):
        model = SwiFT((48, 48, 48, 4), num_outputs=1).double().eval()
    x = torch.randn(1, 1, 48, 48, 48, 4, generator=trial.generator("clip"), dtype=torch.float64)
    x = functional.avg_pool3d(x[0].movedim(-1, 0), 5, 1, 2).movedim(0, -1).unsqueeze(0) * 8
    found = {}
    for steps in (4, 16):
        attribution = integrated_gradients(model, x, baseline=0.0, steps=steps, internal_batch=4)
        change = attribution.residual + attribution.sum()  # type: ignore[attr-defined]
        found[f"{steps} points"] = float((attribution.residual / change).abs())  # type: ignore[attr-defined]
    return found


def one_map_a_clip(trial: Trial) -> dict[str, float]:
    """Deviation over time of a still clip after augmentation, with one map a clip and with one a frame."""
    still = functional.avg_pool3d(torch.randn(1, 1, 16, 16, 16, generator=trial.generator("clip")), 3, 1, 1)
    clip = still.unsqueeze(-1).expand(-1, -1, -1, -1, -1, 8).contiguous()
    augment, generator = ClipAugment(noise_p=0.0, smooth_p=0.0), trial.generator("map")
    once = augment(clip, generator)
    each = torch.cat([augment(frame, generator) for frame in clip.split(1, 5)], 5)
    return {name: _over_time(found) / float(still.std()) for name, found in (("a clip", once), ("a frame", each))}


def _over_time(clip: torch.Tensor) -> float:
    return float(clip.std(5).square().mean().sqrt())


__all__: Sequence[str] = [
    "attribution_is_complete",
    "backbone_size",
    "balance_of_the_losses",
    "closed_formula",
    "cost_is_linear_in_frames",
    "equals_the_published_computation",
    "one_map_a_clip",
    "views_are_drawn_from_the_clip",
    "what_positions_cost",
    "windows_are_cheap",
]
