"""The network: 4-D patches, stages of 4-D shifted windows with absolute positions, merging in space only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paperworks.swin.blocks import PatchEmbed, PatchMerging, WindowBlock
from paperworks.swin.windows import Sizes, sizes

__all__ = ["SwiFT", "SwiftStage"]

AXES = ("H", "W", "D", "T")


class SwiftStage(nn.Module):
    """Absolute positions, then window blocks at one resolution: x + P + Q, then the blocks.

    P (1, C, h, w, d, 1) is of the place and Q (1, C, 1, 1, 1, T) of the frame, both truncated normal of deviation 0.02.

    Args:
        dim, num_heads, grid, window: channels, heads, tokens on each axis at full length, size of a window.
        drop_path: one probability a block.
        shifted: whether every second block shifts by half a window.
        positions: whether there are P and Q.
        checkpointing: recompute each block in the backward pass.
        block: further options of `WindowBlock`.
    """

    pos_embed: nn.Parameter | None
    time_embed: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Sequence[int],
        window: Sequence[int],
        drop_path: Sequence[float],
        *,
        shifted: bool = True,
        positions: bool = True,
        checkpointing: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **block: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        *space, frames = grid
        self.checkpointing = checkpointing
        self.pos_embed = self.time_embed = None
        if positions:
            self.pos_embed = nn.Parameter(torch.empty(1, dim, *space, 1, **factory))
            self.time_embed = nn.Parameter(torch.empty(1, dim, 1, 1, 1, frames, **factory))
            for table in (self.pos_embed, self.time_embed):
                nn.init.trunc_normal_(table, std=0.02)
        half, none = tuple(w // 2 for w in window), (0,) * len(window)
        self.blocks = nn.ModuleList(
            WindowBlock(dim, num_heads, window, half if shifted and i % 2 else none, drop_path=p, **block, **factory)
            for i, p in enumerate(drop_path)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, d, t, C) -> the same shape; t is at most the number of frames of Q."""
        if self.pos_embed is not None and self.time_embed is not None:
            # small copies, so that the sums run along contiguous channels
            place = self.pos_embed.movedim(1, -1).contiguous()
            x = x + place + self.time_embed[..., : x.shape[4]].movedim(1, -1).contiguous()
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class SwiFT(nn.Module):
    """Swin 4D fMRI Transformer: BOLD volumes over time to a feature map, or to logits or targets.

    Args:
        img_size: voxels on the axes H, W, D, and the largest number of frames.
        in_chans: channels of the input, 1 for BOLD.
        embed_dim: channels of the first stage; each merging doubles them.
        patch_size: of a patch on H, W, D, T; more than one frame a patch is an extension of ours.
        window_size: tokens of a window on each axis.
        first_window_size: that of the first stage; as `window_size` if None.
        depths, num_heads: blocks and heads of each stage.
        mlp_ratio, qkv_bias: width of the MLPs over the channels; biases of queries, keys and values.
        drop_rate, attn_drop_rate, drop_path_rate: dropout of patches and projections, of attention, and of the last
            block's branches (the others' rates rise to it in equal steps).
        last_layer_full_msa: in the last stage a window spans the whole brain and ``window_size[3]`` frames, unshifted.
        num_outputs: outputs of the head, a linear layer of the mean over all tokens; 0 for no head.
        use_checkpoint: recompute each block in the backward pass instead of keeping its activations.
        positions: ``"absolute"`` as in the paper; ``"relative"`` for Swin's bias in every window, or None, to compare.

    Raises ValueError where the sizes do not go together, with the axis.
    """

    def __init__(
        self,
        img_size: Sequence[int] = (96, 96, 96, 20),
        in_chans: int = 1,
        embed_dim: int = 36,
        patch_size: Sequence[int] = (6, 6, 6, 1),
        window_size: Sequence[int] = (4, 4, 4, 4),
        first_window_size: Sequence[int] | None = None,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        last_layer_full_msa: bool = True,
        num_outputs: int = 0,
        use_checkpoint: bool = False,
        *,
        positions: str | None = "absolute",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if positions not in ("absolute", "relative", None):
            raise ValueError(f"positions: got {positions!r}, wanted 'absolute', 'relative' or None")
        if len(depths) != len(num_heads) or not depths:
            raise ValueError(f"num_heads: got {tuple(num_heads)}, wanted one number a stage, as in depths={depths}")
        if num_outputs < 0:
            raise ValueError(f"num_outputs: got {num_outputs}, wanted 0 or more")
        if in_chans < 1:
            raise ValueError(f"in_chans: got {in_chans}, wanted 1 or more")
        for name, value in (
            ("drop_rate", drop_rate), ("attn_drop_rate", attn_drop_rate), ("drop_path_rate", drop_path_rate)
        ):  # fmt: skip
            if not 0 <= value < 1:
                raise ValueError(f"{name}: got {value}, wanted 0 <= {name} < 1")
        self.img_size, self.patch_size = sizes("img_size", img_size, 4), sizes("patch_size", patch_size, 4)
        self.num_outputs, self.in_chans = num_outputs, in_chans
        window = sizes("window_size", window_size, 4)
        first = window if first_window_size is None else sizes("first_window_size", first_window_size, 4)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        grid = _grid(self.img_size, self.patch_size, len(depths))
        self.patch_embed = PatchEmbed(4, self.patch_size, in_chans, embed_dim, **factory)
        self.drop = nn.Dropout(drop_rate)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.stages, self.merges = nn.ModuleList(), nn.ModuleList()
        dim = embed_dim
        for i, heads in enumerate(num_heads):
            last = i + 1 == len(depths)
            whole = last and last_layer_full_msa
            self.stages.append(
                SwiftStage(
                    dim, heads, grid, (*grid[:3], window[3]) if whole else window if i else first,
                    rates[sum(depths[:i]) : sum(depths[: i + 1])], shifted=not whole,
                    positions=positions == "absolute", checkpointing=use_checkpoint, mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias, drop=drop_rate, attn_drop=attn_drop_rate,
                    bias="relative" if positions == "relative" else None, clamped_bias="exact", **factory,
                )
            )  # fmt: skip
            if not last:
                self.merges.append(PatchMerging(4, dim, (0, 1, 2), pad=False, **factory))
                dim, grid = 2 * dim, (*(size // 2 for size in grid[:3]), grid[3])
        self.num_features = dim
        self.head = nn.Linear(dim, num_outputs, **factory) if num_outputs else None

    def extra_repr(self) -> str:
        """Sizes of the input."""
        return f"img_size={self.img_size}, patch_size={self.patch_size}, num_outputs={self.num_outputs}"

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W, D, T) -> (B, num_outputs), or, without a head, the feature map.

        T may be less than that of `img_size`. Raises ValueError that names the axis for a size that does not fit.
        """
        if self.head is None:
            return self.forward_features(x)
        return self.head(self._tokens(x).flatten(1, 4).mean(1))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W, D, T) -> the last stage's map (B, num_features, h, w, d, t)."""
        return self._tokens(x).movedim(-1, 1)

    def _tokens(self, x: Tensor) -> Tensor:
        self._check(x)
        x = self.drop(self.patch_embed(x))
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.merges):
                x = self.merges[i](x)
        return x

    def _check(self, x: Tensor) -> None:
        if x.dim() != 6 or x.shape[1] != self.in_chans:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, wanted (B, {self.in_chans}, H, W, D, T)")
        if not x.is_floating_point():
            raise TypeError(f"x: got {x.dtype}, wanted a floating type")
        weight = self.patch_embed.proj.weight
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x: got {x.dtype}, wanted {weight.dtype}, that of the weights, or autocast")
        if not x.shape[0]:
            raise ValueError(f"x: got the shape {tuple(x.shape)}, which is an empty batch")
        for name, got, wanted in zip(AXES[:3], x.shape[2:5], self.img_size, strict=False):
            if got != wanted:
                raise ValueError(f"x: got {got} on the axis {name}, wanted {wanted} as in img_size={self.img_size}")
        frames, patch = x.shape[5], self.patch_size[3]
        if not 1 <= frames <= self.img_size[3]:
            raise ValueError(f"x: got {frames} frames on the axis T, wanted 1 to {self.img_size[3]}")
        if frames % patch:
            raise ValueError(f"x: got {frames} frames on the axis T, wanted a multiple of the patch's {patch}")

    def load_official_state_dict(self, sd: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the authors' code (`SwinTransformer4D`), in place.

        Args:
            sd: a state dict of the backbone, or of the training module around it, where its names begin with
                ``"model."``. The norm that the published class makes and never uses is passed over. Of the training
                module's ``"output_head."`` a single linear layer that fits `head` is taken, the rest left out.

        Raises ValueError that names what is missing, left over or of another shape; nothing is loaded then.
        """
        given = {name.removeprefix("module."): value for name, value in sd.items()}
        outer = {name: value for name, value in given.items() if name.startswith("output_head.")}
        if any(name.startswith("model.") for name in given):
            given = {name[len("model.") :]: value for name, value in given.items() if name.startswith("model.")}
        given = {name: value for name, value in given.items() if name not in ("norm.weight", "norm.bias", *outer)}
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("head.")}
        names = {_official(name): name for name in own}
        problems = [
            f"{what}: {', '.join(sorted(found)[:8])}{f' and {len(found) - 8} more' if len(found) > 8 else ''}"
            for what, found in (("missing", names.keys() - given.keys()), ("left over", given.keys() - names.keys()))
            if found
        ]
        problems += [
            f"{one}: got the shape {tuple(given[one].shape)}, wanted {tuple(own[name].shape)}"
            for one, name in names.items()
            if one in given and given[one].shape != own[name].shape
        ]
        if problems:
            raise ValueError(f"sd: does not fit this network; {'; '.join(problems)}")
        values = {name: given[one] for one, name in names.items()}
        weight = outer.get("output_head.head.weight")
        if self.head is not None and weight is not None and weight.shape == self.head.weight.shape:
            values |= {"head.weight": weight, "head.bias": outer["output_head.head.bias"]}
        self.load_state_dict(values, strict=False)

    @torch.no_grad()
    def resample_time_embedding(self, tr_old: float, tr_new: float) -> None:
        """Read the positions of the frames, learned `tr_old` seconds apart, at frames `tr_new` seconds apart, in place.

        Linear interpolation; past the last learned frame its value is kept. An extension of ours.
        """
        for name, value in (("tr_old", tr_old), ("tr_new", tr_new)):
            if not value > 0:
                raise ValueError(f"{name}: got {value}, wanted seconds > 0")
        for stage in self.stages:
            table = stage.time_embed
            if not isinstance(table, Tensor):
                raise ValueError("positions: this network has no absolute ones")
            last = table.shape[-1] - 1
            at = (torch.arange(last + 1, device=table.device, dtype=torch.float64) * (tr_new / tr_old)).clamp(max=last)
            below = at.floor().long().clamp(max=max(0, last - 1))
            part = (at - below).to(table.dtype)
            table.copy_(table[..., below] * (1 - part) + table[..., (below + 1).clamp(max=last)] * part)


def _grid(image: Sizes, patch: Sizes, stages: int) -> Sizes:
    """Tokens on each axis. Raises ValueError where patches or mergings leave a rest."""
    for name, size, p in zip(AXES, image, patch, strict=True):
        if size % p:
            raise ValueError(f"img_size: got {size} on the axis {name}, wanted a multiple of the patch's {p}")
    grid = tuple(size // p for size, p in zip(image, patch, strict=True))
    by = 2 ** (stages - 1)
    for name, size in zip(AXES[:3], grid[:3], strict=True):
        if size % by:
            wanted = f"a multiple of {by}, as {stages} stages halve it {stages - 1} times"
            raise ValueError(f"img_size: got {size} patches on the axis {name}, wanted {wanted}")
    return grid


def _official(name: str) -> str:
    """The name of one of our weights in the authors' code."""
    name = name.replace("patch_embed.proj", "patch_embed.fc").replace("mlp.fc", "mlp.linear")
    name = re.sub(r"^stages\.(\d+)\.(pos|time)_embed$", r"pos_embeds.\1.\2_embed", name)
    return re.sub(r"^stages\.(\d+)\.", r"layers.\1.", re.sub(r"^merges\.(\d+)\.", r"layers.\1.downsample.", name))
