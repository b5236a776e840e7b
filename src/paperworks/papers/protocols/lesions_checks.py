"""What the exact claims about Swin UNETR compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.lab.trial import Trial
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.measure.parameters import count_parameters
from paperworks.swin.swin_unetr import SwinUNETR
from paperworks.swin.windows import RelativePositionBias

FEATURE = 48


def _paper(in_channels: int = 4, out_channels: int = 3) -> SwinUNETR:
    """The network at its full size, without memory."""
    with torch.device("meta"):
        return SwinUNETR(in_channels, out_channels, FEATURE)


def parameters(trial: Trial) -> dict[str, float]:
    """Millions of parameters, all of them and without those that tools based on layers pass over."""
    model = _paper()
    norms = sum(p.numel() for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters())
    tables = sum(p.numel() for m in model.modules() if isinstance(m, RelativePositionBias) for p in m.parameters())
    total = count_parameters(model)
    return {
        "parameters": total,
        "in bias tables": tables,
        "in layer norms": norms,
        "without both": total - tables - norms,
    }


@lru_cache
def _counted(size: int, in_channels: int, out_channels: int) -> Any:
    x = torch.zeros(1, in_channels, size, size, size, device="meta")
    return count_multiply_adds(_paper(in_channels, out_channels), x)


def multiply_adds(trial: Trial) -> dict[str, float]:
    """10^9 multiply-adds of one forward pass at the sizes and channels that the figure could be of."""
    found: dict[str, float] = {}
    for size, channels in ((128, (4, 3)), (96, (4, 3)), (96, (1, 14))):
        counted = _counted(size, *channels)
        name = f"{size}^3, {channels[0]} to {channels[1]} channels"
        found[name] = counted.macs / 1e9
        if size == 128:
            for part in ("decoder1", "encoder1", "encoder."):
                rows = [row.macs for row in counted.rows if (row.name + ".").startswith(part.rstrip(".") + ".")]
                found[f"{name}: {'Swin encoder' if part == 'encoder.' else part}"] = sum(rows) / 1e9
    return found


def nearest_count(trial: Trial) -> dict[str, float]:
    """The published 394.84 beside the counts under every rule tried: sizes, channels, and what tools leave out."""
    published = 394.84
    rules = {}
    for size, channels in ((128, (4, 3)), (96, (4, 3)), (96, (1, 14))):
        counted = _counted(size, *channels)
        name = f"{size}^3, {channels[0]} to {channels[1]} channels"
        rules[name] = counted.macs / 1e9
        rules[f"{name}, additions apart"] = 2 * counted.macs / 1e9
        products = sum(row.macs for row in counted.rows if row.name.endswith(".attn"))
        rules[f"{name}, without attention's products"] = (counted.macs - products) / 1e9
    nearest = min(rules.values(), key=lambda value: abs(value - published))
    return {"at 128^3": rules["128^3, 4 to 3 channels"], "nearest of nine counts": nearest}


def resolutions(trial: Trial) -> dict[str, float]:
    """Of an input of 128^3: by map, the size over the input's and the channels over f, inverted and squared away."""
    maps = _paper().encode(torch.zeros(1, 4, 128, 128, 128, device="meta"))
    found: dict[str, float] = {"maps": len(maps)}
    for i, map in enumerate(maps):
        found[f"h{i}: input size / size"] = 128 / map.shape[2] if len(set(map.shape[2:])) == 1 else float("nan")
        found[f"h{i}: channels / f"] = map.shape[1] / FEATURE
    return found


def reach(trial: Trial) -> dict[str, float]:
    """Of the middle voxel of a crop of 128^3: how many input voxels its place in each map depends on."""
    from paperworks.swin.swin_unetr import explain_receptive_field

    found = explain_receptive_field(_paper(), (128, 128, 128))
    return {f"{reach.name}: % of the crop": 100 * reach.share for reach in found}


def _spread(model: nn.Module, generator: torch.Generator) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def _differences(theirs: nn.Module, ours: SwinUNETR, x: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """Largest difference of the logits, and of a gradient relative to the largest of its tensor."""
    ends: list[Tensor] = []
    gradients: list[list[Tensor]] = []
    weight: Tensor | None = None
    for model in (theirs, ours):
        given = x.clone().requires_grad_()
        logits = model(given)
        if weight is None:
            weight = torch.randn(logits.shape, generator=generator, dtype=x.dtype)
        ends.append(logits.detach())
        gradients.append(list(torch.autograd.grad((logits * weight).sum(), [given, *model.parameters()])))
    with torch.no_grad():
        for parameter, gradient in zip(ours.parameters(), gradients[1][1:], strict=True):
            parameter.copy_(gradient)
    mapped = ours.monai_state_dict()
    pairs = [(gradients[0][0], gradients[1][0])]
    names = [name for name, _ in theirs.named_parameters()]
    pairs += [(gradient, mapped[name]) for name, gradient in zip(names, gradients[0][1:], strict=True)]
    worst = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)
    return float((ends[0] - ends[1]).abs().max()), worst


SMALL_CASES: tuple[tuple[str, int, tuple[int, ...], dict[str, Any]], ...] = (
    ("3-D", 3, (64, 32, 32), {}),
    ("3-D, V2 and mergingv2", 3, (64, 32, 32), {"use_v2": True, "downsample": "mergingv2"}),
    ("2-D", 2, (96, 64), {}),
)
"""Name, axes, size and options."""


def parity(
    trial: Trial, build: Callable[..., SwinUNETR] = SwinUNETR, cases: Sequence[Any] = SMALL_CASES
) -> dict[str, float]:
    """MONAI's weights in our network and ours in MONAI's, in float64: logits and gradients."""
    from monai.networks.nets import SwinUNETR as Theirs

    generator = trial.generator("weights and inputs")
    found = {}
    for name, axes, size, options in cases:
        sizes: dict[str, Any] = {"feature_size": 12, "spatial_dims": axes, **options}
        theirs = _spread(Theirs(2, 3, **sizes), generator).double()
        ours = build(2, 3, **sizes).double()
        ours.load_monai_state_dict(theirs.state_dict())
        back = Theirs(2, 3, **sizes).double()
        back.load_state_dict(ours.monai_state_dict())
        x = torch.randn(1, 2, *size, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            found[f"{name}: there and back"] = float((back(x) - theirs(x)).abs().max())
        logits, gradients = _differences(theirs, ours, x, generator)
        found[f"{name}: logits"] = logits
        found[f"{name}: gradients, relative"] = gradients
    return found


def parity_at_full_width(trial: Trial) -> dict[str, float]:
    """The logits of both networks of 48 features, float32, 64 x 32 x 32 voxels."""
    from monai.networks.nets import SwinUNETR as Theirs

    with trial.global_generators("weights"):
        theirs = Theirs(4, 3, feature_size=FEATURE).eval()
    ours = SwinUNETR(4, 3, FEATURE).eval()
    ours.load_monai_state_dict(theirs.state_dict())
    x = torch.randn(1, 4, 64, 32, 32, generator=trial.generator("input"))
    with torch.no_grad():
        wanted, found = theirs(x), ours(x)
    return {"largest difference / largest logit": float((wanted - found).abs().max() / wanted.abs().max())}


def legacy_merging(trial: Trial) -> dict[str, float]:
    """How many of the eight neighbours' gradients reach a merged token, by order."""
    from paperworks.swin.blocks import PatchMerging

    found: dict[str, float] = {}
    for name, order in (("merging", "monai"), ("mergingv2", "product"), ("merging-legacy", "monai-legacy")):
        merging = PatchMerging(3, 4, order=order).double()
        x = torch.randn(1, 2, 2, 2, 4, generator=trial.generator("x"), dtype=torch.float64, requires_grad=True)
        weight = torch.linspace(-1, 1, 8, dtype=torch.float64)
        (merging(x) * weight).sum().backward()
        assert x.grad is not None
        found[f"{name}: neighbours"] = int((x.grad.abs().sum(-1) > 1e-12).sum())
    return found


def clamped_windows(trial: Trial) -> dict[str, float]:
    """Pairs of tokens of a window of 7^3 cut to 6^3 whose bias is that of another offset, and with "exact"."""
    from paperworks.swin.windows import relative_position_index

    full = relative_position_index((7, 7, 7))
    cut = full[:216, :216]
    places = torch.tensor(list(product(range(6), repeat=3)))
    true = (places[:, None] - places[None] + 6) @ torch.tensor([169, 13, 1])
    bias = RelativePositionBias((7, 7, 7), 1)
    with torch.no_grad():
        bias.relative_position_bias_table.copy_(torch.arange(2197.0).unsqueeze(1))
        exact = bias(exact=(6, 6, 6))[0].long()
    return {
        "cut: pairs with another offset's bias, %": 100 * float((cut != true).float().mean()),
        "exact: pairs with another offset's bias, %": 100 * float((exact != true).float().mean()),
    }


def loss_is_its_equation(trial: Trial) -> dict[str, float]:
    """Against MONAI's DiceLoss with squared denominators, values and gradients, in float64."""
    from monai.losses import DiceLoss

    from paperworks.swin.swin_unetr import soft_dice_loss

    generator = trial.generator("logits")
    logits = torch.randn(2, 3, 6, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(2, 3, 6, 5, 4, generator=generator) < 0.3).double()
    reference = DiceLoss(squared_pred=True, to_onehot_y=False, sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)
    [wanted] = torch.autograd.grad(reference(logits, target), logits)
    [found] = torch.autograd.grad(soft_dice_loss(logits, target), logits)
    values = (reference(logits, target) - soft_dice_loss(logits, target)).abs().item()
    return {"loss": values, "gradient": float((wanted - found).abs().max())}


def windows_over_a_volume(trial: Trial) -> dict[str, float]:
    """A volume of 240 x 240 x 155 and a window of 128^3 at overlap 0.7: windows, and the least weight of a voxel."""
    from paperworks.swin.swin_unetr import importance_map
    from paperworks.swin.swin_unetr.inference import starts

    places = list(product(*(starts(size, 128, 0.7) for size in (240, 240, 155))))
    return {"windows": len(places), "least weight in a window": float(importance_map((128,) * 3).min())}
