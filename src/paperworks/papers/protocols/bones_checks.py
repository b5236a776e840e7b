"""What the exact claims about Swin-X2S compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperworks.data.radiographs import drr
from paperworks.lab.trial import Trial
from paperworks.measure.multiply_adds import MultiplyAdds, count_multiply_adds
from paperworks.measure.parameters import count_parameters
from paperworks.swin.backbone import SwinBackbone
from paperworks.swin.swin_x2s.fusion import CrossViewAttention
from paperworks.swin.swin_x2s.network import SIZES, DimensionExpansion, swin_x2s

PAPER = (128, 128, 160)


def _counted(size: Any) -> MultiplyAdds:
    with torch.device("meta"):
        model, view = swin_x2s(size), torch.zeros(1, 1, PAPER[0], PAPER[2])
    return count_multiply_adds(model, view, view)


def sizes(trial: Trial) -> dict[str, float]:
    """Parameters of the four networks, and 10^9 multiply-adds of two."""
    found: dict[str, float] = {}
    for name in SIZES:
        with torch.device("meta"):
            found[f"{name}: parameters"] = count_parameters(swin_x2s(name))  # type: ignore[arg-type]
    return found | {f"{name}: 10^9 multiply-adds": _counted(name).macs / 1e9 for name in ("tiny", "base")}


def where_the_work_is(trial: Trial) -> dict[str, float]:
    """Shares of the multiply-adds of Base, in %."""
    counted = _counted("base")
    parts = {
        "last up block": "decoder1.",
        "first block": "encoder1.",
        "2-D Swin": "swinViT.",
        "exchange": "cross_atte6.",
    }
    return {
        f"{name}, %": 100 * sum(row.macs for row in counted.rows if (row.name + ".").startswith(prefix)) / counted.macs
        for name, prefix in parts.items()
    }


def shared_weights(trial: Trial) -> dict[str, float]:
    """Weights of Tiny without a gradient from one view's logits, at 32 x 32 x 64."""
    with trial.global_generators("weights"):
        model = swin_x2s("tiny", img_size=(32, 32, 64), out_channels=3).eval()
    a, b = torch.randn(2, 1, 1, 32, 64, generator=trial.generator("views"))
    parameters, logits = list(model.parameters()), model(a, b)
    found: dict[str, float] = {}
    for name, some in zip(("a", "b"), logits, strict=True):
        gradients = torch.autograd.grad(some.square().mean(), parameters, retain_graph=True, allow_unused=True)
        found[f"silent for view {name}"] = sum(g is None or not bool(g.any()) for g in gradients)
    return found


def _fusion(trial: Trial, **options: Any) -> tuple[CrossViewAttention, Tensor, Tensor]:
    """The exchange of Base at its real size, 1536 channels and 4 x 4 x 5 voxels, and two inputs."""
    with trial.global_generators("weights"):
        fusion = CrossViewAttention(1536, 24, 1, 80, **options).eval()
    a, b = torch.randn(2, 1, 1536, 4, 4, 5, generator=trial.generator("deep maps"))
    return fusion, a, b


@torch.no_grad()
def exchange(trial: Trial) -> dict[str, float]:
    """Whether the outputs swap with the inputs, bit for bit; and what is left of a view when the other is uniform."""
    fusion, a, b = _fusion(trial)
    (to_a, to_b), (again_b, again_a) = fusion(a, b), fusion(b, a)
    flat = b.mean((2, 3, 4), keepdim=True).expand_as(b)
    kept, _, _ = _fusion(trial, residual=True)
    left, with_residual = ((f(a, flat)[0] - f(a.flip(2), flat)[0]).abs().max() for f in (fusion, kept))
    return {
        "swapped: largest difference": float(torch.maximum((to_a - again_a).abs().max(), (to_b - again_b).abs().max())),
        "its own view, of a uniform other": float(left),
        "the same with a residual": float(with_residual),
    }


@torch.no_grad()
def expansion(trial: Trial) -> dict[str, float]:
    """Planes of a new expansion against the map, at the six levels of Base, and what two dimensions save."""
    worst, generator = 0.0, trial.generator("maps")
    for level, channels in enumerate((1, 96, 192, 384, 768, 1536)):
        map = torch.randn(1, channels, PAPER[0] >> level, PAPER[2] >> level, generator=generator)
        expand = DimensionExpansion(PAPER[0] >> level)
        for axis in (0, 1):
            for d in (0, expand.depth - 1):
                plane = (map.unsqueeze(2 + axis) * expand.weight[d, 0, 0, 0, 0] + expand.bias[d]).squeeze(2 + axis)
                worst = max(worst, float((plane - map).abs().max()))
        whole = expand(map[:, :8], 1)
        worst = max(worst, float((whole - map[:, :8].unsqueeze(3)).abs().max()))
    flat = sum(row.macs for row in _counted("base").rows if row.name.startswith("swinViT."))
    with torch.device("meta"):
        solid = SwinBackbone(3, 1, 2, 96, (2, 2, 18, 2), (3, 6, 12, 24), 7, merge="each", taps="after")
        volume = count_multiply_adds(solid, torch.zeros(1, 1, *PAPER)).macs
    return {
        "largest difference of a plane": worst,
        "2-D Swin, both views: 10^9 multiply-adds": flat / 1e9,
        "3-D Swin, one volume: 10^9 multiply-adds": volume / 1e9,
        "times": volume / flat,
    }


@torch.no_grad()
def projector(trial: Trial) -> dict[str, float]:
    """The chord of a ball, the magnification of two rods, and a numerical derivative."""
    axes = [(torch.arange(65, dtype=torch.float64) - 32)] * 3
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    radius = 28.0
    ball = (radius + 0.5 - distance).clamp(0, 1)[None, None]
    worst = 0.0
    for angle in (0.0, 37.0, 90.0):
        u = torch.arange(41, dtype=torch.float64) - 20
        seen = drr(ball, (1, 1, 1), angle, detector_shape=(41, 41), pixel_size=1.0)[0, 0]
        off = 1800 * torch.sin(torch.atan((u[:, None] ** 2 + u**2).sqrt() / 2000))
        worst = max(worst, float((seen / (2 * (radius**2 - off**2).sqrt()) - 1).abs().max()))
    rods = torch.zeros(1, 1, 161, 3, 3, dtype=torch.float64)
    rods[0, 0, 40], rods[0, 0, 120] = 1, 1
    shadow = drr(rods, (1, 1, 1), 0.0, detector_shape=(401, 1), pixel_size=0.25)[0, 0, :, 0]
    u = (torch.arange(401) - 200) * 0.25
    right, left = (shadow * side for side in (u > 0, u < 0))
    apart = float((right * u).sum() / right.sum() - (left * u).sum() / left.sum())
    small = torch.randn(1, 1, 5, 4, 6, dtype=torch.float64, generator=trial.generator("volume"))
    with torch.enable_grad():
        right_slope = torch.autograd.gradcheck(
            lambda v: drr(v, (1.0, 2.0, 1.5), 25.0, detector_shape=(5, 4), pixel_size=2.0), (small.requires_grad_(),)
        )
    return {
        "chord of a ball: largest error, %": 100 * worst,
        "magnification": apart / 80,
        "derivatives agree with differences": float(right_slope),
    }


def divergence(trial: Trial) -> dict[str, float]:
    """How much the divergence weighs: that of two random outputs over their dice and cross-entropy, in %."""
    from paperworks.swin.swin_x2s.losses import two_view_loss

    generator = trial.generator("logits")
    a, b = torch.randn(2, 1, 55, 32, 32, 40, generator=generator)
    target = torch.randint(0, 55, (1, 1, 32, 32, 40), generator=generator)
    found: dict[str, float] = {}
    for reduction in ("mean", "voxel"):
        parts = two_view_loss(a, b, target, kl_reduction=reduction)
        found[f"divergence by {reduction} / the rest, %"] = 100 * float(parts["kl"] / parts["dice_ce"])
    return found
