"""What is exact about Gated-SwinRMT: counts, windows, the cost of two passes, ranks and decays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperworks.lab.trial import Trial
from paperworks.measure.multiply_adds import count_multiply_adds
from paperworks.measure.parameters import count_parameters
from paperworks.swin import gated_swinrmt as method
from paperworks.swin.windows import WindowAttention

PARENTS = {
    "S": ((64, 128, 256, 512), (3, 4, 18, 4), (4, 4, 8, 16)),
    "B": ((80, 160, 320, 512), (4, 8, 25, 8), (5, 5, 10, 16)),
    "L": ((112, 224, 448, 640), (4, 8, 25, 8), (7, 7, 14, 20)),
}
"""Channels, blocks and heads of RMT's sizes; mlp ratios 4, 4, 3, 3."""


def parameters_at_full_size(trial: Trial) -> dict[str, float]:
    """Millions of parameters at 100 classes."""
    builds = {
        "SWAT": method.gated_swinrmt_swat,
        "Retention": method.gated_swinrmt_retention,
        "RMT": method.rmt_baseline,
    }
    return {f"{name}: M parameters": count_parameters(build(device="meta")) / 1e6 for name, build in builds.items()}


def parameters_of_the_parents(trial: Trial) -> dict[str, float]:
    """Millions of parameters of RMT-S, B and L at 1000 classes."""
    return {
        f"RMT-{name}: M parameters": count_parameters(
            method.rmt_baseline(
                1000, embed_dims=dims, depths=depths, num_heads=heads, mlp_ratios=(4, 4, 3, 3), device="meta"
            )
        )
        / 1e6
        for name, (dims, depths, heads) in PARENTS.items()
    }


def _random_weights(trial: Trial, model: nn.Module, purpose: str = "weights") -> nn.Module:
    """Normal weights of deviation 1 / sqrt(fan-in), so that every branch counts; in eval mode."""
    generator = trial.generator(purpose)
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=p[0].numel() ** -0.5, generator=generator)
    return model.eval()


def _change(first: Tensor, second: Tensor) -> float:
    """Norm of the difference over the norm of the first."""
    return float((first - second).norm() / first.norm())


@torch.no_grad()
def small_images_are_global(trial: Trial) -> dict[str, float]:
    """Stages with one window at 32 and 224 pixels, and what windows of 64 change at full size."""
    found: dict[str, float] = {}
    for name, build in (("SWAT", method.gated_swinrmt_swat), ("Retention", method.gated_swinrmt_retention)):
        windowed = _random_weights(trial, build())
        whole = build(device="meta", window_size=64).eval()
        whole.load_state_dict(windowed.state_dict(), assign=True)
        for size in (32, 224):
            windows = method.effective_window_report(windowed, size)  # type: ignore[arg-type]
            found[f"{name}, {size} pixels: global stages"] = sum(stage.is_global for stage in windows)
            image = torch.randn(1, 3, size, size, generator=trial.generator("image"))
            change = _change(windowed.forward_features(image), whole.forward_features(image))  # type: ignore[operator]
            found[f"{name}, {size} pixels: change by windows of 64"] = change
    return found


@torch.no_grad()
def small_images_leave_only_the_gate(trial: Trial) -> dict[str, float]:
    """At 32 pixels: Retention against RMT with the same weights, gates held open and as they are."""
    model = _random_weights(trial, method.gated_swinrmt_retention())
    rmt = method.rmt_baseline(device="meta").eval()
    shared = {name: value for name, value in model.state_dict().items() if ".gate." not in name}
    rmt.load_state_dict(shared, assign=True)
    image = torch.randn(2, 3, 32, 32, generator=trial.generator("image"))
    wanted = rmt.forward_features(image)
    found = {"gates as they are: change": _change(wanted, model.forward_features(image))}  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, method.GatedRetention) and module.gate is not None:
            nn.init.zeros_(module.gate.weight)
            nn.init.constant_(module.gate.bias, 50.0)
    return {"gates open: change": _change(wanted, model.forward_features(image)), **found}  # type: ignore[operator]


def cost_of_two_passes(trial: Trial) -> dict[str, float]:
    """Multiply-adds of the attention products of one 7 x 7 window of 128 channels, over those of Swin."""
    x = torch.empty(1, 49, 128, device="meta")

    def products(model: nn.Module) -> int:
        return sum(row.macs for row in count_multiply_adds(model, x).rows if row.name == "")

    swin = products(WindowAttention(128, 4, (7, 7), backend="eager", device="meta"))
    found: dict[str, float] = {"Swin: M multiply-adds": swin / 1e6}
    for variant in ("retention", "swat"):
        two = products(method.GatedRetention(128, 4, (7, 7), variant, device="meta"))
        found[f"{variant} / Swin"] = two / swin
    return found


def rank_of_the_output(trial: Trial) -> dict[str, float]:
    """Rank of the stacked Jacobians of one head's output by the token's own features, over 256 windows of 4 x 4.

    Queries and keys are zero, so that the mixing is frozen; LCE is off, and the projection out sees the first head of
    8 channels alone.
    """
    dim, width, generator = 32, 8, trial.generator("weights")
    x = torch.randn(256, 4, 4, dim, generator=generator, dtype=torch.float64)
    own = torch.zeros(4, 4, 1, dtype=torch.float64)
    own[1, 2] = 1
    found = {}
    for name, gate in (("without gate", False), ("with gate", True)):
        module = method.GatedRetention(dim, dim // width, (4, 4), gate=gate, dtype=torch.float64).requires_grad_(False)
        for p in module.parameters():
            nn.init.normal_(p, std=0.3, generator=generator)
        for layer in (module.q_proj, module.k_proj, module.lce):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        module.out_proj.weight[:, width:] = 0

        def output(token: Tensor, window: Tensor, module: nn.Module = module) -> Tensor:
            return module((window * (1 - own) + own * token)[None])[0, 1, 2]

        jacobians = torch.func.vmap(torch.func.jacrev(output))(x[:, 1, 2], x)
        found[f"rank {name}"] = float(torch.linalg.matrix_rank(jacobians.flatten(0, 1), rtol=1e-9))
    return found


@torch.no_grad()
def decay_is_manhattan(trial: Trial) -> dict[str, float]:
    """Mixing weights at equal scores over the token's own, against gamma^distance, in a window of 7 x 7."""
    generator, heads = trial.generator("input"), 4
    module = method.GatedRetention(128, heads, (7, 7), dtype=torch.float64)
    for layer in (module.q_proj, module.k_proj):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    weights = module.attention_map(torch.randn(1, 49, 128, generator=generator, dtype=torch.float64))[0]
    row, column = torch.arange(49) // 7, torch.arange(49) % 7
    distance = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    gamma = 1 - 2.0 ** -(2 + 4 * torch.arange(heads, dtype=torch.float64) / heads)
    ratio = weights / weights.diagonal(dim1=1, dim2=2)[..., None]
    return {"largest difference": float((ratio - gamma[:, None, None] ** distance).abs().max())}


def heads_that_favour_distance(trial: Trial) -> dict[str, float]:
    """Heads of "swat" whose weight at equal scores (zero) is larger at some distance up to 6 than at 0, by stage."""
    found = {}
    for stage, heads in enumerate((4, 8, 16, 32), 1):
        distance = torch.arange(7, dtype=torch.float64)
        decay = method.manhattan_log_decay(heads).double()[:, None] * distance
        slopes = method.balanced_alibi_slopes(heads).double()[:, None] * distance
        weight = torch.sigmoid(-slopes) * decay.exp()
        found[f"stage {stage}, of {heads} heads"] = float((weight[:, 1:].amax(1) > weight[:, 0]).sum())
    return found
